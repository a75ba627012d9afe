// One worker as a whole, under a controller that the test plays.
#include "worker/daemon/worker.h"

#include <atomic>
#include <fstream>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/health_client.h"
#include "proto/placement/convert.h"
#include "worker/session/fake_controller.h"

namespace ballast {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Le;

constexpr int kLayers = 6;
constexpr int kExperts = 32;

// Every expert in the slot of its number, plus `first_slot`.
v1::Placement AllExperts(uint64_t epoch, int first_slot = 0) {
  Placement placement{.epoch = Epoch(epoch),
                      .shares_version = SharesVersion(1),
                      .num_layers = kLayers,
                      .num_experts = kExperts,
                      .workers = {"w0"}};
  for (int i = 0; i < kLayers * kExperts; ++i) {
    placement.replicas.push_back({.expert = {i / kExperts, i % kExperts}, .slot = first_slot + i});
  }
  return ToProto(placement);
}

class WorkerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WorkerConfig config{.model = "testdata/olmoe-9m",
                        .controller = controller_.address(),
                        .name = "w0",
                        .group = "g",
                        .listen = "127.0.0.1:0",
                        .metrics_listen = "127.0.0.1:0",
                        .data_listen = "127.0.0.1:0",
                        .slots = kLayers * kExperts + 2,
                        .combine = "exact",
                        .compute_threads = 1,
                        .capacity = 32,
                        .kv_blocks = 256,
                        .max_running = 16,
                        .drain_timeout_seconds = 3600};
    ASSERT_EQ(FinishConfig(config, "host", 1), absl::OkStatus());
    auto worker = Worker::Start(config, [](const absl::Status&) {});
    ASSERT_EQ(worker.status(), absl::OkStatus());
    worker_ = *std::move(worker);
    const auto channel = grpc::CreateChannel(worker_->addresses().serving, grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel);
  }

  // Welcomes the worker, gives it every expert, and makes it a group of one.
  void Form() {
    v1::Welcome welcome;
    welcome.set_term(1);
    welcome.set_incarnation(5);
    welcome.mutable_lease()->set_seconds(60);
    welcome.mutable_heartbeat_interval()->set_seconds(1);
    welcome.mutable_report_interval()->set_nanos(50'000'000);
    const auto hello = controller_.Greet(welcome);
    ASSERT_TRUE(hello.has_value());
    EXPECT_EQ(hello->model().num_experts(), kExperts);
    EXPECT_EQ(hello->slots(), kLayers * kExperts + 2);
    EXPECT_EQ(hello->data_address(), worker_->addresses().data);
    v1::ConnectResponse load;
    load.mutable_load_placement()->set_term(1);
    load.mutable_load_placement()->set_group("g");
    *load.mutable_load_placement()->mutable_placement() = AllExperts(1);
    controller_.Send(load);
    const auto loaded = controller_.Await([](const v1::ConnectRequest& m) { return m.has_placement_loaded(); });
    ASSERT_TRUE(loaded.has_value());
    ASSERT_EQ(loaded->placement_loaded().error(), "");
    v1::ConnectResponse install;
    install.mutable_install_view()->set_term(1);
    install.mutable_install_view()->set_group("g");
    install.mutable_install_view()->mutable_view()->set_view(1);
    v1::Member& member = *install.mutable_install_view()->mutable_view()->add_members();
    member.set_worker("w0");
    member.set_incarnation(5);
    member.set_data_address(hello->data_address());
    *install.mutable_install_view()->mutable_placement() = AllExperts(1);
    controller_.Send(install);
    const auto installed = controller_.Await([](const v1::ConnectRequest& m) { return m.has_view_installed(); });
    ASSERT_TRUE(installed.has_value());
    ASSERT_EQ(installed->view_installed().error(), "");
  }

  grpc::Status Generate(const v1::GenerateRequest& request, v1::GenerateResponse& all) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      all.set_text(all.text() + message.text());
      all.mutable_token_ids()->MergeFrom(message.token_ids());
      all.mutable_logprobs()->MergeFrom(message.logprobs());
      if (message.has_finish()) *all.mutable_finish() = message.finish();
    }
    return reader->Finish();
  }

  v1::GenerateRequest Prompt(int max_tokens) {
    v1::GenerateRequest request;
    request.set_text("The quick brown fox");
    request.set_task("test");
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    return request;
  }

  void SendDrain(v1::DrainState state) {
    v1::ConnectResponse message;
    message.mutable_drain_status()->set_term(1);
    message.mutable_drain_status()->set_group("g");
    message.mutable_drain_status()->set_state(state);
    ASSERT_TRUE(controller_.Send(message));
  }

  // Of the readiness probe.
  absl::Status Ready() {
    return CheckHealth(grpc::CreateChannel(worker_->addresses().serving, grpc::InsecureChannelCredentials()),
                       "ballast.v1.Inference", Clock::Real().Now() + absl::Minutes(1));
  }
  void AwaitReady(bool ready) {
    while (Ready().ok() != ready) std::this_thread::yield();
  }

  FakeController controller_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(WorkerTest, WithoutAGroup_RequestsAreUnavailable) {
  v1::GenerateResponse answer;
  const grpc::Status status = Generate(Prompt(3), answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("no view"));
}

TEST_F(WorkerTest, GeneratesAndScoresAlike) {
  Form();
  v1::GenerateRequest request = Prompt(40);
  request.set_logprobs(true);
  v1::GenerateResponse answer;
  ASSERT_TRUE(Generate(request, answer).ok());
  ASSERT_EQ(answer.token_ids_size(), 40);
  EXPECT_EQ(answer.finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.finish().generated_tokens(), 40);
  EXPECT_THAT(answer.logprobs(), Each(Le(0)));
  EXPECT_FALSE(answer.text().empty());

  // Scored, each token of the greedy answer is the most likely one after those before it, with the same probability.
  v1::ScoreRequest score;
  score.set_text(request.text());
  v1::ScoreResponse scored;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Score(&context, score, &scored).ok());
  }
  const int prompt = scored.token_ids_size();
  EXPECT_EQ(prompt, answer.finish().prompt_tokens());
  *score.mutable_token_ids()->mutable_ids() = scored.token_ids();
  score.mutable_token_ids()->mutable_ids()->MergeFrom(answer.token_ids());
  score.set_logits_digest(true);
  score.set_expert_routes(true);
  scored.Clear();
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Score(&context, score, &scored).ok());
  }
  ASSERT_EQ(scored.argmax_size(), prompt + 40);
  ASSERT_EQ(scored.logprobs_size(), prompt + 39);
  ASSERT_EQ(scored.logits_digests_size(), prompt + 40);
  // Each token chooses four experts, all different, in each layer.
  EXPECT_EQ(scored.expert_routes().moe_layers(), kLayers);
  ASSERT_EQ(scored.expert_routes().experts_per_token(), 4);
  ASSERT_EQ(scored.expert_routes().experts_size(), (prompt + 40) * kLayers * 4);
  for (int i = 0; i < scored.expert_routes().experts_size(); i += 4) {
    const auto chosen = scored.expert_routes().experts().begin() + i;
    EXPECT_EQ(std::set<int32_t>(chosen, chosen + 4).size(), 4u);
    EXPECT_TRUE(*chosen >= 0 && *chosen < kExperts);
  }
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(scored.argmax(prompt + i - 1), answer.token_ids(i)) << i;
    EXPECT_EQ(scored.logprobs(prompt + i - 1), answer.logprobs(i)) << i;
  }

  // The tokens were reported, each once.
  int64_t prefill = 0, decode = 0;
  const absl::Time deadline = Clock::Real().Now() + absl::Seconds(30);
  while (prefill + decode < 3 * prompt + 79 && Clock::Real().Now() < deadline) {
    controller_.Await([](const v1::ConnectRequest&) { return true; }, absl::Milliseconds(20));
    prefill = decode = 0;
    for (const v1::LoadReport& report : controller_.reports()) {
      for (const v1::TaskTokens& task : report.task_tokens()) {
        prefill += task.prefill_tokens();
        decode += task.decode_tokens();
      }
    }
  }
  EXPECT_EQ(prefill, 3 * prompt + 40);
  EXPECT_EQ(decode, 39);
}

TEST_F(WorkerTest, ManyAtOnce_SameAnswers) {
  Form();
  v1::GenerateResponse alone;
  ASSERT_TRUE(Generate(Prompt(12), alone).ok());
  std::vector<v1::GenerateResponse> answers(24);
  std::vector<std::thread> clients;
  for (auto& answer : answers) clients.emplace_back([&] { EXPECT_TRUE(Generate(Prompt(12), answer).ok()); });
  for (std::thread& client : clients) client.join();
  for (const auto& answer : answers) {
    EXPECT_THAT(answer.token_ids(), ::testing::ElementsAreArray(alone.token_ids()));
    EXPECT_EQ(answer.text(), alone.text());
  }
}

TEST_F(WorkerTest, CancelledByTheClient_ItsBlocksComeBack) {
  Form();
  {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, Prompt(2000));
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  std::thread drain([&] { EXPECT_TRUE(worker_->Drain("test")); });
  EXPECT_TRUE(controller_.Await([](const v1::ConnectRequest& m) { return m.has_leaving(); }).has_value());
  SendDrain(v1::DRAIN_STATE_OUT);
  drain.join();
}

TEST_F(WorkerTest, Drain_FinishesWhatWasTaken) {
  Form();
  v1::GenerateResponse answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt(30));
  ASSERT_TRUE(reader->Read(&answer));
  AwaitReady(true);
  std::atomic<bool> ended{false};
  std::thread drain([&] {
    EXPECT_TRUE(worker_->Drain("test"));
    ended = true;
  });
  EXPECT_TRUE(controller_.Await([](const v1::ConnectRequest& m) { return m.has_leaving(); }).has_value());
  AwaitReady(false);
  SendDrain(v1::DRAIN_STATE_MOVING);
  v1::GenerateResponse taken;
  EXPECT_TRUE(Generate(Prompt(3), taken).ok()) << "nobody else is there to take it, and this worker still serves";
  SendDrain(v1::DRAIN_STATE_EMPTY);
  int tokens = answer.token_ids_size();
  while (reader->Read(&answer)) tokens += answer.token_ids_size();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 30);
  v1::GenerateResponse refused;
  grpc::Status status;
  do {
    status = Generate(Prompt(3), refused);
  } while (status.ok());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("leaving"));
  EXPECT_FALSE(ended) << "it is still in the view";
  SendDrain(v1::DRAIN_STATE_OUT);
  drain.join();
}

TEST_F(WorkerTest, DrainedByAnOperator_IsNotReadyAndRunsOn) {
  Form();
  AwaitReady(true);
  SendDrain(v1::DRAIN_STATE_MOVING);
  AwaitReady(false);
  SendDrain(v1::DRAIN_STATE_EMPTY);
  v1::GenerateResponse answer;
  EXPECT_TRUE(Generate(Prompt(3), answer).ok()) << "there is no other worker";
  SendDrain(v1::DRAIN_STATE_STUCK);
  AwaitReady(true);
  SendDrain(v1::DRAIN_STATE_MOVING);
  AwaitReady(false);
  SendDrain(v1::DRAIN_STATE_UNSPECIFIED);
  AwaitReady(true);
}

// An epoch with its replicas in other slots, brought in from the checkpoint, while a request goes on.
TEST_F(WorkerTest, WaveUnderLoad_ChangesNoToken) {
  Form();
  v1::GenerateResponse before;
  ASSERT_TRUE(Generate(Prompt(200), before).ok());
  v1::GenerateResponse during;
  std::thread client([&] { EXPECT_TRUE(Generate(Prompt(200), during).ok()); });

  v1::ConnectResponse prepare;
  v1::PrepareWave& wave = *prepare.mutable_prepare_wave();
  wave.set_term(1);
  wave.set_group("g");
  wave.set_view(1);
  *wave.mutable_placement() = AllExperts(2);
  // The last expert moves to the first staging slot.
  const int32_t moved = wave.placement().replicas_size() - 1;
  wave.mutable_placement()->mutable_replicas(moved)->set_slot(kLayers * kExperts);
  v1::Move& move = *wave.add_moves();
  move.set_layer(kLayers - 1);
  move.set_expert(kExperts - 1);
  move.set_destination("w0");
  move.set_slot(kLayers * kExperts);
  controller_.Send(prepare);
  const auto prepared =
      controller_.Await([](const v1::ConnectRequest& m) { return m.has_wave_prepared() || m.has_wave_failed(); });
  ASSERT_TRUE(prepared.has_value() && prepared->has_wave_prepared()) << prepared->DebugString();
  EXPECT_GT(prepared->wave_prepared().bytes_from_checkpoint(), 0);
  v1::ConnectResponse commit;
  commit.mutable_commit_wave()->set_term(1);
  commit.mutable_commit_wave()->set_group("g");
  commit.mutable_commit_wave()->set_view(1);
  commit.mutable_commit_wave()->set_epoch(2);
  controller_.Send(commit);
  const auto in_force = controller_.Await(
      [](const v1::ConnectRequest& m) { return m.has_epoch_in_force() && m.epoch_in_force().epoch() == 2; });
  EXPECT_TRUE(in_force.has_value());
  client.join();
  EXPECT_THAT(during.token_ids(), ::testing::ElementsAreArray(before.token_ids()));
}

}  // namespace
}  // namespace ballast
