// Workers that are told to go, through real processes: what they hold is somewhere else before they are gone, and no
// request notices.

#include <signal.h>
#include <sys/wait.h>

#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/test_certificates.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The service of the readiness probe.
constexpr char kReadiness[] = "ballast.v1.Inference";

class DrainTest : public ClusterTest {
 protected:
  // Three workers' slots hold every expert.
  static constexpr int kSlots = 12;
  static constexpr int kTokens = 24;

  // So long that only a hang meets it.
  static std::string LongDrain() { return "--drain-timeout=600"; }

  static std::map<std::string, v1::Worker> Workers(Cluster& cluster) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ListWorkersRequest request;
    request.set_group("g");
    v1::ListWorkersResponse response;
    const grpc::Status status = cluster.groups().ListWorkers(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::map<std::string, v1::Worker> workers;
    for (const v1::Worker& worker : response.workers()) workers[worker.name()] = worker;
    return workers;
  }

  // A request for each prompt on one worker, one after the other: what every answer has to be.
  static std::vector<std::vector<int32_t>> Answers(Cluster& cluster, const std::vector<Prompt>& prompts) {
    std::vector<std::vector<int32_t>> answers;
    const auto stub = cluster.inference("w0");
    for (const Prompt& prompt : prompts) {
      const Answer answer = Generate(*stub, prompt.text, prompt.task, kTokens, kPatience);
      EXPECT_TRUE(answer.status.ok()) << answer.status;
      answers.push_back(answer.token_ids);
    }
    return answers;
  }

  // 0: the process ended by itself, well.
  static int ExitOf(Cluster& cluster, const std::string& worker) {
    const auto status = cluster.worker(worker).Wait(kPatience);
    EXPECT_TRUE(status.ok()) << status.status() << TailOfFile(cluster.worker(worker).log_path());
    return status.ok() && WIFEXITED(*status) ? WEXITSTATUS(*status) : -1;
  }
};

// As Kubernetes does it: a worker is told to stop, is taken out of the service when it is not ready any more, ends, and
// is put back when its successor is ready. Clients ask whoever is in the service.
TEST_F(DrainTest, RestartOfEveryWorkerInTurnLosesNoRequestAndChangesNoToken) {
  const auto cluster = Serving(
      {.workers = 4,
       .mode = "auto",
       .policy = "cost-aware",
       .slots_per_layer = kSlots,
       .controller_flags = {"--planning-interval=1s", "--min-tokens=200", "--load-window=1m", "--abort-hold-off=1s"},
       .worker_flags = {LongDrain()}});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(100);
  const auto expected = Answers(*cluster, prompts);
  LoadGenerator load(prompts, Stubs(*cluster, 4), {.concurrency = 4, .max_tokens = kTokens});
  uint64_t epoch = 0;
  const absl::Time start = Clock::Real().Now();
  for (int i = 0; i < 4; ++i) {
    const std::string name = WorkerName(i);
    SCOPED_TRACE(name);
    const absl::Time told = Clock::Real().Now();
    cluster->worker(name).Signal(SIGTERM);
    ASSERT_TRUE(cluster->AwaitHealth(name, kReadiness, false, kPatience).ok());
    load.RemoveStub(name);
    // It may have ended by now, or is still alive: only that is the probe of liveness.
    EXPECT_EQ(ExitOf(*cluster, name), 0);
    const absl::Time gone = Clock::Real().Now();
    const auto left = cluster->AwaitServing("g", 3, kPatience);
    ASSERT_TRUE(left.ok()) << left.status();
    EXPECT_GT(left->epoch(), epoch);
    epoch = left->epoch();

    ASSERT_TRUE(cluster->StartWorker(OneOf(name, kSlots)).ok());
    ASSERT_TRUE(cluster->AwaitServing("g", 4, kPatience).ok());
    ASSERT_TRUE(cluster->AwaitHealth(name, kReadiness, true, kPatience).ok());
    load.SetStub(name, cluster->inference(name));
    const absl::Time back = Clock::Real().Now();
    // A plan gives it its part again.
    const auto used =
        cluster->AwaitGroup("g", kPatience, [&](const v1::Group&) { return Workers(*cluster)[name].slots_used() > 0; });
    ASSERT_TRUE(used.ok()) << used.status();
    std::cout << name << ": drained and gone after " << gone - told << ", ready again after " << back - gone
              << ", with load after " << Clock::Real().Now() - back << "\n";
  }
  const absl::Duration took = Clock::Real().Now() - start;
  load.Stop();
  const std::vector<Answer> answers = load.answers();
  int failed = 0;
  for (const Answer& answer : answers) {
    failed += !answer.status.ok();
    EXPECT_TRUE(answer.status.ok()) << answer.worker << ": " << answer.status;
    if (answer.status.ok()) {
      EXPECT_EQ(answer.token_ids, expected[answer.prompt]) << answer.worker;
    }
  }
  std::cout << "four workers restarted in " << took << ": " << answers.size() << " requests, " << failed << " failed\n";
}

TEST_F(DrainTest, WithoutRoomElsewhereAWorkerSaysSoAndLeaves) {
  const auto cluster = Serving({.workers = 2, .slots_per_layer = kExperts / 2, .worker_flags = {LongDrain()}});
  ASSERT_NE(cluster, nullptr);
  cluster->worker("w1").Signal(SIGTERM);
  EXPECT_EQ(ExitOf(*cluster, "w1"), 0);
  EXPECT_THAT(TailOfFile(cluster->worker("w1").log_path()),
              AllOf(HasSubstr("DRAIN_STATE_STUCK"), HasSubstr("no slot left")));
  const auto degraded =
      cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.view().members_size() == 1; });
  ASSERT_TRUE(degraded.ok()) << degraded.status();
  EXPECT_EQ(degraded->missing_total(), kLayers * kExperts / 2);
}

TEST_F(DrainTest, AControllerThatDiesMeanwhileGoesOn) {
  const auto cluster = Serving({.workers = 4,
                                .slots_per_layer = kSlots,
                                .controller_flags = {"--max-bytes-per-second=1000000"},
                                .worker_flags = {LongDrain()}});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(100);
  const auto expected = Answers(*cluster, prompts);
  auto stubs = Stubs(*cluster, 4);
  stubs.erase("w3");
  LoadGenerator load(prompts, std::move(stubs), {.concurrency = 4, .max_tokens = kTokens});
  const auto before = cluster->AwaitServing("g", 4, kPatience);
  ASSERT_TRUE(before.ok()) << before.status();
  cluster->worker("w3").Signal(SIGTERM);
  const auto begun = cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) { return !g.plan().empty(); });
  ASSERT_TRUE(begun.ok()) << begun.status();
  cluster->KillController();
  ASSERT_TRUE(cluster->RestartController().ok());
  EXPECT_EQ(ExitOf(*cluster, "w3"), 0);
  const auto left = cluster->AwaitServing("g", 3, kPatience);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_GT(left->epoch(), before->epoch());
  load.Stop();
  for (const Answer& answer : load.answers()) {
    EXPECT_TRUE(answer.status.ok()) << answer.worker << ": " << answer.status;
    EXPECT_EQ(answer.token_ids, expected[answer.prompt]) << answer.worker;
  }
}

// With ballastctl, as an operator and as a kubelet's exec probe, over mutual TLS.
TEST_F(DrainTest, AnOperatorDrainsAndUndrains) {
  const TestAuthority authority("ours");
  const TlsFiles files = authority.Issue(::testing::TempDir() + "/cluster");
  const auto cluster = Serving({.workers = 4, .slots_per_layer = kSlots, .worker_flags = {LongDrain()}, .tls = files});
  ASSERT_NE(cluster, nullptr);
  std::string text;
  const auto ctl = [&](std::vector<std::string> arguments) { return cluster->Ctl(std::move(arguments), &text); };
  const std::string address = cluster->worker_address("w1");
  ASSERT_TRUE(cluster->AwaitHealth("w1", kReadiness, true, kPatience).ok());
  EXPECT_EQ(ctl({"health", address}), 0) << text;
  EXPECT_EQ(ctl({"health", address, "--service=ballast.v1.Inference"}), 0) << text;
  EXPECT_EQ(ctl({"health", cluster->controller_address(), "--service=ballast.v1.GroupService"}), 0) << text;

  EXPECT_EQ(ctl({"drain", "w1", "--wait"}), 0) << text;
  EXPECT_THAT(text, HasSubstr("worker w1: empty, 0 replicas left"));
  EXPECT_EQ(ctl({"get", "workers"}), 0) << text;
  EXPECT_THAT(text, HasSubstr("empty"));
  ASSERT_TRUE(cluster->AwaitHealth("w1", kReadiness, false, kPatience).ok());
  EXPECT_EQ(ctl({"health", address, "--service=ballast.v1.Inference"}), 1) << text;
  EXPECT_THAT(text, HasSubstr("NOT_SERVING"));
  EXPECT_EQ(ctl({"health", address}), 0) << "alive: " << text;
  // Whoever asks it all the same is answered, by another.
  const Prompt prompt = SomePrompts(100).front();
  const Answer answer = Generate(*cluster->inference("w1"), prompt.text, prompt.task, 4, kPatience);
  EXPECT_TRUE(answer.status.ok()) << answer.status;

  EXPECT_EQ(ctl({"drain", "w2", "--wait"}), 1) << "two workers do not hold everything";
  EXPECT_THAT(text, AllOf(HasSubstr("stuck"), HasSubstr("no slot left")));
  EXPECT_EQ(ctl({"undrain", "w2"}), 0) << text;
  EXPECT_EQ(ctl({"undrain", "w1"}), 0) << text;
  EXPECT_THAT(text, HasSubstr("worker w1: in use"));
  ASSERT_TRUE(cluster->AwaitHealth("w1", kReadiness, true, kPatience).ok());
}

}  // namespace
}  // namespace ballast
