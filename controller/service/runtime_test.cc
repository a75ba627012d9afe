// The loop by itself: time and the store move by hand, workers are sinks that answer on the loop's thread.
#include "controller/service/runtime.h"

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "controller/service/planning.h"
#include "controller/store/flaky_store.h"
#include "controller/store/records.pb.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/release.h"

namespace ballast {
namespace {

constexpr int kLayers = 2;
constexpr int kExperts = 8;

// What a worker's process knows, whatever session it has.
struct Process {
  std::string name;
  std::atomic<uint64_t> incarnation = 0;
  std::atomic<uint64_t> term = 0;
  std::atomic<uint64_t> view = 0;
  std::atomic<uint64_t> epoch = 0;
  std::atomic<uint64_t> prepared = 0;

  v1::ConnectRequest Hello() const {
    v1::ConnectRequest request;
    v1::Hello& hello = *request.mutable_hello();
    hello.set_worker(name);
    hello.set_incarnation(incarnation);
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
    hello.set_view(view);
    hello.set_epoch(epoch);
    hello.set_prepared_epoch(prepared);
    hello.set_last_term(term);
    hello.set_version(Version());
    return request;
  }
};

// One session of it; does as it is told.
class Sink final : public SessionSink {
 public:
  Sink(Runtime& runtime, Process& process) : runtime_(runtime), process_(process) {}

  void Send(v1::ConnectResponse message) override {
    ++heard;
    v1::ConnectRequest answer;
    switch (message.message_case()) {
      case v1::ConnectResponse::kWelcome:
        process_.incarnation = message.welcome().incarnation();
        process_.term = message.welcome().term();
        return;
      case v1::ConnectResponse::kLoadPlacement:
        answer.mutable_placement_loaded()->set_epoch(message.load_placement().placement().epoch());
        break;
      case v1::ConnectResponse::kInstallView:
        process_.view = message.install_view().view().view();
        process_.epoch = message.install_view().placement().epoch();
        answer.mutable_view_installed()->set_view(process_.view);
        break;
      case v1::ConnectResponse::kPrepareWave:
        process_.prepared = message.prepare_wave().placement().epoch();
        answer.mutable_wave_prepared()->set_epoch(process_.prepared);
        break;
      case v1::ConnectResponse::kCommitWave:
        process_.epoch = message.commit_wave().epoch();
        answer.mutable_epoch_in_force()->set_epoch(process_.epoch);
        break;
      default:
        return;
    }
    runtime_.Receive(session, std::move(answer));
  }
  void Close(absl::Status status) override { closed = status.code(); }

  SessionId session = 0;
  std::atomic<int> heard = 0;
  // OK: not closed.
  std::atomic<absl::StatusCode> closed = absl::StatusCode::kOk;

 private:
  Runtime& runtime_;
  Process& process_;
};

class RuntimeTest : public ::testing::Test {
 protected:
  RuntimeTest() {
    for (int i = 0; i < 2; ++i) processes_[i].name = absl::StrCat("w", i);
    StartRuntime();
  }

  void StartRuntime() {
    GroupOptions group{.config = {.name = "g", .size = 2, .mode = v1::GROUP_MODE_APPROVE}};
    group.planning.interval = absl::Hours(100);
    auto runtime = Runtime::Start(
        {.groups = {group}, .planner = [](const PlanJob& job) { return RunPlanJob(job, GateLimits(), CostModel()); }},
        store_, clock_, metrics_);
    ASSERT_TRUE(runtime.ok()) << runtime.status();
    runtime_ = *std::move(runtime);
  }

  // A new session of the process, with its Hello; the one before ends.
  void Connect(int worker) {
    Lose(worker);
    sinks_[worker] = std::make_shared<Sink>(*runtime_, processes_[worker]);
    sinks_[worker]->session = runtime_->Open(sinks_[worker]);
    runtime_->Receive(sinks_[worker]->session, processes_[worker].Hello());
  }
  void Lose(int worker) {
    if (sinks_[worker] != nullptr) runtime_->Lost(sinks_[worker]->session);
    sinks_[worker].reset();
  }
  void Heartbeat(int worker) {
    v1::ConnectRequest request;
    request.mutable_heartbeat()->set_number(1);
    runtime_->Receive(sinks_[worker]->session, request);
  }
  void FormGroup() {
    Connect(0);
    Connect(1);
    while (Group().state() != v1::GROUP_STATE_SERVING) {
    }
  }
  // The loop is in the middle of a write when this returns.
  void HoldTheLoop() {
    store_.Hold();
    Connect(0);
    store_.AwaitHeld();
  }

  template <typename T>
  absl::StatusOr<T> Call(absl::Time deadline,
                         std::function<absl::StatusOr<T>(ballast::Group&, absl::Time, Effects&)> work) {
    return runtime_->Call<T>("g", deadline, std::move(work));
  }
  // As it is once all that has arrived is taken in, and a tick behind it.
  v1::Group Group() {
    absl::StatusOr<v1::Group> shown;
    for (int rounds = 0; rounds < 2;) {
      shown = Call<v1::Group>(absl::InfiniteFuture(), [](ballast::Group& g, absl::Time now, Effects& effects) {
        return absl::StatusOr<v1::Group>(g.Describe(now));
      });
      // The write that mends it is under way.
      if (!absl::IsUnavailable(shown.status())) ++rounds;
    }
    EXPECT_TRUE(shown.ok()) << shown.status();
    return shown.ok() ? *shown : v1::Group();
  }
  void ExpectBothServeInView(uint64_t view) {
    const v1::Group group = Group();
    EXPECT_EQ(group.view().view(), view);
    EXPECT_EQ(group.view().members_size(), 2);
    EXPECT_EQ(group.state(), v1::GROUP_STATE_SERVING);
  }
  absl::StatusOr<v1::Plan> Approve(const std::string& id, absl::Time deadline) {
    return Call<v1::Plan>(deadline, [id](ballast::Group& g, absl::Time now, Effects& effects) {
      return g.Approve(id, "an operator", now, effects);
    });
  }
  v1::Plan CreatePlan() {
    v1::ConnectRequest request;
    v1::LoadReport& report = *request.mutable_load_report();
    report.set_sequence(1);
    report.add_task_tokens()->set_decode_tokens(100'000);
    for (int l = 0; l < kLayers; ++l) {
      for (int e = 0; e < kExperts; ++e) {
        v1::LoadCount& count = *report.add_counts();
        count.set_layer(l);
        count.set_expert(e);
        count.set_phase(v1::PHASE_DECODE);
        count.set_tokens(100'000 / (e + 1));
      }
    }
    runtime_->Receive(sinks_[0]->session, request);
    v1::CreatePlanRequest create;
    create.set_group("g");
    const auto created = runtime_->CreatePlan(create, absl::InfiniteFuture());
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->plan() : v1::Plan();
  }

  FlakyStore store_;
  SimulatedClock clock_;
  Metrics metrics_{ControllerMetrics()};
  Process processes_[2];
  std::shared_ptr<Sink> sinks_[2];
  std::unique_ptr<Runtime> runtime_;
};

TEST_F(RuntimeTest, HeartbeatsThatWaitForAWriteCount) {
  FormGroup();
  HoldTheLoop();
  for (int i = 0; i < 10; ++i) {
    clock_.Advance(absl::Milliseconds(400));
    Heartbeat(0);
    Heartbeat(1);
  }
  store_.Release();
  ExpectBothServeInView(1);
}

// Workers that get no answer open a session anew, say Hello and are silent until they are greeted.
TEST_F(RuntimeTest, SilenceWhileTheStoreIsDownIsNoDeath) {
  FormGroup();
  HoldTheLoop();
  store_.broken = true;
  store_.LetOne();
  clock_.AwaitWaiters(1);
  store_.broken = false;
  clock_.Advance(absl::Milliseconds(2300));
  store_.AwaitHeld();
  Connect(0);
  Connect(1);
  clock_.Advance(absl::Milliseconds(4900));
  store_.Release();
  ExpectBothServeInView(1);
  EXPECT_GT(sinks_[1]->heard, 0) << "greeted";
  // And they go on.
  for (int i = 0; i < 30; ++i) {
    clock_.Advance(absl::Milliseconds(100));
    Heartbeat(0);
    Heartbeat(1);
    Group();
  }
  ExpectBothServeInView(1);
}

TEST_F(RuntimeTest, AMachineThatStoodStillGivesLeasesAnewAndOnlyThen) {
  FormGroup();
  clock_.Advance(absl::Seconds(10));
  ExpectBothServeInView(1);
  // Worker 1 has gone meanwhile.
  for (int i = 0; i < 19; ++i) {
    clock_.Advance(absl::Milliseconds(100));
    Heartbeat(0);
    EXPECT_EQ(Group().view().members_size(), 2) << i;
  }
  clock_.Advance(absl::Milliseconds(100));
  Heartbeat(0);
  const v1::Group group = Group();
  ASSERT_EQ(group.view().members_size(), 1);
  EXPECT_EQ(group.view().members(0).worker(), "w0");
}

TEST_F(RuntimeTest, ASessionLostBeforeTheLoopCameToItNeverWas) {
  FormGroup();
  HoldTheLoop();
  Connect(1);
  const std::shared_ptr<Sink> lost = sinks_[1];
  Connect(1);
  EXPECT_EQ(lost.use_count(), 1) << "its stream can go";
  store_.Release();
  ExpectBothServeInView(1);
  EXPECT_EQ(lost->heard, 0);
  EXPECT_GT(sinks_[1]->heard, 0);
}

TEST_F(RuntimeTest, StopEndsSessionsThatTheLoopNeverCameTo) {
  FormGroup();
  HoldTheLoop();
  Connect(1);
  store_.broken = true;
  store_.LetOne();
  store_.Release();
  runtime_->Stop();
  EXPECT_EQ(sinks_[1]->closed, absl::StatusCode::kUnavailable);
  EXPECT_EQ(sinks_[1].use_count(), 1) << "its stream can go";
}

TEST_F(RuntimeTest, NothingIsStoredBehindAWriteThatWasGivenUp) {
  FormGroup();
  const v1::Plan plan = CreatePlan();
  ASSERT_EQ(plan.state(), v1::PLAN_STATE_PROPOSED);
  HoldTheLoop();
  // One batch of events: an approval whose caller does not wait for it, and a worker that is back.
  EXPECT_EQ(Approve(plan.id(), clock_.Now()).status().code(), absl::StatusCode::kDeadlineExceeded);
  Connect(1);
  store_.LetOne();
  store_.AwaitHeld();
  store_.broken = true;
  store_.LetOne();
  const auto before = store_.contents();
  store_.broken = false;
  store_.Release();
  runtime_->Stop();
  EXPECT_TRUE(store_.contents() == before);
  store::GroupRecord record;
  ASSERT_TRUE(record.ParseFromString(before.at("group/g")));
  EXPECT_EQ(record.active_plan(), "");

  StartRuntime();
  Connect(0);
  Connect(1);
  const absl::StatusOr<v1::Plan> approved = Approve(plan.id(), absl::InfiniteFuture());
  ASSERT_TRUE(approved.ok()) << approved.status();
  EXPECT_EQ(approved->state(), v1::PLAN_STATE_PREPARING);
}

}  // namespace
}  // namespace ballast
