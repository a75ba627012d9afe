#include "controller/group/engine_group.h"

#include <functional>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/planner/level.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kLayers = 2;
constexpr int32_t kExperts = 4;

v1::Engine MakeEngine() {
  v1::Engine engine;
  engine.set_name("e");
  engine.set_model("m");
  engine.set_num_layers(kLayers);
  engine.set_num_experts(kExperts);
  for (const char* name : {"gpu0", "gpu1"}) {
    v1::EngineWorker& worker = *engine.add_workers();
    worker.set_name(name);
    worker.set_node("n");
  }
  engine.set_slots_per_layer(3);
  return engine;
}

EngineGroupOptions Options() {
  EngineGroupOptions options;
  options.planning.interval = absl::Seconds(30);
  options.planning.min_tokens = 1000;
  return options;
}

v1::LoadReport MakeReport(uint64_t sequence, std::vector<int64_t> tokens, v1::Phase phase = v1::PHASE_DECODE) {
  v1::LoadReport report;
  report.set_sequence(sequence);
  int64_t sum = 0;
  for (int32_t l = 0; l < kLayers; ++l) {
    for (int32_t e = 0; e < kExperts; ++e) {
      v1::LoadCount& count = *report.add_counts();
      count.set_layer(l);
      count.set_expert(e);
      count.set_phase(phase);
      count.set_tokens(tokens[e]);
      if (l == 0) sum += tokens[e];
    }
  }
  v1::TaskTokens& task = *report.add_task_tokens();
  (phase == v1::PHASE_DECODE ? task.set_decode_tokens(sum) : task.set_prefill_tokens(sum));
  return report;
}

class EngineGroupTest : public ::testing::Test {
 protected:
  EngineGroupTest() : group_(std::make_shared<EngineGroup>(MakeEngine(), 0, Options())) { group_->BeginStream("r", 7); }
  absl::StatusOr<EngineGroup::Counted> Report(const v1::LoadReport& report) {
    return group_->Report("r", 7, report, now_);
  }
  void Store() {
    ASSERT_TRUE(store_.Apply(group_->Unstored()).ok());
    group_->Stored();
  }
  void Restart() {
    auto loaded = EngineGroup::Load("e", store_, Options());
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    group_ = *std::move(loaded);
  }
  // Plans if it is time to.
  bool PlanNow() {
    const auto request = group_->MaybePlan(now_);
    if (!request.has_value()) return false;
    EXPECT_FALSE(group_->MaybePlan(now_).has_value()) << "one at a time";
    std::string why;
    return group_->Planned(MakePlan(CostAwarePolicy(0, CostAwarePolicy::Split::kEqual), *request), now_, why);
  }

  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  MemoryStore store_;
  std::shared_ptr<EngineGroup> group_;
};

TEST_F(EngineGroupTest, CountsEachReportOnce) {
  EXPECT_EQ(*Report(MakeReport(1, {100, 0, 0, 0})), EngineGroup::Counted::kYes);
  EXPECT_EQ(*Report(MakeReport(1, {100, 0, 0, 0})), EngineGroup::Counted::kDuplicate);
  EXPECT_EQ(group_->counted(v1::PHASE_DECODE)[0], 100);
  EXPECT_EQ(group_->Describe(now_).window_tokens(), 100);
  // Not acknowledged before it is stored.
  EXPECT_EQ(group_->reports_stored("r"), 0u);
  Store();
  EXPECT_EQ(group_->reports_stored("r"), 1u);
  EXPECT_EQ(*Report(MakeReport(3, {1, 0, 0, 0})), EngineGroup::Counted::kAfterGap);
  EXPECT_EQ(group_->Describe(now_).window_tokens(), 101);
}

TEST_F(EngineGroupTest, TheNewestReportIsNoNewerThanNow) {
  v1::LoadReport ahead = MakeReport(1, {100, 0, 0, 0});
  ahead.mutable_end()->set_seconds(absl::ToUnixSeconds(now_) + 3600);
  ASSERT_TRUE(Report(ahead).ok());
  EXPECT_EQ(group_->Describe(now_).last_report().seconds(), absl::ToUnixSeconds(now_));
}

TEST_F(EngineGroupTest, WhatIsNotStoredIsLostAndSentAgain) {
  ASSERT_TRUE(Report(MakeReport(1, {100, 0, 0, 0})).ok());
  Store();
  ASSERT_TRUE(Report(MakeReport(2, {0, 50, 0, 0})).ok());
  Restart();
  EXPECT_EQ(group_->Describe(now_).window_tokens(), 100);
  EXPECT_EQ(group_->reports_stored("r"), 1u);
  EXPECT_EQ(*Report(MakeReport(1, {100, 0, 0, 0})), EngineGroup::Counted::kDuplicate);
  EXPECT_EQ(*Report(MakeReport(2, {0, 50, 0, 0})), EngineGroup::Counted::kYes);
  EXPECT_EQ(group_->Describe(now_).window_tokens(), 150);
}

TEST_F(EngineGroupTest, AStoreThatFailsLosesNothing) {
  ASSERT_TRUE(Report(MakeReport(1, {100, 0, 0, 0})).ok());
  // The write fails; the reporter tries again, and what is stored then is all of it.
  EXPECT_FALSE(group_->Unstored().empty());
  EXPECT_EQ(*Report(MakeReport(1, {100, 0, 0, 0})), EngineGroup::Counted::kDuplicate);
  ASSERT_TRUE(Report(MakeReport(2, {0, 0, 0, 7})).ok());
  Store();
  EXPECT_TRUE(group_->Unstored().empty());
  Restart();
  EXPECT_EQ(group_->Describe(now_).window_tokens(), 107);
  EXPECT_EQ(group_->reports_stored("r"), 2u);
}

TEST_F(EngineGroupTest, RefusedReportsChangeNothingAndCanBeCorrected) {
  const struct {
    std::function<void(v1::LoadReport&)> spoil;
    const char* message;
  } cases[] = {
      {[](auto& r) { r.mutable_counts(0)->set_layer(kLayers); }, "counts.layer: 2 is not in 0 to 1"},
      {[](auto& r) { r.mutable_counts(0)->set_expert(-1); }, "counts.expert: -1 is not in 0 to 3"},
      {[](auto& r) { r.mutable_counts(0)->set_tokens(-5); }, "counts.tokens: -5 is not in 0 to"},
      {[](auto& r) { r.mutable_counts(0)->set_phase(v1::PHASE_UNSPECIFIED); }, "counts.phase: 0 is no phase"},
      {[](auto& r) { r.set_sequence(0); }, "report.sequence: 0 to 0; must be at least 1"},
      {[](auto& r) { r.set_first_sequence(5); }, "report.sequence: 5 to 1; must be at least 1"},
  };
  for (const auto& c : cases) {
    v1::LoadReport report = MakeReport(1, {1, 1, 1, 1});
    c.spoil(report);
    const auto counted = Report(report);
    EXPECT_EQ(counted.status().code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(counted.status().ToString(), HasSubstr(c.message));
  }
  EXPECT_EQ(group_->Report("r", 8, MakeReport(1, {1, 1, 1, 1}), now_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(group_->Describe(now_).window_tokens(), 0);
  EXPECT_EQ(*Report(MakeReport(1, {1, 1, 1, 1})), EngineGroup::Counted::kYes);
  v1::LoadReport overlap = MakeReport(3, {1, 1, 1, 1});
  overlap.set_first_sequence(1);
  EXPECT_THAT(Report(overlap).status().ToString(), HasSubstr("report.first_sequence: 1 has been counted"));
}

TEST_F(EngineGroupTest, PlansWhenThereIsEnoughAndItPays) {
  EXPECT_FALSE(PlanNow()) << "no load";
  ASSERT_TRUE(Report(MakeReport(1, {900, 50, 20, 10})).ok());
  EXPECT_FALSE(PlanNow()) << "fewer tokens than min_tokens";
  ASSERT_TRUE(Report(MakeReport(2, {90'000, 5000, 2000, 1000})).ok());
  ASSERT_TRUE(PlanNow());
  EXPECT_EQ(group_->placement().epoch(), 1u);
  // Every worker has as many slots of each layer, experts split equally, none is missing.
  std::map<std::pair<int, int>, int> slots;
  std::set<std::pair<int, int>> experts;
  for (const v1::Replica& r : group_->placement().replicas()) {
    ++slots[{r.layer(), r.worker()}];
    experts.insert({r.layer(), r.expert()});
    EXPECT_EQ(r.weight(), 1u);
  }
  for (const auto& [place, count] : slots) EXPECT_EQ(count, 3);
  EXPECT_EQ(experts.size(), static_cast<size_t>(kLayers * kExperts));
  EXPECT_GT(group_->Describe(now_).predicted_balancedness(), 0.9);
  const v1::PlanEffect first = group_->Describe(now_).effect();
  EXPECT_EQ(first.busiest_tokens_before(), 0);
  EXPECT_GE(first.busiest_tokens_after(), first.busiest_tokens_bound());
  EXPECT_GT(first.busiest_tokens_bound(), 0);
  EXPECT_FALSE(first.has_transfer_time()) << "nothing was there to move from";

  // The same load again is no reason to plan, nor is a time too short.
  now_ += absl::Seconds(31);
  ASSERT_TRUE(Report(MakeReport(3, {90'000, 5000, 2000, 1000})).ok());
  EXPECT_FALSE(PlanNow());
  Store();
  Restart();
  EXPECT_EQ(group_->placement().epoch(), 1u);
  EXPECT_EQ(group_->Describe(now_).effect().SerializeAsString(), first.SerializeAsString());
  group_->BeginStream("r", 7);
  // Another load, once the first has left the window, is.
  now_ += absl::Minutes(10);
  ASSERT_TRUE(Report(MakeReport(4, {1000, 2000, 100'000, 3000})).ok());
  ASSERT_TRUE(PlanNow());
  EXPECT_EQ(group_->placement().epoch(), 2u);
  const v1::PlanEffect second = group_->Describe(now_).effect();
  EXPECT_GT(second.gain_ratio(), 0);
  EXPECT_GT(second.gain_microseconds(), 0);
  EXPECT_GT(second.busiest_tokens_before(), second.busiest_tokens_after());
  EXPECT_GT(second.node().moves() + second.cross_node().moves() + second.checkpoint().moves(), 0);
}

TEST_F(EngineGroupTest, RecordsOfBeforePlansSaidTheirEffectLoad) {
  ASSERT_TRUE(Report(MakeReport(1, {90'000, 5000, 2000, 1000})).ok());
  ASSERT_TRUE(PlanNow());
  Store();
  const std::string key = absl::StrCat(EngineGroup::kStorePrefix, group_->engine().name());
  store::EngineRecord record;
  ASSERT_TRUE(record.ParseFromString(store_.Get(key)->value()));
  record.clear_effect();
  const StoreWrite write{key, record.SerializeAsString()};
  ASSERT_TRUE(store_.Apply(std::span(&write, 1)).ok());
  Restart();
  EXPECT_EQ(group_->placement().epoch(), 1u);
  EXPECT_FALSE(group_->Describe(now_).has_effect());
}

TEST_F(EngineGroupTest, PhasesAreScenariosOfTheirOwn) {
  ASSERT_TRUE(Report(MakeReport(1, {9000, 10, 10, 10}, v1::PHASE_PREFILL)).ok());
  ASSERT_TRUE(Report(MakeReport(2, {10, 10, 10, 9000}, v1::PHASE_DECODE)).ok());
  const auto request = group_->MaybePlan(now_);
  ASSERT_TRUE(request.has_value());
  ASSERT_EQ(request->scenarios.size(), 2u);
  EXPECT_EQ(request->scenarios[0].name, "prefill");
  EXPECT_EQ(request->scenarios[1].load.tokens[3], 9000);
  EXPECT_EQ(request->topology.workers[1].name, "gpu1");
}

TEST_F(EngineGroupTest, APlanThatFailsLeavesThePlacement) {
  ASSERT_TRUE(Report(MakeReport(1, {90'000, 5000, 2000, 1000})).ok());
  ASSERT_TRUE(group_->MaybePlan(now_).has_value());
  std::string why;
  EXPECT_FALSE(group_->Planned(absl::InternalError("broken"), now_, why));
  EXPECT_EQ(why, "broken");
  EXPECT_EQ(group_->placement().epoch(), 0u);
  now_ += absl::Seconds(31);
  EXPECT_TRUE(PlanNow());
}

TEST_F(EngineGroupTest, PlansThatDoNotPayAreMadeMoreAndMoreSeldom) {
  ASSERT_TRUE(Report(MakeReport(1, {90'000, 5000, 2000, 1000})).ok());
  ASSERT_TRUE(PlanNow());
  now_ += absl::Minutes(10);
  ASSERT_TRUE(Report(MakeReport(2, {1000, 2000, 100'000, 3000})).ok());
  std::vector<int> waited;
  absl::Time last = now_;
  const absl::Time end = now_ + absl::Seconds(240);
  for (; now_ < end; now_ += absl::Seconds(1)) {
    const auto request = group_->MaybePlan(now_);
    if (!request.has_value()) continue;
    waited.push_back(static_cast<int>((now_ - last) / absl::Seconds(1)));
    last = now_;
    absl::StatusOr<Plan> plan = MakePlan(CostAwarePolicy(0, CostAwarePolicy::Split::kEqual), *request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    plan->gate.worth = false;
    plan->gate.reason = "too dear";
    std::string why;
    EXPECT_FALSE(group_->Planned(plan, now_, why));
    EXPECT_EQ(why, "too dear");
  }
  // An interval is 30 s; the load is looked at every tenth of it.
  EXPECT_THAT(waited, ElementsAre(0, 60, 120));
}

TEST_F(EngineGroupTest, ForgetsAllOfItself) {
  ASSERT_TRUE(Report(MakeReport(1, {1, 1, 1, 1})).ok());
  Store();
  EXPECT_FALSE(store_.contents().empty());
  ASSERT_TRUE(store_.Apply(*EngineGroup::Forget("e", store_)).ok());
  EXPECT_TRUE(store_.contents().empty());
}

TEST(ValidateEngine, NamesFieldValueAndLimit) {
  EXPECT_TRUE(Validate(MakeEngine()).ok());
  const struct {
    std::function<void(v1::Engine&)> spoil;
    const char* message;
  } cases[] = {
      {[](auto& e) { e.set_name("No/Name"); }, "engine.name: 'No/Name' is not 1 to 63 characters of [a-z0-9-]"},
      {[](auto& e) { e.set_num_layers(0); }, "engine.num_layers: 0 is not in 1 to 4096"},
      {[](auto& e) { e.set_num_experts(65537); }, "engine.num_experts: 65537 is not in 1 to 65536"},
      {[](auto& e) {
         e.set_num_layers(4096);
         e.set_num_experts(65536);
       },
       "in all layers, the limit is 67108864"},
      {[](auto& e) { e.clear_workers(); }, "engine.workers: 0 is not in 1 to 65536"},
      {[](auto& e) { e.mutable_workers(1)->set_name("gpu0"); }, "engine.workers.name: 'gpu0' is given twice"},
      {[](auto& e) { e.mutable_workers(1)->set_name(""); }, "engine.workers.name: '' is not 1 to 253 characters"},
      {[](auto& e) { e.set_slots_per_layer(0); }, "engine.slots_per_layer: 0 is not in 1 to"},
      {[](auto& e) { e.set_slots_per_layer(1); }, "engine.slots_per_layer: 1 on each of 2 workers; a layer has 4"},
      {[](auto& e) { e.set_expert_bytes(-1); }, "engine.expert_bytes: -1 is not in 0 to"},
  };
  for (const auto& c : cases) {
    v1::Engine engine = MakeEngine();
    c.spoil(engine);
    EXPECT_THAT(Validate(engine).ToString(), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace ballast
