// Requests find the homes of their tasks, through real processes: a live task-aware plan says where they are, workers
// hand requests there, and nobody can tell from an answer.

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "tests/cluster/metrics.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

class HomesTest : public ClusterTest {
 protected:
  static Shape TaskAware(int workers, int slots_per_layer) {
    return {.workers = workers, .policy = "task-aware", .slots_per_layer = slots_per_layer};
  }

  // Serves `prompts` until the window has enough of each task to plan from, and rolls the plan out. The homes by task.
  static std::map<std::string, std::set<std::string>> PlanHomes(Cluster& cluster, int workers,
                                                                const std::vector<Prompt>& prompts) {
    {
      LoadGenerator load(prompts, Stubs(cluster, workers), {.concurrency = 8, .max_tokens = 8});
      const auto loaded =
          cluster.AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.window_tokens() > 2000; });
      EXPECT_TRUE(loaded.ok()) << loaded.status();
    }
    const auto plan = PlanAndRollOut(cluster);
    EXPECT_TRUE(plan.ok()) << plan.status();
    if (!plan.ok()) return {};
    EXPECT_EQ(plan->state(), v1::PLAN_STATE_DONE) << plan->ShortDebugString();
    grpc::ClientContext context;
    v1::GetPlacementRequest request;
    request.set_group("g");
    v1::GetPlacementResponse response;
    const grpc::Status status = cluster.groups().GetPlacement(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::map<std::string, std::set<std::string>> homes;
    for (const v1::TaskHomes& task : response.placement().task_homes()) {
      for (const v1::TaskHome& home : task.homes()) {
        homes[task.task()].insert(response.placement().workers(home.worker()));
      }
    }
    return homes;
  }

  // The tokens that `worker` answers each prompt with; as many as succeeded before the first that failed.
  static std::vector<std::vector<int32_t>> Answers(Cluster& cluster, const std::string& worker,
                                                   const std::vector<Prompt>& prompts) {
    std::vector<std::vector<int32_t>> tokens;
    const auto stub = cluster.inference(worker);
    for (const Prompt& prompt : prompts) {
      const Answer answer = Generate(*stub, prompt.text, prompt.task, 12, kPatience);
      EXPECT_TRUE(answer.status.ok()) << answer.status;
      if (!answer.status.ok()) break;
      tokens.push_back(answer.token_ids);
    }
    return tokens;
  }

  // Requests that `worker` was asked for and sent on `route`, with this result.
  static double Routed(Cluster& cluster, const std::string& worker, const std::string& route,
                       const std::string& result) {
    const auto metrics = ReadMetrics(cluster.worker_metrics_address(worker));
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    if (!metrics.ok()) return 0;
    return SumOf(*metrics, "ballast_requests_routed_total",
                 {absl::StrCat("route=\"", route, "\""), absl::StrCat("result=\"", result, "\"")});
  }
};

TEST_F(HomesTest, HomesAnswerForTheWorkersThatWereAsked) {
  constexpr int kWorkers = 4;
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto cluster = Serving(TaskAware(kWorkers, 10));
  ASSERT_NE(cluster, nullptr);
  // Without homes: every worker runs what it is asked.
  const auto expected = Digests(*cluster, WorkerName(0), prompts);
  const auto tokens = Answers(*cluster, WorkerName(0), prompts);
  ASSERT_EQ(tokens.size(), prompts.size());
  for (const char* route : {"here", "home", "spilled_here", "spilled"}) {
    EXPECT_EQ(Routed(*cluster, WorkerName(0), route, "OK"), 0) << route;
  }

  const auto homes = PlanHomes(*cluster, kWorkers, prompts);
  ASSERT_FALSE(homes.empty());
  for (int w = 0; w < kWorkers; ++w) {
    SCOPED_TRACE(absl::StrCat("asked of ", WorkerName(w)));
    EXPECT_EQ(Digests(*cluster, WorkerName(w), prompts), expected);
    EXPECT_EQ(Answers(*cluster, WorkerName(w), prompts), tokens);
  }
  // Some were run by other workers than the one that was asked, which counts them.
  double counted = 0, handed = 0;
  for (int w = 0; w < kWorkers; ++w) {
    for (const char* route : {"here", "home", "spilled_here", "spilled"}) {
      const double ok = Routed(*cluster, WorkerName(w), route, "OK");
      counted += ok;
      if (std::string(route) == "home" || std::string(route) == "spilled") handed += ok;
    }
  }
  EXPECT_GT(counted, 0);
  EXPECT_GT(handed, 0);
}

TEST_F(HomesTest, ADeadHomeCostsNoRequestItsAnswer) {
  constexpr int kWorkers = 3;
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto cluster = Serving(TaskAware(kWorkers, kExperts));
  ASSERT_NE(cluster, nullptr);
  const auto tokens = Answers(*cluster, WorkerName(0), prompts);
  ASSERT_EQ(tokens.size(), prompts.size());
  const auto homes = PlanHomes(*cluster, kWorkers, prompts);
  ASSERT_FALSE(homes.empty());
  // Not the leader, so that something stays that can be asked about any moment.
  cluster->KillWorker(WorkerName(2));
  int answered = 0;
  const auto stub = cluster->inference(WorkerName(1));
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      const Answer answer = Generate(*stub, prompts[i].text, prompts[i].task, 12, kPatience);
      if (answer.status.ok()) {
        EXPECT_EQ(answer.token_ids, tokens[i]) << "prompt " << i;
        ++answered;
      } else {
        // Only for want of an expert, never for want of the home.
        EXPECT_TRUE(absl::IsUnavailable(answer.status)) << answer.status;
      }
    }
    // In the second round the view is without it.
    if (round == 0) {
      const auto view =
          cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.view().members_size() == 2; });
      ASSERT_TRUE(view.ok()) << view.status();
    }
  }
  EXPECT_GT(answered, 0);
}

}  // namespace
}  // namespace ballast
