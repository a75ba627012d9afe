// TelemetryService over a real socket: the daemon in this process, an engine's reporter that retries.
#include "controller/service/telemetry_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "controller/service/daemon.h"
#include "controller/store/flaky_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Stub = v1::TelemetryService::Stub;

constexpr int32_t kLayers = 2;
constexpr int32_t kExperts = 8;

class TelemetryServiceTest : public ::testing::Test {
 protected:
  TelemetryServiceTest() {
    options_.listen = "127.0.0.1:0";
    options_.metrics_listen = "127.0.0.1:0";
    options_.groups = {{.name = "g", .size = 2}};
    options_.planning.min_tokens = 1000;
    // The first plan is made as soon as there is load, and no second one.
    options_.planning.interval = absl::Hours(100);
    StartDaemon();
  }
  void StartDaemon() {
    auto daemon = Daemon::Start(options_, store_, Clock::Real());
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    stub_ =
        v1::TelemetryService::NewStub(grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials()));
  }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    return (stub_.get()->*method)(&context, request, response);
  }

  static v1::RegisterEngineRequest Registration(const std::string& name = "sglang-0") {
    v1::RegisterEngineRequest request;
    v1::Engine& engine = *request.mutable_engine();
    engine.set_name(name);
    engine.set_num_layers(kLayers);
    engine.set_num_experts(kExperts);
    engine.set_slots_per_layer(3);
    for (int i = 0; i < 4; ++i) engine.add_workers()->set_name(absl::StrCat("gpu", i));
    request.set_reporter("rank0");
    request.set_report_stream(42);
    return request;
  }
  v1::RegisterEngineResponse Register(const v1::RegisterEngineRequest& request) {
    v1::RegisterEngineResponse response;
    const grpc::Status status = Call(&Stub::RegisterEngine, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  static v1::ReportLoadRequest MakeReport(uint64_t sequence, int64_t tokens) {
    v1::ReportLoadRequest request;
    request.set_engine("sglang-0");
    request.set_reporter("rank0");
    request.set_report_stream(42);
    v1::LoadReport& report = *request.mutable_report();
    report.set_sequence(sequence);
    report.add_task_tokens()->set_decode_tokens(tokens);
    for (int32_t l = 0; l < kLayers; ++l) {
      for (int32_t e = 0; e < kExperts; ++e) {
        v1::LoadCount& count = *report.add_counts();
        count.set_layer(l);
        count.set_expert(e);
        count.set_phase(v1::PHASE_DECODE);
        count.set_tokens(tokens / (e + 1));
      }
    }
    return request;
  }
  v1::EngineStatus Get() {
    v1::GetEngineRequest request;
    request.set_engine("sglang-0");
    v1::GetEngineResponse response;
    EXPECT_TRUE(Call(&Stub::GetEngine, request, &response).ok());
    return response.status();
  }
  v1::GetEnginePlacementResponse AwaitPlacement(uint64_t after_epoch) {
    v1::GetEnginePlacementRequest request;
    request.set_engine("sglang-0");
    request.set_after_epoch(after_epoch);
    request.mutable_wait()->set_seconds(55);
    v1::GetEnginePlacementResponse response;
    const grpc::Status status = Call(&Stub::GetEnginePlacement, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  DaemonOptions options_;
  FlakyStore store_;
  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<Stub> stub_;
};

TEST_F(TelemetryServiceTest, ReportsBecomeAPlacement) {
  EXPECT_EQ(Register(Registration()).reports_stored(), 0u);
  v1::ReportLoadResponse reported;
  ASSERT_TRUE(Call(&Stub::ReportLoad, MakeReport(1, 80'000), &reported).ok());
  EXPECT_EQ(reported.reports_stored(), 1u);
  const v1::GetEnginePlacementResponse first = AwaitPlacement(0);
  ASSERT_TRUE(first.has_placement());
  EXPECT_EQ(first.placement().epoch(), 1u);
  EXPECT_EQ(first.placement().replicas_size(), kLayers * 4 * 3);
  EXPECT_EQ(first.placement().workers(3), "gpu3");
  EXPECT_EQ(first.status().epoch(), 1u);
  EXPECT_GT(first.status().predicted_balancedness(), 0.8);

  // Told once, and it outlives the controller.
  v1::GetEnginePlacementRequest again;
  again.set_engine("sglang-0");
  again.set_after_epoch(1);
  v1::GetEnginePlacementResponse none;
  ASSERT_TRUE(Call(&Stub::GetEnginePlacement, again, &none).ok());
  EXPECT_FALSE(none.has_placement());
  EXPECT_EQ(none.status().epoch(), 1u);
  daemon_.reset();
  StartDaemon();
  EXPECT_EQ(AwaitPlacement(0).placement().SerializeAsString(), first.placement().SerializeAsString());
  EXPECT_EQ(Get().window_tokens(), 80'000);
  EXPECT_EQ(Register(Registration()).reports_stored(), 1u);
}

TEST_F(TelemetryServiceTest, RetriesCountOnceWhateverFails) {
  Register(Registration());
  store_.broken = true;
  v1::ReportLoadResponse reported;
  const grpc::Status down = Call(&Stub::ReportLoad, MakeReport(1, 500), &reported);
  EXPECT_EQ(down.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(down.error_message(), HasSubstr("store"));
  store_.broken = false;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Call(&Stub::ReportLoad, MakeReport(1, 500), &reported).ok());
    EXPECT_EQ(reported.reports_stored(), 1u);
  }
  EXPECT_EQ(Get().window_tokens(), 500);
  // Counted and stored, but the answer is lost with the controller: the retry goes to its successor.
  ASSERT_TRUE(Call(&Stub::ReportLoad, MakeReport(2, 70), &reported).ok());
  daemon_.reset();
  StartDaemon();
  ASSERT_TRUE(Call(&Stub::ReportLoad, MakeReport(2, 70), &reported).ok());
  EXPECT_EQ(Get().window_tokens(), 570);
}

TEST_F(TelemetryServiceTest, ErrorsNameTheField) {
  Register(Registration());
  v1::RegisterEngineResponse registered;
  const auto refuse = [&](const std::function<void(v1::RegisterEngineRequest&)>& spoil, grpc::StatusCode code,
                          const char* message) {
    v1::RegisterEngineRequest request = Registration();
    spoil(request);
    const grpc::Status status = Call(&Stub::RegisterEngine, request, &registered);
    EXPECT_EQ(status.error_code(), code) << message;
    EXPECT_THAT(status.error_message(), HasSubstr(message));
  };
  refuse([](auto& r) { r.mutable_engine()->set_name("g"); }, grpc::StatusCode::FAILED_PRECONDITION,
         "engine.name: 'g' is a group of Ballast workers");
  refuse([](auto& r) { r.mutable_engine()->set_slots_per_layer(4); }, grpc::StatusCode::FAILED_PRECONDITION,
         "slots_per_layer");
  refuse([](auto& r) { r.mutable_engine()->set_num_layers(0); }, grpc::StatusCode::INVALID_ARGUMENT,
         "engine.num_layers: 0");
  refuse([](auto& r) { r.clear_reporter(); }, grpc::StatusCode::INVALID_ARGUMENT, "reporter: 0 characters");

  v1::ReportLoadResponse reported;
  v1::ReportLoadRequest report = MakeReport(1, 10);
  report.set_engine("none");
  EXPECT_EQ(Call(&Stub::ReportLoad, report, &reported).error_code(), grpc::StatusCode::NOT_FOUND);
  report = MakeReport(1, 10);
  report.set_report_stream(1);
  EXPECT_EQ(Call(&Stub::ReportLoad, report, &reported).error_code(), grpc::StatusCode::FAILED_PRECONDITION);

  v1::GetEnginePlacementRequest get;
  get.set_engine("sglang-0");
  get.mutable_wait()->set_seconds(61);
  v1::GetEnginePlacementResponse got;
  EXPECT_THAT(Call(&Stub::GetEnginePlacement, get, &got).error_message(), HasSubstr("wait: 1m1s is not in 0 to 1m"));
  v1::ListEnginesRequest list;
  list.set_page_size(-1);
  v1::ListEnginesResponse listed;
  EXPECT_EQ(Call(&Stub::ListEngines, list, &listed).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(TelemetryServiceTest, EnginesAreReplacedListedAndRemoved) {
  Register(Registration());
  v1::ReportLoadResponse reported;
  ASSERT_TRUE(Call(&Stub::ReportLoad, MakeReport(1, 80'000), &reported).ok());
  EXPECT_EQ(AwaitPlacement(0).placement().epoch(), 1u);
  v1::RegisterEngineRequest other = Registration();
  other.mutable_engine()->set_slots_per_layer(4);
  other.set_replace(true);
  other.set_report_stream(43);
  const v1::RegisterEngineResponse replaced = Register(other);
  EXPECT_EQ(replaced.status().epoch(), 0u);
  EXPECT_EQ(replaced.status().window_tokens(), 0);
  v1::ReportLoadRequest report = MakeReport(1, 80'000);
  report.set_report_stream(43);
  ASSERT_TRUE(Call(&Stub::ReportLoad, report, &reported).ok());
  // Epochs go on.
  EXPECT_EQ(AwaitPlacement(1).placement().epoch(), 2u);

  Register(Registration("a"));
  Register(Registration("z"));
  v1::ListEnginesRequest list;
  list.set_page_size(2);
  std::vector<std::string> names;
  do {
    v1::ListEnginesResponse page;
    ASSERT_TRUE(Call(&Stub::ListEngines, list, &page).ok());
    for (const v1::EngineStatus& engine : page.engines()) names.push_back(engine.engine().name());
    list.set_page_token(page.next_page_token());
  } while (!list.page_token().empty());
  EXPECT_EQ(names, (std::vector<std::string>{"a", "sglang-0", "z"}));

  v1::RemoveEngineRequest remove;
  remove.set_engine("a");
  v1::RemoveEngineResponse removed;
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(Call(&Stub::RemoveEngine, remove, &removed).ok());
  v1::GetEngineRequest get;
  get.set_engine("a");
  v1::GetEngineResponse got;
  EXPECT_EQ(Call(&Stub::GetEngine, get, &got).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(TelemetryServiceTest, WatchedLoadIsEveryTokenOnce) {
  Register(Registration());
  grpc::ClientContext context;
  v1::WatchLoadRequest request;
  request.set_group("sglang-0");
  request.mutable_interval()->set_nanos(100'000'000);
  const auto stream = stub_->WatchLoad(&context, request);
  v1::WatchLoadResponse window;
  // The watch has begun.
  ASSERT_TRUE(stream->Read(&window));
  EXPECT_EQ(window.num_layers(), kLayers);
  v1::ReportLoadResponse reported;
  for (uint64_t i = 1; i <= 3; ++i) ASSERT_TRUE(Call(&Stub::ReportLoad, MakeReport(i, 800), &reported).ok());
  double first = 0;
  double last = 0;
  while (first < 2400 && stream->Read(&window)) {
    for (const v1::PhaseTokens& phase : window.phases()) {
      EXPECT_EQ(phase.phase(), v1::PHASE_DECODE);
      ASSERT_EQ(phase.layers_size(), kLayers);
      first += phase.layers(0).tokens(0);
      last += phase.layers(1).tokens(7);
    }
  }
  EXPECT_EQ(first, 2400);
  EXPECT_EQ(last, 300);
  context.TryCancel();

  const auto refused = [&](const v1::WatchLoadRequest& bad) {
    grpc::ClientContext call;
    const auto reader = stub_->WatchLoad(&call, bad);
    EXPECT_FALSE(reader->Read(&window));
    return reader->Finish();
  };
  request.set_group("none");
  EXPECT_EQ(refused(request).error_code(), grpc::StatusCode::NOT_FOUND);
  request.mutable_interval()->set_seconds(4000);
  EXPECT_THAT(refused(request).error_message(), HasSubstr("interval: 1h6m40.1s is not in 100ms to 1h"));
}

TEST(LoadBetween, IsWhatCameSinceAndAllOfWhatBeganAnew) {
  const EngineRuntime::Counts before{
      .generation = 1, .layers = 1, .experts = 2, .prefill = {5, 7}, .decode = {1000, 2000}};
  EngineRuntime::Counts now = before;
  now.decode = {1003, 2000};
  v1::WatchLoadResponse response = LoadBetween(before, now);
  EXPECT_EQ(response.num_layers(), 1);
  EXPECT_EQ(response.num_experts(), 2);
  ASSERT_EQ(response.phases_size(), 1);
  EXPECT_EQ(response.phases(0).phase(), v1::PHASE_DECODE);
  EXPECT_THAT(response.phases(0).layers(0).tokens(), ElementsAre(3, 0));

  // Replaced by an engine of the same size.
  now = {.generation = 2, .layers = 1, .experts = 2, .prefill = {0, 0}, .decode = {0, 10}};
  response = LoadBetween(before, now);
  ASSERT_EQ(response.phases_size(), 1);
  EXPECT_THAT(response.phases(0).layers(0).tokens(), ElementsAre(0, 10));

  // A group that is not formed.
  EXPECT_EQ(LoadBetween({}, {}).phases_size(), 0);
  response = LoadBetween({}, now);
  ASSERT_EQ(response.phases_size(), 1);
  EXPECT_THAT(response.phases(0).layers(0).tokens(), ElementsAre(0, 10));
}

}  // namespace
}  // namespace ballast
