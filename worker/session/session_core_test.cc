#include "worker/session/session_core.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kStart = absl::FromUnixSeconds(1000);

v1::Hello BaseHello() {
  v1::Hello hello;
  hello.set_worker("w0");
  hello.set_group("g");
  hello.set_report_stream(77);
  hello.set_version("1.3.0");
  return hello;
}

v1::ConnectResponse Welcome(uint64_t term = 3, uint64_t incarnation = 11) {
  v1::ConnectResponse message;
  message.mutable_welcome()->set_term(term);
  message.mutable_welcome()->set_incarnation(incarnation);
  message.mutable_welcome()->mutable_lease()->set_seconds(2);
  message.mutable_welcome()->mutable_heartbeat_interval()->set_nanos(400'000'000);
  message.mutable_welcome()->mutable_report_interval()->set_seconds(1);
  return message;
}

v1::Placement PlacementOf(uint64_t epoch) {
  return ToProto({.epoch = Epoch(epoch),
                  .shares_version = SharesVersion(1),
                  .num_layers = 1,
                  .num_experts = 1,
                  .workers = {"w0"},
                  .replicas = {{}}});
}

v1::ConnectResponse InstallView(uint64_t view, uint64_t epoch, uint64_t term = 3, uint64_t incarnation = 11) {
  v1::ConnectResponse message;
  v1::InstallView& install = *message.mutable_install_view();
  install.set_term(term);
  install.set_group("g");
  install.mutable_view()->set_view(view);
  v1::Member& member = *install.mutable_view()->add_members();
  member.set_worker("w0");
  member.set_incarnation(incarnation);
  *install.mutable_placement() = PlacementOf(epoch);
  return message;
}

v1::ConnectResponse PrepareWave(uint64_t view, uint64_t epoch) {
  v1::ConnectResponse message;
  v1::PrepareWave& prepare = *message.mutable_prepare_wave();
  prepare.set_term(3);
  prepare.set_group("g");
  prepare.set_view(view);
  prepare.set_plan("p");
  *prepare.mutable_placement() = PlacementOf(epoch);
  prepare.mutable_deadline()->set_seconds(2000);
  return message;
}

v1::ConnectResponse CommitWave(uint64_t epoch) {
  v1::ConnectResponse message;
  message.mutable_commit_wave()->set_term(3);
  message.mutable_commit_wave()->set_group("g");
  message.mutable_commit_wave()->set_epoch(epoch);
  return message;
}

v1::ConnectResponse AbortWave(uint64_t epoch) {
  v1::ConnectResponse message;
  message.mutable_abort_wave()->set_term(3);
  message.mutable_abort_wave()->set_group("g");
  message.mutable_abort_wave()->set_epoch(epoch);
  return message;
}

// One word an action.
std::string Show(const SessionActions& actions) {
  struct Namer {
    std::string operator()(const OpenStream& a) const {
      return "open(inc=" + std::to_string(a.hello.incarnation()) + ",view=" + std::to_string(a.hello.view()) +
             ",epoch=" + std::to_string(a.hello.epoch()) + ",prepared=" + std::to_string(a.hello.prepared_epoch()) +
             ")";
    }
    std::string operator()(const CloseStream&) const { return "close"; }
    std::string operator()(const SendMessage& a) const {
      switch (a.message.message_case()) {
        case v1::ConnectRequest::kHeartbeat:
          return "heartbeat" + std::to_string(a.message.heartbeat().number());
        case v1::ConnectRequest::kPlacementLoaded:
          return a.message.placement_loaded().error().empty() ? "loaded" : "load-failed";
        case v1::ConnectRequest::kViewInstalled:
          return (a.message.view_installed().error().empty() ? "installed" : "install-failed") +
                 std::to_string(a.message.view_installed().view());
        case v1::ConnectRequest::kPeerLost:
          return "peer-lost";
        case v1::ConnectRequest::kWavePrepared:
          return "prepared" + std::to_string(a.message.wave_prepared().epoch());
        case v1::ConnectRequest::kWaveFailed:
          return "failed" + std::to_string(a.message.wave_failed().epoch());
        case v1::ConnectRequest::kEpochInForce:
          return "in-force" + std::to_string(a.message.epoch_in_force().epoch());
        case v1::ConnectRequest::kLeaving:
          return "leaving";
        default:
          return "message";
      }
    }
    std::string operator()(const LoadReplicas& a) const { return "load" + std::to_string(a.placement.epoch.value()); }
    std::string operator()(const JoinView& a) const { return "join" + std::to_string(a.view.view()); }
    std::string operator()(const LeaveView&) const { return "leave"; }
    std::string operator()(const PrepareMoves& a) const {
      return "prepare" + std::to_string(a.placement.epoch.value());
    }
    std::string operator()(const CommitEpoch& a) const { return "commit" + std::to_string(a.epoch.value()); }
    std::string operator()(const AbortEpoch& a) const { return "abort" + std::to_string(a.epoch.value()); }
    std::string operator()(const ForgetReports& a) const { return "forget" + std::to_string(a.sequence); }
    std::string operator()(const NotePeerLoads& a) const { return "loads(" + a.ack.loads(0).worker() + ")"; }
    std::string operator()(const NoteTaskProfiles& a) const { return "profiles(" + a.profiles.tasks(0).task() + ")"; }
    std::string operator()(const NoteDrain& a) const {
      return "drain(" + v1::DrainState_Name(a.state) + a.reason + ")";
    }
    std::string operator()(const ReportEvery&) const { return "report"; }
    std::string operator()(const GiveUp&) const { return "give-up"; }
  };
  std::string out;
  for (const SessionAction& action : actions) {
    if (!out.empty()) out += " ";
    out += std::visit(Namer{}, action);
  }
  return out;
}

class SessionCoreTest : public ::testing::Test {
 protected:
  SessionActions Tick() { return core_.OnTick(now_, {}); }
  SessionActions TickWhenDue() {
    now_ = std::max(now_, core_.next_tick());
    return Tick();
  }
  SessionActions Receive(const v1::ConnectResponse& message) { return core_.OnMessage(message, now_); }
  SessionActions Close(absl::StatusCode code) { return core_.OnClosed(absl::Status(code, "why"), now_); }

  void Greet() {
    ASSERT_THAT(Show(TickWhenDue()), HasSubstr("open("));
    Receive(Welcome());
    ASSERT_TRUE(core_.in_session());
    TickWhenDue();
  }
  void Serve(uint64_t view, uint64_t epoch) {
    ASSERT_EQ(Show(Receive(InstallView(view, epoch))), "join" + std::to_string(view));
    ASSERT_EQ(Show(core_.OnViewInstalled(ViewId(view), Epoch(epoch), absl::OkStatus(), {})),
              "installed" + std::to_string(view));
  }
  void Prepare(uint64_t view, uint64_t epoch) {
    ASSERT_EQ(Show(Receive(PrepareWave(view, epoch))), "prepare" + std::to_string(epoch));
    v1::WavePrepared prepared;
    prepared.set_epoch(epoch);
    ASSERT_EQ(Show(core_.OnWavePrepared(prepared)), "prepared" + std::to_string(epoch));
  }

  absl::Time now_ = kStart;
  SessionCore core_{BaseHello(), SessionOptions{}};
};

TEST_F(SessionCoreTest, GreetsThenBeats) {
  EXPECT_EQ(Show(Tick()), "open(inc=0,view=0,epoch=0,prepared=0)");
  EXPECT_THAT(Tick(), IsEmpty());
  v1::ConnectResponse welcome = Welcome();
  welcome.mutable_welcome()->set_reports_stored(5);
  EXPECT_EQ(Show(Receive(welcome)), "forget5 report");
  EXPECT_EQ(core_.term(), Term(3));
  EXPECT_EQ(core_.incarnation(), 11u);
  EXPECT_EQ(Show(Tick()), "heartbeat1");
  EXPECT_EQ(core_.next_tick(), now_ + absl::Milliseconds(400));
  EXPECT_THAT(Tick(), IsEmpty());
  EXPECT_EQ(Show(TickWhenDue()), "heartbeat2");
}

TEST_F(SessionCoreTest, NoWelcomeInTime_TriesAgain) {
  Tick();
  now_ = core_.next_tick();
  EXPECT_EQ(Show(Tick()), "close");
  EXPECT_GT(core_.next_tick(), now_);
  EXPECT_THAT(Show(TickWhenDue()), HasSubstr("open("));
}

TEST_F(SessionCoreTest, CommandBeforeWelcome_EndsTheStream) {
  Tick();
  EXPECT_EQ(Show(Receive(CommitWave(2))), "close");
  EXPECT_FALSE(core_.in_session());
}

TEST_F(SessionCoreTest, BackoffGrowsToItsLimitAndStartsAnew) {
  absl::Duration last;
  for (int i = 0; i < 10; ++i) {
    ASSERT_THAT(Show(TickWhenDue()), HasSubstr("open("));
    Close(absl::StatusCode::kUnavailable);
    const absl::Duration wait = core_.next_tick() - now_;
    EXPECT_GE(wait, absl::Milliseconds(100));
    EXPECT_LE(wait, absl::Seconds(1.25));
    if (i < 3) {
      EXPECT_GT(wait, last);
    }
    last = wait;
  }
  Greet();
  Close(absl::StatusCode::kUnavailable);
  EXPECT_LT(core_.next_tick() - now_, absl::Milliseconds(126));
  // The lease of 2 s is known now: the controller is found well within it.
  for (int i = 0; i < 10; ++i) {
    TickWhenDue();
    Close(absl::StatusCode::kUnavailable);
    EXPECT_LE(core_.next_tick() - now_, absl::Milliseconds(313));
  }
}

TEST_F(SessionCoreTest, StreamErrors) {
  struct Case {
    absl::StatusCode code;
    const char* actions;
    absl::Duration at_least, at_most;
  };
  const Case cases[] = {
      {absl::StatusCode::kInvalidArgument, "", absl::Seconds(10), absl::Seconds(10)},
      {absl::StatusCode::kPermissionDenied, "", absl::Seconds(10), absl::Seconds(10)},
      {absl::StatusCode::kFailedPrecondition, "", absl::Seconds(10), absl::Seconds(10)},
      {absl::StatusCode::kAlreadyExists, "", absl::Milliseconds(100), absl::Milliseconds(126)},
      {absl::StatusCode::kAborted, "leave", absl::Milliseconds(100), absl::Milliseconds(126)},
      {absl::StatusCode::kUnavailable, "", absl::Milliseconds(100), absl::Milliseconds(126)},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StatusCodeToString(c.code));
    core_ = SessionCore(BaseHello(), SessionOptions{});
    Greet();
    EXPECT_EQ(Show(Close(c.code)), c.actions);
    EXPECT_GE(core_.next_tick() - now_, c.at_least);
    EXPECT_LE(core_.next_tick() - now_, c.at_most);
  }
}

TEST_F(SessionCoreTest, RefusedBeforeTheFirstSession_GivesUp) {
  for (const absl::StatusCode code : {absl::StatusCode::kInvalidArgument, absl::StatusCode::kPermissionDenied}) {
    core_ = SessionCore(BaseHello(), SessionOptions{});
    TickWhenDue();
    EXPECT_EQ(Show(Close(code)), "give-up");
    EXPECT_EQ(core_.next_tick(), absl::InfiniteFuture());
  }
}

TEST_F(SessionCoreTest, Reconnect_SaysWhatIsInForceAndRepeatsResults) {
  Greet();
  Serve(4, 6);
  Prepare(4, 7);
  Close(absl::StatusCode::kUnavailable);
  EXPECT_THAT(core_.OnPeersLost(ViewId(4), {1}, "closed"), IsEmpty());
  EXPECT_EQ(Show(TickWhenDue()), "open(inc=11,view=4,epoch=6,prepared=7)");
  EXPECT_EQ(Show(Receive(Welcome())), "installed4 peer-lost prepared7 report");
}

TEST_F(SessionCoreTest, DeclaredDead_StartsAnew) {
  Greet();
  Serve(4, 6);
  Prepare(4, 7);
  EXPECT_EQ(Show(Close(absl::StatusCode::kAborted)), "leave");
  EXPECT_EQ(Show(TickWhenDue()), "open(inc=0,view=0,epoch=0,prepared=0)");
  EXPECT_EQ(Show(Receive(Welcome(3, 12))), "report");
  EXPECT_EQ(core_.incarnation(), 12u);
}

TEST_F(SessionCoreTest, SilentController_SessionMadeAnew) {
  Greet();
  for (int i = 0; i < 20; ++i) {
    TickWhenDue();
    if (!core_.in_session()) break;
  }
  EXPECT_FALSE(core_.in_session());
  EXPECT_GE(now_ - kStart, absl::Seconds(2));
  EXPECT_LE(now_ - kStart, absl::Seconds(3));
  // Acknowledged, it lasts.
  Greet();
  v1::ConnectResponse ack;
  ack.mutable_heartbeat_ack();
  for (int i = 0; i < 20; ++i) {
    Receive(ack);
    TickWhenDue();
  }
  EXPECT_TRUE(core_.in_session());
}

TEST_F(SessionCoreTest, LoadsOfPeers_AreNoted) {
  Greet();
  v1::ConnectResponse ack;
  ack.mutable_heartbeat_ack()->set_number(1);
  EXPECT_EQ(Show(Receive(ack)), "");
  ack.mutable_heartbeat_ack()->add_loads()->set_worker("w1");
  EXPECT_EQ(Show(Receive(ack)), "loads(w1)");
}

TEST_F(SessionCoreTest, TaskProfiles_AreNoted) {
  Greet();
  v1::ConnectResponse message;
  message.mutable_task_profiles()->add_tasks()->set_task("code");
  EXPECT_EQ(Show(Receive(message)), "profiles(code)");
}

TEST_F(SessionCoreTest, LowerTerm_IsNotObeyed) {
  Greet();
  EXPECT_EQ(Show(Receive(InstallView(4, 6, /*term=*/5))), "join4");
  EXPECT_EQ(core_.term(), Term(5));
  core_.OnViewInstalled(ViewId(4), Epoch(6), absl::OkStatus(), {});
  EXPECT_THAT(Receive(InstallView(5, 6, /*term=*/4)), IsEmpty());
  EXPECT_THAT(Receive(PrepareWave(4, 7)), IsEmpty());  // of term 3
  Close(absl::StatusCode::kUnavailable);
  TickWhenDue();
  EXPECT_EQ(Show(Receive(Welcome(4))), "close");
}

TEST_F(SessionCoreTest, OtherGroup_IsNotObeyed) {
  Greet();
  v1::ConnectResponse message = InstallView(4, 6);
  message.mutable_install_view()->set_group("h");
  EXPECT_THAT(Receive(message), IsEmpty());
}

TEST_F(SessionCoreTest, LoadPlacement) {
  Greet();
  v1::ConnectResponse message;
  message.mutable_load_placement()->set_term(3);
  message.mutable_load_placement()->set_group("g");
  *message.mutable_load_placement()->mutable_placement() = PlacementOf(6);
  EXPECT_EQ(Show(Receive(message)), "load6");
  EXPECT_EQ(Show(core_.OnPlacementLoaded(Epoch(6), absl::OkStatus())), "loaded");
  v1::ConnectResponse bad = message;
  bad.mutable_load_placement()->mutable_placement()->clear_replicas();
  EXPECT_EQ(Show(Receive(bad)), "load-failed");
  Serve(4, 6);
  EXPECT_EQ(Show(Receive(message)), "load-failed");
}

TEST_F(SessionCoreTest, InstallView_OnlyForward) {
  Greet();
  EXPECT_EQ(Show(Receive(InstallView(4, 6))), "join4");
  EXPECT_THAT(Receive(InstallView(4, 6)), IsEmpty());
  // A newer one replaces the one that is being installed.
  EXPECT_EQ(Show(Receive(InstallView(5, 6))), "join5");
  EXPECT_THAT(core_.OnViewInstalled(ViewId(4), Epoch(6), absl::CancelledError("newer"), {}), IsEmpty());
  EXPECT_EQ(Show(core_.OnViewInstalled(ViewId(5), Epoch(6), absl::OkStatus(), {})), "installed5");
  EXPECT_EQ(core_.view(), ViewId(5));
  EXPECT_EQ(core_.epoch(), Epoch(6));
  EXPECT_THAT(Receive(InstallView(4, 6)), IsEmpty());
  EXPECT_EQ(Show(Receive(InstallView(5, 6))), "installed5");
  EXPECT_EQ(Show(Receive(InstallView(6, 6, 3, /*incarnation=*/10))), "install-failed6");
  EXPECT_EQ(core_.view(), ViewId(5));
}

TEST_F(SessionCoreTest, InstallView_FailureNamesPeers) {
  Greet();
  Receive(InstallView(4, 6));
  const SessionActions actions = core_.OnViewInstalled(ViewId(4), Epoch(6), absl::DeadlineExceededError("rank 2"), {2});
  ASSERT_EQ(Show(actions), "install-failed4");
  EXPECT_EQ(std::get<SendMessage>(actions[0]).message.view_installed().peer_ranks(0), 2);
  EXPECT_EQ(core_.view(), ViewId(0));
}

TEST_F(SessionCoreTest, Wave_PrepareCommitInForce) {
  Greet();
  Serve(4, 6);
  Prepare(4, 7);
  EXPECT_EQ(Show(Receive(PrepareWave(4, 7))), "prepared7");
  EXPECT_EQ(Show(Receive(CommitWave(7))), "commit7");
  EXPECT_EQ(Show(core_.OnEpochInForce(ViewId(4), Epoch(7), StepId(9))), "in-force7");
  EXPECT_EQ(core_.epoch(), Epoch(7));
  // The answer was lost: it is said again.
  EXPECT_EQ(Show(Receive(CommitWave(7))), "in-force7");
  EXPECT_EQ(Show(Receive(PrepareWave(4, 7))), "failed7");
}

TEST_F(SessionCoreTest, Wave_OfAnotherViewOrUnprepared) {
  Greet();
  Serve(4, 6);
  EXPECT_EQ(Show(Receive(PrepareWave(3, 7))), "failed7");
  EXPECT_THAT(Receive(CommitWave(7)), IsEmpty());
  EXPECT_THAT(Receive(AbortWave(7)), IsEmpty());
}

TEST_F(SessionCoreTest, Wave_AbortedWhilePreparing) {
  Greet();
  Serve(4, 6);
  EXPECT_EQ(Show(Receive(PrepareWave(4, 7))), "prepare7");
  EXPECT_THAT(Receive(PrepareWave(4, 7)), IsEmpty());
  EXPECT_EQ(Show(Receive(AbortWave(7))), "abort7");
  v1::WavePrepared late;
  late.set_epoch(7);
  EXPECT_THAT(core_.OnWavePrepared(late), IsEmpty());
  Prepare(4, 8);
  EXPECT_EQ(Show(Receive(AbortWave(8))), "abort8");
  EXPECT_THAT(Receive(CommitWave(8)), IsEmpty());
}

TEST_F(SessionCoreTest, Wave_ReplacedByAnother) {
  Greet();
  Serve(4, 6);
  Prepare(4, 7);
  EXPECT_EQ(Show(Receive(PrepareWave(4, 8))), "abort7 prepare8");
}

TEST_F(SessionCoreTest, CommittedEpochComesWithTheView) {
  Greet();
  Serve(4, 6);
  Prepare(4, 7);
  Serve(5, 7);
  Close(absl::StatusCode::kUnavailable);
  EXPECT_EQ(Show(TickWhenDue()), "open(inc=11,view=5,epoch=7,prepared=0)");
}

TEST_F(SessionCoreTest, PeersLost_OfAnOldViewIsNotSaid) {
  Greet();
  Serve(4, 6);
  EXPECT_THAT(core_.OnPeersLost(ViewId(3), {1}, "closed"), IsEmpty());
  EXPECT_EQ(Show(core_.OnPeersLost(ViewId(4), {1}, "closed")), "peer-lost");
}

TEST_F(SessionCoreTest, Reports_OnlyOfThisProcess) {
  Greet();
  v1::ConnectResponse stored;
  stored.mutable_reports_stored()->set_report_stream(76);
  stored.mutable_reports_stored()->set_sequence(3);
  EXPECT_THAT(Receive(stored), IsEmpty());
  stored.mutable_reports_stored()->set_report_stream(77);
  EXPECT_EQ(Show(Receive(stored)), "forget3");
  EXPECT_EQ(Show(core_.OnReport({})), "message");
  Close(absl::StatusCode::kUnavailable);
  EXPECT_THAT(core_.OnReport({}), IsEmpty());
}

TEST_F(SessionCoreTest, Leaving_IsSaidInEverySession) {
  EXPECT_THAT(core_.OnLeaving("drain"), IsEmpty());
  TickWhenDue();
  EXPECT_EQ(Show(Receive(Welcome())), "leaving report");
}

TEST_F(SessionCoreTest, DrainStatus_IsPassedOnUnlessItsTermIsOld) {
  Greet();
  v1::ConnectResponse message;
  message.mutable_drain_status()->set_term(3);
  message.mutable_drain_status()->set_group("g");
  message.mutable_drain_status()->set_state(v1::DRAIN_STATE_STUCK);
  message.mutable_drain_status()->set_reason(": full");
  EXPECT_EQ(Show(Receive(message)), "drain(DRAIN_STATE_STUCK: full)");
  message.mutable_drain_status()->set_term(2);
  EXPECT_THAT(Receive(message), IsEmpty());
}

TEST_F(SessionCoreTest, AControllerTooFarOffIsNotObeyed) {
  TickWhenDue();
  v1::ConnectResponse welcome = Welcome();
  welcome.mutable_welcome()->set_version("1.5.0");
  EXPECT_EQ(Show(Receive(welcome)), "close");
  EXPECT_FALSE(core_.in_session());
  EXPECT_EQ(core_.next_tick(), now_ + SessionOptions{}.refused_backoff);
  for (const char* version : {"1.4.0", "1.3.9", "1.2.1", ""}) {
    now_ = core_.next_tick();
    TickWhenDue();
    welcome.mutable_welcome()->set_version(version);
    Receive(welcome);
    EXPECT_TRUE(core_.in_session()) << version;
    Close(absl::StatusCode::kUnavailable);
  }
}

}  // namespace
}  // namespace ballast
