// What docs/operations.md tells operators to do, done with real processes under load: upgrade and go back one minor
// version at a time, back up the store, lose it, restore it.

#include <signal.h>
#include <sys/wait.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/version.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kTokens = 16;

// Environment that gives the programs of other_version.cc this tree's version, `minors` on.
std::map<std::string, std::string> MinorsOn(int minors) {
  const std::vector<std::string> parts = absl::StrSplit(kVersion, '.');
  int minor = 0;
  EXPECT_TRUE(absl::SimpleAtoi(parts[1], &minor));
  return {{"BALLAST_TEST_VERSION", absl::StrCat(parts[0], ".", minor + minors, ".0")}};
}

class OperationsTest : public ClusterTest {
 protected:
  static WorkerOptions Options(const std::string& name, int minors) {
    WorkerOptions options = OneOf(name, 18);
    options.environment = MinorsOn(minors);
    return options;
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

  // What holds what, whatever its number.
  static std::string Replicas(v1::Placement placement) {
    placement.clear_epoch();
    placement.clear_shares_version();
    return placement.SerializeAsString();
  }

  static void ExpectAllAnswered(const LoadGenerator& load) {
    const std::vector<Answer> answers = load.answers();
    EXPECT_FALSE(answers.empty());
    for (const Answer& answer : answers) EXPECT_TRUE(answer.status.ok()) << answer.worker << ": " << answer.status;
  }

  static void AwaitLoad(Cluster& cluster) {
    const auto group = cluster.AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.window_tokens() > 500; });
    ASSERT_TRUE(group.ok()) << group.status();
  }
};

// First the controller, then each worker in turn; and the controller back again.
TEST_F(OperationsTest, UpgradesOneMinorVersionUnderLoadAndGoesBack) {
  const auto cluster = Serving({.workers = 3,
                                .slots_per_layer = 18,
                                .worker_flags = {"--drain-timeout=600"},
                                .controller_binary = "tests/e2e/controller_of_version",
                                .worker_binary = "tests/e2e/worker_of_version"});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(100);
  LoadGenerator load(prompts, Stubs(*cluster, 3), {.concurrency = 3, .max_tokens = kTokens});
  const auto versions = [&] {
    std::string text;
    EXPECT_EQ(cluster->Ctl({"get", "workers", "--output=json"}, &text), 0) << text;
    return text;
  };
  const auto restart = [&](int minors) {
    ASSERT_TRUE(cluster->StopController().ok());
    ASSERT_TRUE(cluster->RestartController(MinorsOn(minors)).ok());
    const auto serving = cluster->AwaitServing("g", 3, kPatience);
    ASSERT_TRUE(serving.ok()) << serving.status();
  };
  restart(1);
  for (int i = 0; i < 3; ++i) {
    const std::string name = WorkerName(i);
    SCOPED_TRACE(name);
    cluster->worker(name).Signal(SIGTERM);
    ASSERT_TRUE(cluster->AwaitHealth(name, "ballast.v1.Inference", false, kPatience).ok());
    load.RemoveStub(name);
    const auto ended = cluster->worker(name).Wait(kPatience);
    ASSERT_TRUE(ended.ok()) << ended.status();
    EXPECT_TRUE(WIFEXITED(*ended) && WEXITSTATUS(*ended) == 0);
    ASSERT_TRUE(cluster->StartWorker(Options(name, 1)).ok());
    ASSERT_TRUE(cluster->AwaitServing("g", 3, kPatience).ok());
    ASSERT_TRUE(cluster->AwaitHealth(name, "ballast.v1.Inference", true, kPatience).ok());
    load.SetStub(name, cluster->inference(name));
  }
  EXPECT_THAT(versions(), HasSubstr(MinorsOn(1)["BALLAST_TEST_VERSION"]));
  restart(0);
  load.Stop();
  ExpectAllAnswered(load);

  // Two minor versions on is too far: it is told so, and the group does without it until somebody acts.
  cluster->worker("w2").Signal(SIGTERM);
  ASSERT_TRUE(cluster->worker("w2").Wait(kPatience).ok());
  ASSERT_TRUE(cluster->AwaitServing("g", 2, kPatience).ok());
  ASSERT_TRUE(cluster->StartWorker(Options("w2", 2)).ok());
  const auto refused = cluster->AwaitLog("w2", "upgrade one minor version at a time", kPatience);
  EXPECT_TRUE(refused.ok()) << refused;
  EXPECT_THAT(TailOfFile(cluster->worker("w2").log_path()),
              AllOf(HasSubstr(MinorsOn(2)["BALLAST_TEST_VERSION"]), HasSubstr("hello.version")));
  EXPECT_TRUE(cluster->worker("w2").running()) << "it tries again";
}

TEST_F(OperationsTest, ARestoredBackupGoesOnFromItsPlacement) {
  const auto cluster = Serving({.workers = 3, .slots_per_layer = 14});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(100);
  const auto expected = Digests(*cluster, "w0", prompts);
  LoadGenerator load(prompts, Stubs(*cluster, 3), {.concurrency = 3, .max_tokens = kTokens});
  AwaitLoad(*cluster);
  const auto plan = PlanAndRollOut(*cluster);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->state(), v1::PLAN_STATE_DONE) << plan->ShortDebugString();
  const v1::Placement saved = PlacementOf(*cluster);

  const std::string store = cluster->store_path();
  const std::string backup = store + ".backup";
  std::string text;
  EXPECT_EQ(cluster->Ctl({"backup", store, backup}, &text), 1) << "the controller has it open";
  EXPECT_THAT(text, HasSubstr("another process has it open"));
  ASSERT_TRUE(cluster->StopController().ok());
  EXPECT_EQ(cluster->Ctl({"backup", store, backup}, &text), 0) << text;
  ASSERT_TRUE(cluster->RestartController().ok());
  ASSERT_TRUE(cluster->AwaitServing("g", 3, kPatience).ok());

  // Life goes on past the backup, and then the store is lost.
  grpc::ClientContext context;
  v1::RollbackRequest rollback;
  rollback.set_group("g");
  v1::RollbackResponse rolled;
  const grpc::Status status = cluster->plans().Rollback(&context, rollback, &rolled);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const auto back = AwaitPlan(*cluster, rolled.plan().id());
  ASSERT_TRUE(back.ok()) << back.status();
  ASSERT_EQ(back->state(), v1::PLAN_STATE_DONE) << back->ShortDebugString();
  const v1::Placement lost = PlacementOf(*cluster);
  EXPECT_NE(Replicas(lost), Replicas(saved));
  cluster->KillController();
  for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(store + suffix);

  EXPECT_EQ(cluster->Ctl({"restore", backup, store}, &text), 0) << text;
  ASSERT_TRUE(cluster->RestartController().ok());
  const auto serving = cluster->AwaitGroup("g", kPatience, [&](const v1::Group& g) {
    return g.state() == v1::GROUP_STATE_SERVING && g.view().members_size() == 3 && g.epoch() > lost.epoch();
  });
  ASSERT_TRUE(serving.ok()) << serving.status();
  EXPECT_EQ(Replicas(PlacementOf(*cluster)), Replicas(saved));
  EXPECT_EQ(Digests(*cluster, "w0", prompts), expected);
  load.Stop();
  ExpectAllAnswered(load);
}

}  // namespace
}  // namespace ballast
