// The daemon in this process, workers over real sockets.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ballast/v1/group_service.grpc.pb.h"
#include "ballast/v1/model_service.grpc.pb.h"
#include "ballast/v1/plan_service.grpc.pb.h"
#include "ballast/v1/worker_session.grpc.pb.h"
#include "controller/service/daemon.h"
#include "controller/store/flaky_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/health_client.h"
#include "proto/base/mutex.h"
#include "proto/base/release.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

constexpr int kLayers = 2;
constexpr int kExperts = 8;
constexpr std::chrono::minutes kPatience(4);

// A worker that does as it is told. Its thread reads what the controller says; commits are in force at once.
class FakeWorker {
 public:
  FakeWorker(std::string address, int index) : address_(std::move(address)), name_(absl::StrCat("w", index)) {}
  ~FakeWorker() { Kill(); }

  v1::Hello MakeHello() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    v1::Hello hello;
    hello.set_worker(name_);
    hello.set_incarnation(incarnation_);
    hello.set_group("g");
    hello.set_role(v1::GROUP_ROLE_MIXED);
    hello.mutable_model()->set_name("m");
    hello.mutable_model()->set_fingerprint("f00d");
    hello.mutable_model()->set_num_moe_layers(kLayers);
    hello.mutable_model()->set_num_experts(kExperts);
    hello.mutable_model()->set_experts_per_token(2);
    hello.mutable_model()->set_expert_bytes(1000);
    hello.set_combine(v1::COMBINE_MODE_FAST);
    hello.set_slots(10);
    hello.set_staging_slots(2);
    hello.set_data_address("127.0.0.1:1");
    hello.set_serving_address("127.0.0.1:2");
    hello.set_report_stream(77);
    hello.set_view(view_);
    hello.set_epoch(epoch_);
    hello.set_prepared_epoch(prepared_);
    hello.set_last_term(term_);
    hello.set_version(Version());
    return hello;
  }

  void Connect() { Connect(MakeHello()); }
  void Connect(const v1::Hello& hello) {
    context_ = std::make_unique<grpc::ClientContext>();
    stub_ = v1::WorkerSession::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    stream_ = stub_->Connect(context_.get());
    v1::ConnectRequest request;
    *request.mutable_hello() = hello;
    stream_->Write(request);
    reader_ = std::thread([this] {
      v1::ConnectResponse message;
      while (stream_->Read(&message)) Obey(message);
    });
  }

  // The process is gone: its connection closes.
  void Kill() {
    if (!reader_.joinable()) return;
    context_->TryCancel();
    End();
  }
  // Waits for the controller to end the session.
  grpc::Status End() {
    reader_.join();
    return stream_->Finish();
  }

  void Report(int64_t tokens) {
    v1::ConnectRequest request;
    v1::LoadReport& report = *request.mutable_load_report();
    report.set_sequence(++sequence_);
    report.add_task_tokens()->set_decode_tokens(tokens);
    for (int l = 0; l < kLayers; ++l) {
      for (int e = 0; e < kExperts; ++e) {
        v1::LoadCount& count = *report.add_counts();
        count.set_layer(l);
        count.set_expert(e);
        count.set_phase(v1::PHASE_DECODE);
        count.set_tokens(tokens / (e + 1));
      }
    }
    // First and last together, second and last but one, ..., each of them often enough that a part of the sample shows
    // the task level too.
    constexpr int kTimes = 8;
    v1::RouteSample& sample = *report.add_route_samples();
    sample.set_phase(v1::PHASE_DECODE);
    sample.set_tokens(kTimes * kExperts / 2);
    for (int t = 0; t < kTimes * kExperts / 2; ++t) {
      const int first = t % (kExperts / 2);
      for (int l = 0; l < kLayers; ++l) {
        sample.add_experts(first);
        sample.add_experts(kExperts - 1 - first);
      }
    }
    Write(request);
  }
  void AwaitStored(uint64_t sequence) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    while (stored_ < sequence) changed_.Wait(mu_);
  }
  uint64_t incarnation() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    while (incarnation_ == 0) changed_.Wait(mu_);
    return incarnation_;
  }

 private:
  void Write(const v1::ConnectRequest& request) BALLAST_EXCLUDES(write_mu_) {
    MutexLock lock(write_mu_);
    stream_->Write(request);
  }

  void Obey(const v1::ConnectResponse& message) BALLAST_EXCLUDES(mu_) {
    std::vector<v1::ConnectRequest> answers;
    {
      MutexLock lock(mu_);
      switch (message.message_case()) {
        case v1::ConnectResponse::kWelcome:
          incarnation_ = message.welcome().incarnation();
          term_ = message.welcome().term();
          answers.emplace_back().mutable_heartbeat()->set_number(1);
          break;
        case v1::ConnectResponse::kHeartbeatAck:
          break;
        case v1::ConnectResponse::kLoadPlacement:
          answers.emplace_back().mutable_placement_loaded()->set_epoch(message.load_placement().placement().epoch());
          break;
        case v1::ConnectResponse::kInstallView:
          view_ = message.install_view().view().view();
          epoch_ = message.install_view().placement().epoch();
          answers.emplace_back().mutable_view_installed()->set_view(view_);
          break;
        case v1::ConnectResponse::kPrepareWave:
          prepared_ = message.prepare_wave().placement().epoch();
          answers.emplace_back().mutable_wave_prepared()->set_epoch(prepared_);
          break;
        case v1::ConnectResponse::kCommitWave:
          epoch_ = message.commit_wave().epoch();
          answers.emplace_back().mutable_epoch_in_force()->set_epoch(epoch_);
          break;
        case v1::ConnectResponse::kReportsStored:
          stored_ = message.reports_stored().sequence();
          break;
        default:
          break;
      }
      changed_.NotifyAll();
    }
    for (const v1::ConnectRequest& answer : answers) Write(answer);
  }

  const std::string address_;
  const std::string name_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<v1::WorkerSession::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ConnectRequest, v1::ConnectResponse>> stream_;
  std::thread reader_;
  uint64_t sequence_ = 0;
  Mutex write_mu_;
  Mutex mu_;
  CondVar changed_;
  uint64_t incarnation_ BALLAST_GUARDED_BY(mu_) = 0;
  uint64_t term_ BALLAST_GUARDED_BY(mu_) = 0;
  uint64_t view_ BALLAST_GUARDED_BY(mu_) = 0;
  uint64_t epoch_ BALLAST_GUARDED_BY(mu_) = 0;
  uint64_t prepared_ BALLAST_GUARDED_BY(mu_) = 0;
  uint64_t stored_ BALLAST_GUARDED_BY(mu_) = 0;
};

class ServiceTest : public ::testing::Test {
 protected:
  ServiceTest() {
    options_.listen = "127.0.0.1:0";
    options_.metrics_listen = "127.0.0.1:0";
    options_.groups = {{.name = "g", .size = 2, .mode = v1::GROUP_MODE_APPROVE}};
    // Nobody dies of a slow machine here.
    options_.timing.lease = absl::Minutes(5);
    options_.timing.checkpoint = absl::Milliseconds(50);
    options_.planning.interval = absl::Hours(100);
    StartDaemon();
  }
  ~ServiceTest() override {
    workers_.clear();
    daemon_.reset();
  }

  void StartDaemon() {
    auto daemon = Daemon::Start(options_, store_, Clock::Real());
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    const auto channel = grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials());
    groups_ = v1::GroupService::NewStub(channel);
    plans_ = v1::PlanService::NewStub(channel);
    models_ = v1::ModelService::NewStub(channel);
  }

  FakeWorker& AddWorker(int index) {
    workers_.push_back(std::make_unique<FakeWorker>(daemon_->grpc_address(), index));
    return *workers_.back();
  }

  void FormGroup() {
    for (int i = 0; i < 2; ++i) AddWorker(i).Connect();
    AwaitGroup([](const v1::Group& g) { return g.state() == v1::GROUP_STATE_SERVING; });
  }

  // Watches until `done`; gives up after what only a hang takes.
  v1::Group AwaitGroup(const std::function<bool(const v1::Group&)>& done) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    v1::WatchGroupRequest request;
    request.set_group("g");
    const auto stream = groups_->WatchGroup(&context, request);
    v1::WatchGroupResponse response;
    while (stream->Read(&response)) {
      if (!done(response.group())) continue;
      context.TryCancel();
      return response.group();
    }
    ADD_FAILURE() << "the group never got there: " << response.group().ShortDebugString();
    return {};
  }

  template <typename Service, typename Request, typename Response>
  grpc::Status Call(Service& service, grpc::Status (Service::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    return (service.*method)(&context, request, response);
  }
  template <typename Request, typename Response>
  grpc::Status Plans(grpc::Status (v1::PlanService::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                     const Request& request, Response* response) {
    return Call(*plans_, method, request, response);
  }
  template <typename Request, typename Response>
  grpc::Status Groups(grpc::Status (v1::GroupService::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                      const Request& request, Response* response) {
    return Call(*groups_, method, request, response);
  }

  void ReportLoad() {
    workers_[0]->Report(100'000);
    workers_[0]->AwaitStored(1);
  }
  v1::Plan CreatePlan() {
    v1::CreatePlanRequest request;
    request.set_group("g");
    v1::CreatePlanResponse response;
    const grpc::Status status = Plans(&v1::PlanService::Stub::CreatePlan, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.plan();
  }

  DaemonOptions options_;
  FlakyStore store_;
  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<v1::GroupService::Stub> groups_;
  std::unique_ptr<v1::PlanService::Stub> plans_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
};

TEST_F(ServiceTest, FormsPlansRollsOutAndRemembers) {
  FormGroup();
  ReportLoad();
  const v1::Plan plan = CreatePlan();
  EXPECT_EQ(plan.state(), v1::PLAN_STATE_PROPOSED);
  EXPECT_GT(plan.moves_total(), 0);

  v1::ApprovePlanRequest approve;
  approve.set_id(plan.id());
  v1::ApprovePlanResponse approved;
  ASSERT_TRUE(Plans(&v1::PlanService::Stub::ApprovePlan, approve, &approved).ok());
  const v1::Group group =
      AwaitGroup([&](const v1::Group& g) { return g.epoch() == 1 + static_cast<uint64_t>(plan.waves_total()); });
  EXPECT_GT(group.balancedness(), plan.balancedness_before());

  v1::GetPlanRequest get;
  get.set_id(plan.id());
  v1::GetPlanResponse got;
  ASSERT_TRUE(Plans(&v1::PlanService::Stub::GetPlan, get, &got).ok());
  EXPECT_EQ(got.moves_size(), plan.moves_total());
  EXPECT_EQ(got.wave_moves_size(), plan.waves_total());
  EXPECT_EQ(got.layers_size(), kLayers);
  EXPECT_GE(got.placement().replicas_size(), kLayers * kExperts);

  v1::ListModelsResponse models;
  ASSERT_TRUE(Call(*models_, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest(), &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).groups(0), "g");

  // Another process with the same store: workers reconnect as they are.
  daemon_.reset();
  for (const auto& worker : workers_) EXPECT_EQ(worker->End().error_code(), grpc::StatusCode::UNAVAILABLE);
  StartDaemon();
  const v1::Group after = AwaitGroup([](const v1::Group& g) { return true; });
  EXPECT_EQ(after.epoch(), group.epoch());
  EXPECT_EQ(after.view().view(), group.view().view());
  EXPECT_EQ(after.term(), group.term() + 1);
  EXPECT_EQ(after.window_tokens(), 100'000);
}

TEST_F(ServiceTest, PlansFromRoutesAndSaysWhy) {
  FormGroup();
  ReportLoad();
  v1::SetPolicyRequest set;
  set.set_group("g");
  set.set_policy("magic");
  v1::SetPolicyResponse changed;
  grpc::Status status = Groups(&v1::GroupService::Stub::SetPolicy, set, &changed);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("task-aware"));
  set.set_policy("task-aware");
  status = Groups(&v1::GroupService::Stub::SetPolicy, set, &changed);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(changed.group().policy(), "task-aware");

  const v1::Plan plan = CreatePlan();
  EXPECT_EQ(plan.policy(), "task-aware");
  EXPECT_EQ(plan.effect().traffic_before().hops_per_token(), kLayers);
  EXPECT_EQ(plan.effect().traffic_after().hops_per_token(), 0);
  v1::GetPlanRequest get;
  get.set_id(plan.id());
  v1::GetPlanResponse got;
  ASSERT_TRUE(Plans(&v1::PlanService::Stub::GetPlan, get, &got).ok());
  ASSERT_EQ(got.reasons_size(), plan.moves_total());
  for (const v1::ReplicaReason& reason : got.reasons()) EXPECT_TRUE(reason.moved());
  ASSERT_EQ(got.placement().task_homes_size(), 1);
  EXPECT_EQ(got.placement().task_homes(0).task(), "");

  // Of any expert, moved or not.
  get.mutable_expert()->set_layer(1);
  get.mutable_expert()->set_expert(2);
  ASSERT_TRUE(Plans(&v1::PlanService::Stub::GetPlan, get, &got).ok());
  ASSERT_EQ(got.reasons_size(), 1);
  EXPECT_EQ(got.reasons(0).expert(), 2);
  ASSERT_EQ(got.reasons(0).partners_size(), 1);
  EXPECT_EQ(got.reasons(0).partners(0).expert(), kExperts - 3);
  EXPECT_GT(got.reasons(0).hops_saved_per_token(), 0);
  get.mutable_expert()->set_expert(kExperts);
  status = Plans(&v1::PlanService::Stub::GetPlan, get, &got);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("expert.expert: 8 is not in 0 to 7"));
}

TEST_F(ServiceTest, TimesAreByTheCostModelOfAFile) {
  daemon_.reset();
  options_.cost_model = testing::TempDir() + "/cost_model.json";
  std::ofstream(options_.cost_model) << R"({"format": "ballast.cost_model/v1", "microseconds_per_token": 7})";
  StartDaemon();
  FormGroup();
  ReportLoad();
  const v1::PlanEffect effect = CreatePlan().effect();
  const double tokens = effect.busiest_tokens_before() - effect.busiest_tokens_after();
  EXPECT_GT(tokens, 0);
  EXPECT_DOUBLE_EQ(effect.gain_microseconds(), 7 * tokens);
  options_.cost_model += ".gone";
  const auto daemon = Daemon::Start(options_, store_, Clock::Real());
  ASSERT_FALSE(daemon.ok());
  EXPECT_THAT(std::string(daemon.status().message()), HasSubstr("cost_model.json.gone"));
}

TEST_F(ServiceTest, SessionsEndWithTheirReason) {
  FormGroup();
  FakeWorker& twin = AddWorker(0);
  twin.Connect();
  EXPECT_EQ(twin.End().error_code(), grpc::StatusCode::ALREADY_EXISTS);

  FakeWorker& stranger = AddWorker(5);
  v1::Hello hello = stranger.MakeHello();
  hello.set_group("nowhere");
  stranger.Connect(hello);
  const grpc::Status status = stranger.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("hello.group: 'nowhere' is none of g"));

  FakeWorker& ghost = AddWorker(0);
  hello = ghost.MakeHello();
  hello.set_incarnation(99);
  ghost.Connect(hello);
  EXPECT_EQ(ghost.End().error_code(), grpc::StatusCode::ABORTED);

  // Something else than Hello first.
  grpc::ClientContext context;
  const auto stub =
      v1::WorkerSession::NewStub(grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials()));
  const auto stream = stub->Connect(&context);
  v1::ConnectRequest request;
  request.mutable_heartbeat()->set_number(1);
  stream->Write(request);
  v1::ConnectResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, ALostSessionIsNoticedAndANewProcessTakesItsPlace) {
  FormGroup();
  const uint64_t before = workers_[1]->incarnation();
  workers_[1]->Kill();
  // Until the controller has seen the old connection close, the name is taken.
  v1::ListWorkersRequest list;
  list.set_group("g");
  const auto closed = [&] {
    v1::ListWorkersResponse listed;
    EXPECT_TRUE(Groups(&v1::GroupService::Stub::ListWorkers, list, &listed).ok());
    return std::any_of(listed.workers().begin(), listed.workers().end(), [](const v1::Worker& worker) {
      return worker.name() == "w1" && worker.state() == v1::WORKER_STATE_DISCONNECTED;
    });
  };
  while (!closed() && !HasFailure()) std::this_thread::yield();
  AddWorker(1).Connect();
  const v1::Group group = AwaitGroup(
      [&](const v1::Group& g) { return g.view().members_size() == 2 && g.view().members(1).incarnation() > before; });
  EXPECT_GT(group.view().view(), 1u);
}

TEST_F(ServiceTest, ErrorsNameTheField) {
  FormGroup();
  const auto expect = [](const grpc::Status& status, grpc::StatusCode code, const std::string& text) {
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(text));
  };
  v1::GetGroupResponse group;
  expect(Groups(&v1::GroupService::Stub::GetGroup, v1::GetGroupRequest(), &group), grpc::StatusCode::INVALID_ARGUMENT,
         "group: is empty");
  v1::GetGroupRequest nowhere;
  nowhere.set_group("nowhere");
  expect(Groups(&v1::GroupService::Stub::GetGroup, nowhere, &group), grpc::StatusCode::NOT_FOUND, "nowhere");
  v1::ListPlansRequest pages;
  pages.set_page_size(2000);
  v1::ListPlansResponse listed;
  expect(Plans(&v1::PlanService::Stub::ListPlans, pages, &listed), grpc::StatusCode::INVALID_ARGUMENT,
         "page_size: 2000");
  v1::CreatePlanRequest create;
  create.set_group("g");
  v1::CreatePlanResponse created;
  expect(Plans(&v1::PlanService::Stub::CreatePlan, create, &created), grpc::StatusCode::FAILED_PRECONDITION,
         "load window is empty");
  create.set_policy("magic");
  expect(Plans(&v1::PlanService::Stub::CreatePlan, create, &created), grpc::StatusCode::INVALID_ARGUMENT, "magic");
  for (const char* id : {"g-77", "nowhere-1", "x"}) {
    v1::GetPlanRequest get;
    get.set_id(id);
    v1::GetPlanResponse got;
    expect(Plans(&v1::PlanService::Stub::GetPlan, get, &got), grpc::StatusCode::NOT_FOUND, id);
  }
  v1::RollbackRequest rollback;
  rollback.set_group("g");
  v1::RollbackResponse rolled;
  expect(Plans(&v1::PlanService::Stub::Rollback, rollback, &rolled), grpc::StatusCode::FAILED_PRECONDITION,
         "no earlier placement");
  v1::DrainWorkerRequest drain;
  v1::DrainWorkerResponse drained;
  expect(Groups(&v1::GroupService::Stub::DrainWorker, drain, &drained), grpc::StatusCode::INVALID_ARGUMENT, "group");
  drain.set_group("g");
  expect(Groups(&v1::GroupService::Stub::DrainWorker, drain, &drained), grpc::StatusCode::INVALID_ARGUMENT, "worker");
  drain.set_worker("w7");
  expect(Groups(&v1::GroupService::Stub::DrainWorker, drain, &drained), grpc::StatusCode::NOT_FOUND, "w7");
  v1::SetModeRequest mode;
  mode.set_group("g");
  v1::SetModeResponse set;
  expect(Groups(&v1::GroupService::Stub::SetMode, mode, &set), grpc::StatusCode::INVALID_ARGUMENT, "mode");
}

// The fake workers have not a slot to spare.
TEST_F(ServiceTest, DrainsByNameAndBack) {
  FormGroup();
  v1::DrainWorkerRequest drain;
  drain.set_group("g");
  drain.set_worker("w1");
  v1::DrainWorkerResponse drained;
  ASSERT_TRUE(Groups(&v1::GroupService::Stub::DrainWorker, drain, &drained).ok());
  EXPECT_EQ(drained.worker().name(), "w1");
  EXPECT_TRUE(drained.worker().cordoned());
  EXPECT_NE(drained.worker().drain(), v1::DRAIN_STATE_UNSPECIFIED);
  v1::UndrainWorkerRequest undrain;
  undrain.set_group("g");
  undrain.set_worker("w1");
  v1::UndrainWorkerResponse undrained;
  ASSERT_TRUE(Groups(&v1::GroupService::Stub::UndrainWorker, undrain, &undrained).ok());
  EXPECT_FALSE(undrained.worker().cordoned());
  EXPECT_EQ(undrained.worker().drain(), v1::DRAIN_STATE_UNSPECIFIED);
}

TEST_F(ServiceTest, PlansComeInPagesNewestFirst) {
  FormGroup();
  ReportLoad();
  std::vector<std::string> made;
  for (int i = 0; i < 5; ++i) made.push_back(CreatePlan().id());
  std::vector<std::string> seen;
  v1::ListPlansRequest request;
  request.set_page_size(2);
  do {
    v1::ListPlansResponse response;
    ASSERT_TRUE(Plans(&v1::PlanService::Stub::ListPlans, request, &response).ok());
    for (const v1::Plan& plan : response.plans()) seen.push_back(plan.id());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  // The planning loop may have proposed one of its own before the first of these.
  ASSERT_GE(seen.size(), made.size());
  seen.resize(made.size());
  EXPECT_EQ(seen, std::vector<std::string>(made.rbegin(), made.rend()));
}

TEST_F(ServiceTest, WithoutItsStoreNothingIsDecidedAndThenItIs) {
  FormGroup();
  const auto channel = grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials());
  const auto health = [&](const std::string& service) {
    return CheckHealth(channel, service, Clock::Real().Now() + absl::Minutes(1));
  };
  EXPECT_EQ(health("ballast.v1.GroupService"), absl::OkStatus());
  store_.broken = true;
  v1::PauseRequest pause;
  pause.set_group("g");
  v1::PauseResponse paused;
  const grpc::Status status = Groups(&v1::GroupService::Stub::Pause, pause, &paused);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("store"));
  EXPECT_EQ(health("ballast.v1.GroupService").code(), absl::StatusCode::kUnavailable) << "not ready";
  EXPECT_EQ(health(""), absl::OkStatus()) << "but alive";
  store_.broken = false;
  AwaitGroup([](const v1::Group& g) { return g.paused(); });
  EXPECT_EQ(health("ballast.v1.GroupService"), absl::OkStatus());
  EXPECT_TRUE(Groups(&v1::GroupService::Stub::Pause, pause, &paused).ok());
}

}  // namespace
}  // namespace ballast
