// A worker that is gone for good, through real processes: the others take over its experts with the fewest moves, and
// serve the same bits as before. While nobody has an expert, it is named.

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/test_data.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// (layer, expert).
using Experts = std::set<std::pair<int, int>>;

class HealTest : public ClusterTest {
 protected:
  // Workers are missed soon; nothing is planned for the load unless a test asks.
  static std::vector<std::string> HealsSoon() { return {"--heal-after=500ms", "--plan-below=0"}; }

  // What a single worker with all experts says.
  std::vector<std::vector<uint64_t>> SingleWorkersDigests(const std::vector<Prompt>& prompts) {
    const auto single = Serving({.workers = 1, .slots_per_layer = kExperts});
    return single == nullptr ? std::vector<std::vector<uint64_t>>() : Digests(*single, "w0", prompts);
  }

  static v1::Placement GetPlacement(Cluster& cluster) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetPlacementRequest request;
    request.set_group("g");
    v1::GetPlacementResponse response;
    const grpc::Status status = cluster.groups().GetPlacement(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.placement();
  }

  static v1::GetPlanResponse GetPlan(Cluster& cluster, const std::string& id) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetPlanRequest request;
    request.set_id(id);
    v1::GetPlanResponse response;
    const grpc::Status status = cluster.plans().GetPlan(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // Experts with replicas on `worker`, and those of them that are nowhere else.
  static void HeldBy(const v1::Placement& placement, const std::string& worker, Experts* held, Experts* alone) {
    Experts elsewhere;
    for (const v1::Replica& replica : placement.replicas()) {
      const bool here = placement.workers(replica.worker()) == worker;
      (here ? *held : elsewhere).emplace(replica.layer(), replica.expert());
    }
    for (const auto& expert : *held) {
      if (!elsewhere.contains(expert)) alone->insert(expert);
    }
  }
};

TEST_F(HealTest, SurvivorsTakeOverWhatOnlyTheDeadWorkerHad) {
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto expected = SingleWorkersDigests(prompts);
  ASSERT_FALSE(expected.empty());

  // Three workers' slots hold every expert, four workers' a good part of them twice.
  constexpr int kSlots = 12;
  const auto cluster = Serving({.workers = 4, .slots_per_layer = kSlots, .controller_flags = HealsSoon()});
  ASSERT_NE(cluster, nullptr);
  {
    LoadGenerator load(prompts, Stubs(*cluster, 4), {.concurrency = 6, .max_tokens = 16});
    const auto seen = cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.window_tokens() > 500; });
    ASSERT_TRUE(seen.ok()) << seen.status();
  }
  const auto spread = PlanAndRollOut(*cluster);
  ASSERT_TRUE(spread.ok()) << spread.status();
  ASSERT_EQ(spread->state(), v1::PLAN_STATE_DONE) << spread->ShortDebugString();
  Experts held, lost;
  HeldBy(GetPlacement(*cluster), "w3", &held, &lost);
  ASSERT_FALSE(lost.empty());
  ASSERT_LT(lost.size(), held.size()) << "some of its experts are on other workers, too";

  cluster->KillWorker("w3");
  // In mode approve the group stays like this until the plan is approved.
  const auto degraded = cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) {
    return g.state() == v1::GROUP_STATE_DEGRADED && g.view().members_size() == 3;
  });
  ASSERT_TRUE(degraded.ok()) << degraded.status();
  EXPECT_EQ(degraded->missing_total(), static_cast<int>(lost.size()));
  Experts named;
  for (const v1::ExpertRef& expert : degraded->missing()) named.emplace(expert.layer(), expert.expert());
  EXPECT_EQ(named, lost);
  int failed = 0;
  for (const Prompt& prompt : prompts) {
    const Answer answer = Generate(*cluster->inference("w0"), prompt.text, prompt.task, 1, kPatience);
    if (answer.status.ok()) continue;
    ++failed;
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable) << answer.status;
    EXPECT_THAT(std::string(answer.status.message()), AllOf(HasSubstr("layer"), HasSubstr("expert"), HasSubstr("w3")));
  }
  EXPECT_GT(failed, 0) << "no prompt needs any of " << lost.size() << " experts";

  const auto proposed =
      cluster->AwaitGroup("g", kPatience, [&](const v1::Group& g) { return g.plan() != spread->id(); });
  ASSERT_TRUE(proposed.ok()) << proposed.status();
  const v1::GetPlanResponse plan = GetPlan(*cluster, proposed->plan());
  EXPECT_EQ(plan.plan().policy(), "failure");
  EXPECT_EQ(plan.plan().state(), v1::PLAN_STATE_PROPOSED) << plan.plan().ShortDebugString();
  // The fewest there can be: one for each expert that nobody has.
  Experts moved;
  for (const v1::Move& move : plan.moves()) {
    moved.emplace(move.layer(), move.expert());
    EXPECT_NE(move.destination(), "w3");
    EXPECT_EQ(move.source(), "") << "from the checkpoint: no worker has it";
  }
  EXPECT_EQ(moved, lost);
  EXPECT_EQ(plan.plan().moves_total(), static_cast<int>(lost.size()));

  {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ApprovePlanRequest request;
    request.set_id(proposed->plan());
    v1::ApprovePlanResponse response;
    const grpc::Status status = cluster->plans().ApprovePlan(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  const auto done = AwaitPlan(*cluster, proposed->plan());
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->state(), v1::PLAN_STATE_DONE) << done->ShortDebugString();
  const auto whole = cluster->AwaitServing("g", 3, kPatience);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->missing_total(), 0);
  for (const char* worker : {"w0", "w1", "w2"}) {
    EXPECT_EQ(Digests(*cluster, worker, prompts), expected) << "asked of " << worker;
  }

  // It may come back any time: it joins with nothing to hold, and answers.
  ASSERT_TRUE(cluster->StartWorker(OneOf("w3", kSlots)).ok());
  ASSERT_TRUE(cluster->AwaitServing("g", 4, kPatience).ok());
  held.clear();
  HeldBy(GetPlacement(*cluster), "w3", &held, &lost);
  EXPECT_TRUE(held.empty());
  EXPECT_EQ(Digests(*cluster, "w3", prompts), expected);
}

TEST_F(HealTest, InModeAutoItHappensByItself) {
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto expected = SingleWorkersDigests(prompts);
  ASSERT_FALSE(expected.empty());
  // Every expert is on one worker; the slots of three are just enough.
  const auto cluster = Serving({.workers = 4, .mode = "auto", .slots_per_layer = 11, .controller_flags = HealsSoon()});
  ASSERT_NE(cluster, nullptr);
  LoadGenerator load(prompts, {{"w0", cluster->inference("w0")}}, {.concurrency = 2, .max_tokens = 8});
  cluster->KillWorker("w2");
  const auto whole = cluster->AwaitServing("g", 3, kPatience);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const v1::GetPlanResponse plan = GetPlan(*cluster, whole->plan());
  EXPECT_EQ(plan.plan().policy(), "failure");
  EXPECT_EQ(plan.plan().moves_total(), kLayers * kExperts / 4);
  load.Stop();
  for (const Answer& a : load.answers()) {
    EXPECT_TRUE(a.status.ok() || absl::IsUnavailable(a.status)) << a.status;
  }
  for (const char* worker : {"w0", "w1", "w3"}) {
    EXPECT_EQ(Digests(*cluster, worker, prompts), expected) << "asked of " << worker;
  }
}

TEST_F(HealTest, WithoutRoomTheControllerSaysSoAndNothingMoves) {
  constexpr int kSlots = kExperts / 4;
  const auto cluster =
      Serving({.workers = 4, .mode = "auto", .slots_per_layer = kSlots, .controller_flags = HealsSoon()});
  ASSERT_NE(cluster, nullptr);
  // From before the kill, so that no event is missed.
  grpc::ClientContext context;
  SetDeadline(context);
  v1::WatchGroupRequest request;
  request.set_group("g");
  const auto watch = cluster->groups().WatchGroup(&context, request);
  v1::WatchGroupResponse response;
  ASSERT_TRUE(watch->Read(&response));
  const uint64_t epoch = response.group().epoch();

  cluster->KillWorker("w1");
  std::string said;
  while (said.empty() && watch->Read(&response)) {
    for (const v1::Event& event : response.events()) {
      if (event.text().find("no slot left") != std::string::npos) said = event.text();
    }
  }
  context.TryCancel();
  EXPECT_THAT(said, AllOf(HasSubstr(absl::StrCat(kLayers * kSlots, " experts")), HasSubstr("layer 0, expert 8")));
  EXPECT_EQ(response.group().epoch(), epoch);
  EXPECT_EQ(response.group().state(), v1::GROUP_STATE_DEGRADED);
  EXPECT_EQ(response.group().missing_total(), kLayers * kSlots);

  ASSERT_TRUE(cluster->StartWorker(OneOf("w1", kSlots)).ok());
  const auto serving = cluster->AwaitServing("g", 4, kPatience);
  ASSERT_TRUE(serving.ok()) << serving.status();
}

}  // namespace
}  // namespace ballast
