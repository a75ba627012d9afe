// Requests find the homes of their tasks, through real processes: a live task-aware plan says where they are, workers
// hand requests there, and nobody can tell from an answer.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
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

  // Serves `prompts` until the window has enough of each task to plan from, and rolls the plan out.
  static absl::StatusOr<v1::Plan> Plan(Cluster& cluster, int workers, const std::vector<Prompt>& prompts) {
    {
      LoadGenerator load(prompts, Stubs(cluster, workers), {.concurrency = 8, .max_tokens = 8});
      const auto loaded =
          cluster.AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.window_tokens() > 2000; });
      EXPECT_TRUE(loaded.ok()) << loaded.status();
    }
    auto plan = PlanAndRollOut(cluster);
    EXPECT_TRUE(plan.ok()) << plan.status();
    if (plan.ok()) {
      EXPECT_EQ(plan->state(), v1::PLAN_STATE_DONE) << plan->ShortDebugString();
    }
    return plan;
  }

  static v1::Placement PlacementOf(Cluster& cluster) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetPlacementRequest request;
    request.set_group("g");
    v1::GetPlacementResponse response;
    const grpc::Status status = cluster.groups().GetPlacement(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.placement();
  }

  // The homes by task.
  static std::map<std::string, std::set<std::string>> PlanHomes(Cluster& cluster, int workers,
                                                                const std::vector<Prompt>& prompts) {
    if (!Plan(cluster, workers, prompts).ok()) return {};
    const v1::Placement placement = PlacementOf(cluster);
    std::map<std::string, std::set<std::string>> homes;
    for (const v1::TaskHomes& task : placement.task_homes()) {
      for (const v1::TaskHome& home : task.homes()) homes[task.task()].insert(placement.workers(home.worker()));
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

  // Clients that follow redirects get the same tokens, some from other workers than the one that they asked.
  LoadGenerator load(prompts, Stubs(*cluster, kWorkers),
                     {.concurrency = 2, .max_tokens = 12, .timeout = kPatience, .follow_redirects = true});
  const auto followed = [&] {
    double sum = 0;
    for (int w = 0; w < kWorkers; ++w) sum += Routed(*cluster, WorkerName(w), "home", "redirected");
    return sum;
  };
  const auto enough = cluster->AwaitGroup("g", kPatience, [&](const v1::Group&) { return followed() >= 4; });
  EXPECT_TRUE(enough.ok()) << enough.status();
  load.Stop();
  for (const Answer& answer : load.answers()) {
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.token_ids, tokens[answer.prompt]);
  }
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

// What ballastctl says of a group that is grouped by task: why each replica of an expert is where it is, and how far
// each task's tokens would travel with a plan made from routes that a worker recorded.
TEST_F(HomesTest, CtlSaysWhyExpertsLiveWhereTheyDo_AndScoresByTask) {
  constexpr int kWorkers = 2;
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto cluster = Serving(TaskAware(kWorkers, 20));
  ASSERT_NE(cluster, nullptr);
  const auto plan = Plan(*cluster, kWorkers, prompts);
  ASSERT_TRUE(plan.ok());
  const v1::Placement placement = PlacementOf(*cluster);
  // By layer and expert: the workers.
  std::map<std::pair<int, int>, std::set<std::string>> holders;
  for (const v1::Replica& r : placement.replicas()) {
    holders[{r.layer(), r.expert()}].insert(placement.workers(r.worker()));
  }
  ASSERT_EQ(holders.size(), static_cast<size_t>(kLayers * kExperts));
  grpc::ClientContext context;
  SetDeadline(context);
  v1::GetPlanRequest request;
  request.set_id(plan->id());
  v1::GetPlanResponse response;
  const grpc::Status status = cluster->plans().GetPlan(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  // One that moves and whose tokens are of tasks, one on one worker alone, one on both. An expert that nobody chose
  // among the sampled tokens is of no task.
  const auto moved = std::find_if(response.reasons().begin(), response.reasons().end(),
                                  [](const v1::ReplicaReason& r) { return r.moved() && r.tasks_size() > 0; });
  ASSERT_NE(moved, response.reasons().end()) << response.ShortDebugString();
  std::vector<std::pair<int, int>> experts = {{moved->layer(), moved->expert()}};
  for (const size_t replicas : {1, 2}) {
    const auto found =
        std::find_if(holders.begin(), holders.end(), [&](const auto& h) { return h.second.size() == replicas; });
    ASSERT_NE(found, holders.end());
    experts.push_back(found->first);
  }
  std::string text;
  for (const auto& [layer, expert] : experts) {
    ASSERT_EQ(cluster->Ctl({"describe", "plan", plan->id(), absl::StrCat("--expert=", layer, "/", expert)}, &text), 0)
        << text;
    const std::set<std::string>& workers = holders[{layer, expert}];
    const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipWhitespace());
    std::set<std::string> said;
    for (const std::string& line : lines) {
      for (const std::string& worker : workers) {
        for (const char* how : {"is on", "moves to"}) {
          const std::string start = absl::StrCat("  layer ", layer, " expert ", expert, " ", how, " ", worker, ",");
          if (absl::StartsWith(line, start)) said.insert(worker);
        }
      }
      EXPECT_TRUE(absl::EndsWith(line, " hops a token")) << line;
    }
    EXPECT_EQ(lines.size(), workers.size()) << text;
    EXPECT_EQ(said, workers) << text;
    if (std::pair(layer, expert) == experts[0]) {
      EXPECT_TRUE(absl::StrContains(text, "moves to")) << text;
      EXPECT_TRUE(absl::StrContains(text, "; they are of ")) << text;
    }
  }
  EXPECT_NE(cluster->Ctl({"describe", "plan", plan->id(), "--expert=0/32"}, &text), 0) << text;
  EXPECT_TRUE(absl::StrContains(text, "32")) << text;

  std::vector<std::string> score = {"score", absl::StrCat("--plan=", ::testing::TempDir(), "/plan.json")};
  std::vector<std::string> make = {"plan", "--policy=task-aware", "--gpus=2", "--slots-per-gpu=20",
                                   absl::StrCat("--out=", ::testing::TempDir(), "/plan.json")};
  const std::string de = ::testing::TempDir() + "/de.csv.gz", python = ::testing::TempDir() + "/python.csv.gz";
  for (const auto& [task, file] : {std::pair("de", de), std::pair("python", python)}) {
    ASSERT_EQ(cluster->Ctl({"trace", "record", absl::StrCat("--worker=", cluster->worker_address("w0")),
                            "--prompts=testdata/prompts.jsonl", absl::StrCat("--task=", task), "--max-tokens=400",
                            "--max-prompt-bytes=200", "--timeout=600", absl::StrCat("--out=", file)},
                           &text),
              0)
        << text;
    score.push_back(absl::StrCat("--load=", file));
    make.push_back(absl::StrCat("--scenario=", task, "=", file));
  }
  ASSERT_EQ(cluster->Ctl(make, &text), 0) << text;
  ASSERT_EQ(cluster->Ctl(score, &text), 0) << text;
  // The mix and each task, which has its file's name: "NAME: HOPS hops a token; ...".
  std::map<std::string, double> hops;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(": ", 1));
    double value = 0;
    if (parts.size() == 2 && absl::StrContains(parts[1], " hops a token") &&
        absl::SimpleAtod(parts[1].substr(0, parts[1].find(' ')), &value)) {
      hops[parts[0]] = value;
    }
  }
  ASSERT_EQ(hops.size(), 3u) << text;
  // Over 6 layers a token makes at most one hop in each, on two workers; tasks count the same.
  for (const auto& [name, value] : hops) {
    EXPECT_GT(value, 0) << name;
    EXPECT_LT(value, kLayers) << name;
  }
  // Printed to two digits.
  EXPECT_NEAR(hops["tasks, each counting the same"], (hops[de] + hops[python]) / 2, .011) << text;
}

}  // namespace
}  // namespace ballast
