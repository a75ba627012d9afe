// Invariant 4 through real processes: in exact mode logits are the same bits for any number of workers, and before,
// during and after rollouts.

#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/test_data.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

class ExactTest : public ClusterTest {};

TEST_F(ExactTest, LogitsAreTheSameBitsForOneTwoAndFourWorkers) {
  const std::vector<Prompt> prompts = SomePrompts();
  std::vector<std::vector<uint64_t>> expected;
  for (const int workers : {1, 2, 4}) {
    SCOPED_TRACE(absl::StrCat(workers, " workers"));
    const auto cluster = Serving({.workers = workers, .slots_per_layer = kExperts / workers + 2});
    ASSERT_NE(cluster, nullptr);
    for (int w = 0; w < workers; ++w) {
      const auto digests = Digests(*cluster, WorkerName(w), prompts);
      if (expected.empty()) {
        expected = digests;
        // A digest that says nothing would make every comparison pass.
        ASSERT_GT(expected[0].size(), 10u);
        ASSERT_NE(expected[0][0], expected[0][1]);
      }
      EXPECT_EQ(digests, expected) << "asked of worker " << w;
    }
  }
}

TEST_F(ExactTest, RolloutsUnderLoadChangeNoBit) {
  // LONG=1 is the fifty; the short form proves the same on fewer.
  const int rollouts = RunsLong() ? 50 : 10;
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto cluster = Serving({.workers = 4});
  ASSERT_NE(cluster, nullptr);
  const auto expected = Digests(*cluster, WorkerName(0), prompts);

  LoadGenerator load(prompts, Stubs(*cluster, 4), {.concurrency = 8, .max_tokens = 16});
  absl::StatusOr<v1::Plan> first = absl::UnknownError("");
  // The load that a plan needs arrives with the workers' next reports.
  ASSERT_TRUE(cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.window_tokens() > 500; }).ok());
  first = PlanAndRollOut(*cluster);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_EQ(first->state(), v1::PLAN_STATE_DONE) << first->ShortDebugString();
  EXPECT_GT(first->moves_done(), 0);

  uint64_t epoch = first->target_epoch();
  for (int i = 1; i < rollouts; ++i) {
    grpc::ClientContext context;
    v1::RollbackRequest request;
    request.set_group("g");
    request.set_reason("back and forth");
    v1::RollbackResponse response;
    const grpc::Status status = cluster->plans().Rollback(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    const auto plan = AwaitPlan(*cluster, response.plan().id());
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_EQ(plan->state(), v1::PLAN_STATE_DONE) << plan->ShortDebugString();
    EXPECT_GT(plan->target_epoch(), epoch);
    epoch = plan->target_epoch();
    EXPECT_EQ(Digests(*cluster, WorkerName(i % 4), prompts), expected) << "after rollout " << i;
  }
  load.Stop();
  EXPECT_GT(load.totals().requests, 0);
  std::map<int, std::vector<int32_t>> by_prompt;
  for (const Answer& a : load.answers()) {
    ASSERT_TRUE(a.status.ok()) << a.status;
    const auto [it, fresh] = by_prompt.emplace(a.prompt, a.token_ids);
    EXPECT_EQ(it->second, a.token_ids) << "prompt " << a.prompt << " answered twice, differently";
  }
}

}  // namespace
}  // namespace ballast
