#include "controller/telemetry/load_window.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

LoadWindow Window(int max_routes = 4) {
  return LoadWindow(
      "g", 2, 8, {.window = absl::Seconds(50), .bucket = absl::Seconds(10), .max_tasks = 2, .max_routes = max_routes},
      2);
}

struct Sampled {
  std::string task;
  v1::Phase phase = v1::PHASE_DECODE;
  int64_t population = 0;
  // [tokens][2 layers][2]
  std::vector<int32_t> experts;
};

v1::LoadReport Report(const std::vector<Sampled>& samples, absl::Time end = kStart) {
  v1::LoadReport report;
  report.mutable_end()->set_seconds(absl::ToUnixSeconds(end));
  for (const Sampled& s : samples) {
    v1::TaskTokens& task = *report.add_task_tokens();
    task.set_task(s.task);
    s.phase == v1::PHASE_DECODE ? task.set_decode_tokens(s.population) : task.set_prefill_tokens(s.population);
    v1::RouteSample& sample = *report.add_route_samples();
    sample.set_task(report.task_tokens_size() - 1);
    sample.set_phase(s.phase);
    sample.set_tokens(static_cast<int32_t>(s.experts.size() / 4));
    sample.mutable_experts()->Assign(s.experts.begin(), s.experts.end());
  }
  return report;
}

TEST(SampledRoutes, ByTask_PhasesInProportion) {
  LoadWindow window = Window();
  ASSERT_TRUE(window.Add(Report({{"b", v1::PHASE_PREFILL, 34, {0, 1, 2, 3}}}), kStart).ok());
  ASSERT_TRUE(window.Add(Report({{"a", v1::PHASE_DECODE, 10, {4, 5, 6, 7}}}), kStart).ok());
  ASSERT_TRUE(window.Add(Report({{"b", v1::PHASE_DECODE, 10, {7, 6, 5, 4}}}), kStart).ok());
  const Routes routes = window.SampledRoutes({}, 100);
  EXPECT_EQ(routes.layers, 2);
  EXPECT_EQ(routes.experts, 8);
  EXPECT_EQ(routes.top_k, 2);
  ASSERT_EQ(routes.tasks.size(), 2u);
  EXPECT_TRUE(Validate(routes).ok()) << Validate(routes);
  EXPECT_EQ(routes.tasks[0].name, "a");
  EXPECT_EQ(routes.tasks[0].weight, 10);
  EXPECT_THAT(routes.tasks[0].experts[0], ElementsAre(4, 5));
  EXPECT_THAT(routes.tasks[0].experts[1], ElementsAre(6, 7));
  EXPECT_EQ(routes.tasks[1].weight, 44);
  // Two tokens are known, and more than three quarters of the tokens are the first's.
  EXPECT_THAT(routes.tasks[1].experts[0], ElementsAre(0, 1, 0, 1));
  EXPECT_EQ(window.SampledTokens("b"), 2);
  // A mix of one's own: tasks without a part in it are left out.
  const Routes of_a = window.SampledRoutes({{"a", .5}, {"c", .5}}, 100);
  ASSERT_EQ(of_a.tasks.size(), 1u);
  EXPECT_EQ(of_a.tasks[0].weight, .5);
  EXPECT_EQ(window.SampledRoutes({}, 2).tasks[1].experts[0].size(), 2u);
}

TEST(SampledRoutes, ABucketKeepsWhatStandsForAllItsTokens) {
  LoadWindow window = Window(8);
  // Reports of very unlike sizes: expert 0 where there are many tokens, else 1.
  for (int i = 0; i < 40; ++i) {
    const bool many = i % 4 == 0;
    std::vector<int32_t> experts;
    for (int t = 0; t < 3; ++t) experts.insert(experts.end(), {many ? 0 : 1, 2, 3, 4});
    ASSERT_TRUE(window.Add(Report({{"a", v1::PHASE_DECODE, many ? 900 : 100, experts}}), kStart).ok());
    ASSERT_LE(window.SampledTokens("a"), 8);
  }
  const Routes routes = window.SampledRoutes({}, 100);
  ASSERT_EQ(routes.tasks.size(), 1u);
  EXPECT_EQ(routes.tasks[0].weight, 12'000);
  int often = 0;
  for (size_t i = 0; i < routes.tasks[0].experts[0].size(); i += 2) often += routes.tasks[0].experts[0][i] == 0;
  // 9,000 of 12,000 tokens.
  EXPECT_NEAR(often, 6, 1);
  EXPECT_EQ(routes.tasks[0].experts[0].size(), 16u);
}

TEST(SampledRoutes, ExpireAndOutliveARestart) {
  LoadWindow window = Window();
  const absl::Time later = kStart + absl::Seconds(30);
  ASSERT_TRUE(window.Add(Report({{"a", v1::PHASE_DECODE, 7, {0, 1, 2, 3}}}), kStart).ok());
  ASSERT_TRUE(window.Add(Report({{"a", v1::PHASE_DECODE, 5, {4, 5, 6, 7}}}, later), later).ok());
  LoadWindow restarted = Window();
  for (const StoreWrite& write : window.TakeWrites()) restarted.Load(write.key, *write.value);
  for (LoadWindow* w : {&window, &restarted}) {
    ASSERT_EQ(w->SampledRoutes({}, 9).tasks.size(), 1u);
    EXPECT_THAT(w->SampledRoutes({}, 9).tasks[0].experts[0], ElementsAre(0, 1, 4, 5));
    EXPECT_THAT(w->TasksByBucket(), ElementsAre(TaskBucket{{"a", 7}}, TaskBucket{{"a", 5}}));
    w->Expire(kStart + absl::Seconds(65));
    EXPECT_THAT(w->SampledRoutes({}, 9).tasks[0].experts[0], ElementsAre(4, 5));
    EXPECT_THAT(w->SampledRoutes({}, 9).tasks[0].weight, 5);
    w->Expire(kStart + absl::Minutes(5));
    EXPECT_TRUE(w->SampledRoutes({}, 9).tasks.empty());
  }
}

TEST(SampledRoutes, BadSamplesChangeNothingAndNameTheField) {
  const struct {
    void (*spoil)(v1::LoadReport&);
    const char* field;
  } cases[] = {
      {[](v1::LoadReport& r) { r.mutable_route_samples(0)->set_task(1); }, "route_samples.task: 1 is not in 0 to 0"},
      {[](v1::LoadReport& r) { r.mutable_route_samples(0)->set_phase(v1::PHASE_UNSPECIFIED); }, "route_samples.phase"},
      {[](v1::LoadReport& r) { r.mutable_route_samples(0)->set_tokens(0); }, "tokens: 0 is not in 1 to 9"},
      {[](v1::LoadReport& r) { r.mutable_task_tokens(0)->set_decode_tokens(0); }, "tokens: 1 is not in 1 to 0"},
      {[](v1::LoadReport& r) { r.mutable_route_samples(0)->add_experts(3); },
       "experts: 5 is not 1 tokens of 4 numbers"},
      {[](v1::LoadReport& r) { r.mutable_route_samples(0)->set_experts(2, 8); }, "experts: 8 is not in 0 to 7"},
      {[](v1::LoadReport& r) { r.mutable_route_samples(0)->set_experts(1, 0); }, "experts: 0 is not distinct"},
      {[](v1::LoadReport& r) { *r.add_route_samples() = r.route_samples(0); }, "task: 0 is not the only one"},
  };
  for (const auto& c : cases) {
    LoadWindow window = Window();
    v1::LoadReport report = Report({{"a", v1::PHASE_DECODE, 9, {0, 1, 2, 3}}});
    c.spoil(report);
    const absl::Status status = window.Add(report, kStart);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.field));
    EXPECT_EQ(window.total_tokens(), 0);
    EXPECT_EQ(window.SampledTokens("a"), 0);
  }
}

}  // namespace
}  // namespace ballast
