#include "worker/session/session_core.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/release.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

absl::Duration FromProtoDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

absl::Time FromProtoTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

}  // namespace

SessionActions SessionCore::SendNow(v1::ConnectRequest message) const {
  SessionActions actions;
  if (in_session()) actions.push_back(SendMessage{std::move(message)});
  return actions;
}

SessionActions SessionCore::Keep(Kept kind, v1::ConnectRequest message) {
  kept_[kind] = message;
  return SendNow(std::move(message));
}

absl::Duration SessionCore::NextBackoff() {
  const absl::Duration most = std::min(options_.max_backoff, lease_ / 8);
  absl::Duration wait = options_.min_backoff;
  for (int i = 0; i < failed_attempts_ && wait < most; ++i) wait *= 2;
  ++failed_attempts_;
  // Up to a quarter longer, by name, so that a group's workers do not all come back in the same moment.
  const size_t spread = std::hash<std::string>()(absl::StrCat(hello_.worker(), "/", failed_attempts_)) % 256;
  return std::min(wait, most) * (1 + static_cast<double>(spread) / 1024);
}

void SessionCore::Retry(absl::Time now, absl::Duration after) {
  state_ = State::kDisconnected;
  greeting_deadline_ = absl::InfiniteFuture();
  Schedule(now + after);
}

SessionActions SessionCore::OnTick(absl::Time now, const WorkerStats& stats) {
  SessionActions actions;
  if (now < next_tick_) return actions;
  switch (state_) {
    case State::kStopped:
      Schedule(absl::InfiniteFuture());
      return actions;
    case State::kDisconnected:
      state_ = State::kGreeting;
      greeting_deadline_ = now + options_.greeting_timeout;
      Schedule(greeting_deadline_);
      actions.push_back(OpenStream{hello_});
      return actions;
    case State::kGreeting:
      actions.push_back(CloseStream{"the controller did not answer Hello"});
      Retry(now, NextBackoff());
      return actions;
    case State::kInSession:
      break;
  }
  if (now - last_acknowledged_ >= lease_) {
    Log(Severity::kWarning, "controller is silent: making the session anew",
        {{"silent", absl::FormatDuration(now - last_acknowledged_)}, {"lease", absl::FormatDuration(lease_)}});
    actions.push_back(CloseStream{"no heartbeat was acknowledged for a lease"});
    Retry(now, NextBackoff());
    return actions;
  }
  v1::ConnectRequest message;
  v1::Heartbeat& heartbeat = *message.mutable_heartbeat();
  heartbeat.set_number(++heartbeats_);
  heartbeat.set_step(stats.step);
  heartbeat.set_requests_running(stats.requests_running);
  heartbeat.set_requests_waiting(stats.requests_waiting);
  heartbeat.set_kv_cache_used_ratio(stats.kv_cache_used_ratio);
  Schedule(now + heartbeat_interval_);
  return SendNow(std::move(message));
}

SessionActions SessionCore::OnMessage(const v1::ConnectResponse& message, absl::Time now) {
  if (state_ == State::kDisconnected || state_ == State::kStopped) return {};
  if ((state_ == State::kGreeting) != message.has_welcome()) {
    SessionActions actions;
    actions.push_back(CloseStream{"Welcome is the first message of a session, and only the first"});
    Retry(now, NextBackoff());
    return actions;
  }
  switch (message.message_case()) {
    case v1::ConnectResponse::kWelcome:
      return OnWelcome(message.welcome(), now);
    case v1::ConnectResponse::kHeartbeatAck: {
      last_acknowledged_ = now;
      SessionActions actions;
      if (message.heartbeat_ack().loads_size() > 0) actions.push_back(NotePeerLoads{message.heartbeat_ack()});
      return actions;
    }
    case v1::ConnectResponse::kReportsStored: {
      SessionActions actions;
      if (message.reports_stored().report_stream() == hello_.report_stream()) {
        actions.push_back(ForgetReports{message.reports_stored().sequence()});
      }
      return actions;
    }
    case v1::ConnectResponse::kLoadPlacement: {
      const v1::LoadPlacement& command = message.load_placement();
      if (!Obey(command.term(), command.group(), "LoadPlacement")) return {};
      absl::StatusOr<Placement> placement = FromProto(command.placement());
      if (!placement.ok()) return OnPlacementLoaded(Epoch(command.placement().epoch()), placement.status());
      if (hello_.view() != 0) {
        return OnPlacementLoaded(placement->epoch, absl::FailedPreconditionError(
                                                       absl::StrCat("this incarnation serves in view ", hello_.view(),
                                                                    "; slots are loaded outside of views alone")));
      }
      SessionActions actions;
      actions.push_back(LoadReplicas{*std::move(placement)});
      return actions;
    }
    case v1::ConnectResponse::kInstallView:
      return OnInstallView(message.install_view());
    case v1::ConnectResponse::kPrepareWave:
      return OnPrepareWave(message.prepare_wave());
    case v1::ConnectResponse::kCommitWave: {
      const v1::CommitWave& command = message.commit_wave();
      if (!Obey(command.term(), command.group(), "CommitWave")) return {};
      // In force already: the answer was lost.
      if (command.epoch() <= hello_.epoch()) {
        const auto kept = kept_.find(Kept::kEpochInForce);
        return kept == kept_.end() ? SessionActions{} : SendNow(kept->second);
      }
      if (command.epoch() != hello_.prepared_epoch()) {
        Log(Severity::kError, "CommitWave of an epoch that is not prepared here",
            {{"epoch", command.epoch()}, {"prepared", hello_.prepared_epoch()}});
        return {};
      }
      SessionActions actions;
      actions.push_back(CommitEpoch{Epoch(command.epoch())});
      return actions;
    }
    case v1::ConnectResponse::kAbortWave: {
      const v1::AbortWave& command = message.abort_wave();
      if (!Obey(command.term(), command.group(), "AbortWave")) return {};
      SessionActions actions;
      const bool known =
          command.epoch() != 0 && (command.epoch() == hello_.prepared_epoch() || command.epoch() == preparing_.value());
      if (!known) return actions;
      if (hello_.prepared_epoch() == command.epoch()) hello_.set_prepared_epoch(0);
      preparing_ = Epoch();
      kept_.erase(Kept::kWave);
      actions.push_back(AbortEpoch{Epoch(command.epoch()), command.reason()});
      return actions;
    }
    case v1::ConnectResponse::kDrainStatus: {
      const v1::DrainStatus& status = message.drain_status();
      if (!Obey(status.term(), status.group(), "DrainStatus")) return {};
      SessionActions actions;
      actions.push_back(NoteDrain{status.state(), status.reason()});
      return actions;
    }
    case v1::ConnectResponse::kTaskProfiles: {
      SessionActions actions;
      actions.push_back(NoteTaskProfiles{message.task_profiles()});
      return actions;
    }
    case v1::ConnectResponse::MESSAGE_NOT_SET:
      // A newer controller's message that this worker does not know.
      return {};
  }
  return {};
}

SessionActions SessionCore::OnWelcome(const v1::Welcome& welcome, absl::Time now) {
  SessionActions actions;
  if (welcome.term() < term_.value()) {
    actions.push_back(CloseStream{
        absl::StrCat("the controller's term is ", welcome.term(), "; this worker has obeyed ", term_.value())});
    Retry(now, NextBackoff());
    return actions;
  }
  // Controllers before 0.1.0 do not say theirs.
  if (const absl::Status skew =
          welcome.version().empty() ? absl::OkStatus() : CheckSkew(hello_.version(), welcome.version());
      !skew.ok()) {
    Log(Severity::kError, "the controller's version does not fit this worker's; retrying slowly", {{"status", skew}});
    actions.push_back(CloseStream{std::string(skew.message())});
    Retry(now, options_.refused_backoff);
    return actions;
  }
  term_ = Term(welcome.term());
  hello_.set_last_term(welcome.term());
  hello_.set_incarnation(welcome.incarnation());
  heartbeat_interval_ = std::max(FromProtoDuration(welcome.heartbeat_interval()), absl::Milliseconds(10));
  lease_ = std::max(FromProtoDuration(welcome.lease()), 2 * heartbeat_interval_);
  last_acknowledged_ = now;
  failed_attempts_ = 0;
  greeting_deadline_ = absl::InfiniteFuture();
  state_ = State::kInSession;
  // The first heartbeat follows at once.
  Schedule(now);
  if (welcome.reports_stored() > 0) actions.push_back(ForgetReports{welcome.reports_stored()});
  for (const auto& [kind, message] : kept_) actions.push_back(SendMessage{message});
  const absl::Duration interval = FromProtoDuration(welcome.report_interval());
  actions.push_back(ReportEvery{interval > absl::ZeroDuration() ? interval : absl::Seconds(1)});
  Log(Severity::kInfo, "in session",
      {{"worker", hello_.worker()}, {"term", welcome.term()}, {"incarnation", welcome.incarnation()}});
  return actions;
}

bool SessionCore::Obey(uint64_t term, const std::string& group, std::string_view command) {
  if (term < term_.value()) {
    Log(Severity::kWarning, "command of a lower term refused",
        {{"command", command}, {"term", term}, {"highest", term_.value()}});
    return false;
  }
  if (group != hello_.group()) {
    Log(Severity::kWarning, "command for another group refused",
        {{"command", command}, {"group", group}, {"own", hello_.group()}});
    return false;
  }
  term_ = Term(term);
  hello_.set_last_term(term);
  return true;
}

SessionActions SessionCore::OnInstallView(const v1::InstallView& command) {
  if (!Obey(command.term(), command.group(), "InstallView")) return {};
  const ViewId view(command.view().view());
  if (view.value() == hello_.view()) {
    const auto kept = kept_.find(Kept::kViewInstalled);
    return kept == kept_.end() ? SessionActions{} : SendNow(kept->second);
  }
  if (view.value() < hello_.view() || view <= joining_) {
    Log(Severity::kInfo, "old view ignored", {{"view", view}, {"installed", hello_.view()}, {"joining", joining_}});
    return {};
  }
  absl::StatusOr<Placement> placement = FromProto(command.placement());
  if (!placement.ok()) return OnViewInstalled(view, Epoch(), placement.status(), {});
  const auto& members = command.view().members();
  const bool member = std::any_of(members.begin(), members.end(), [this](const v1::Member& m) {
    return m.worker() == hello_.worker() && m.incarnation() == hello_.incarnation();
  });
  if (!member) {
    return OnViewInstalled(view, Epoch(), absl::InvalidArgumentError("this worker is not a member of the view"), {});
  }
  joining_ = view;
  kept_.erase(Kept::kPeerLost);
  SessionActions actions;
  actions.push_back(JoinView{command.view(), *std::move(placement)});
  return actions;
}

SessionActions SessionCore::OnPrepareWave(const v1::PrepareWave& command) {
  if (!Obey(command.term(), command.group(), "PrepareWave")) return {};
  const Epoch epoch(command.placement().epoch());
  if (command.view() != hello_.view()) {
    return OnWaveFailed(
        epoch, absl::StrCat("PrepareWave is for view ", command.view(), "; this worker is in view ", hello_.view()));
  }
  if (epoch == preparing_) return {};
  if (epoch.value() == hello_.prepared_epoch()) {
    const auto kept = kept_.find(Kept::kWave);
    return kept == kept_.end() ? SessionActions{} : SendNow(kept->second);
  }
  if (epoch.value() <= hello_.epoch()) {
    return OnWaveFailed(epoch,
                        absl::StrCat("epoch ", epoch.value(), " is not above ", hello_.epoch(), ", which is in force"));
  }
  SessionActions actions;
  absl::StatusOr<Placement> placement = FromProto(command.placement());
  if (!placement.ok()) return OnWaveFailed(epoch, placement.status().ToString());
  // The controller has one rollout at a time: another epoch replaces the one before.
  const Epoch before = preparing_ != Epoch() ? preparing_ : Epoch(hello_.prepared_epoch());
  if (before != Epoch()) {
    actions.push_back(AbortEpoch{before, absl::StrCat("epoch ", epoch.value(), " is prepared instead")});
    hello_.set_prepared_epoch(0);
  }
  preparing_ = epoch;
  kept_.erase(Kept::kWave);
  actions.push_back(PrepareMoves{
      .plan = command.plan(),
      .view = ViewId(command.view()),
      .placement = *std::move(placement),
      .moves = {command.moves().begin(), command.moves().end()},
      .deadline = command.has_deadline() ? FromProtoTime(command.deadline()) : absl::InfiniteFuture(),
      .max_bytes_per_second = command.max_bytes_per_second(),
  });
  return actions;
}

SessionActions SessionCore::OnClosed(const absl::Status& status, absl::Time now) {
  SessionActions actions;
  if (state_ == State::kDisconnected || state_ == State::kStopped) return actions;
  const Severity severity = failed_attempts_ == 0 ? Severity::kWarning : Severity::kDebug;
  Log(severity, "session ended", {{"worker", hello_.worker()}, {"status", status}});
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kPermissionDenied:
      // Once welcome it serves on: the controller's certificates or configuration may be what changed.
      if (term_ == Term()) {
        state_ = State::kStopped;
        Schedule(absl::InfiniteFuture());
        actions.push_back(GiveUp{status});
        return actions;
      }
      [[fallthrough]];
    case absl::StatusCode::kFailedPrecondition:
      Log(Severity::kError, "the controller refuses this worker; retrying slowly", {{"status", status}});
      Retry(now, options_.refused_backoff);
      return actions;
    case absl::StatusCode::kAborted:
      hello_.set_incarnation(0);
      hello_.set_view(0);
      hello_.set_epoch(0);
      hello_.set_prepared_epoch(0);
      joining_ = ViewId();
      preparing_ = Epoch();
      kept_.clear();
      actions.push_back(LeaveView{std::string(status.message())});
      Retry(now, NextBackoff());
      return actions;
    default:
      Retry(now, NextBackoff());
      return actions;
  }
}

SessionActions SessionCore::OnPlacementLoaded(Epoch epoch, const absl::Status& status) {
  v1::ConnectRequest message;
  message.mutable_placement_loaded()->set_epoch(epoch.value());
  if (!status.ok()) message.mutable_placement_loaded()->set_error(status.ToString());
  return Keep(Kept::kPlacementLoaded, std::move(message));
}

SessionActions SessionCore::OnViewInstalled(ViewId view, Epoch epoch, const absl::Status& status,
                                            const std::vector<int32_t>& peer_ranks) {
  // Given up for a newer one, or for a new incarnation.
  if (view < joining_ || (joining_ == ViewId() && status.ok())) return {};
  v1::ConnectRequest message;
  v1::ViewInstalled& installed = *message.mutable_view_installed();
  installed.set_view(view.value());
  joining_ = ViewId();
  if (status.ok()) {
    hello_.set_view(view.value());
    hello_.set_epoch(std::max(hello_.epoch(), epoch.value()));
    // A committed epoch came with the view.
    if (hello_.prepared_epoch() != 0 && hello_.prepared_epoch() <= hello_.epoch()) hello_.set_prepared_epoch(0);
    kept_.erase(Kept::kPlacementLoaded);
    kept_.erase(Kept::kPeerLost);
    kept_.erase(Kept::kEpochInForce);
  } else {
    installed.set_error(status.ToString());
    for (const int32_t rank : peer_ranks) installed.add_peer_ranks(rank);
  }
  return Keep(Kept::kViewInstalled, std::move(message));
}

SessionActions SessionCore::OnPeersLost(ViewId view, const std::vector<int32_t>& ranks, std::string_view reason) {
  if (view.value() != hello_.view()) return {};
  v1::ConnectRequest message;
  v1::PeerLost& lost = *message.mutable_peer_lost();
  lost.set_view(view.value());
  for (const int32_t rank : ranks) lost.add_ranks(rank);
  lost.set_reason(std::string(reason));
  return Keep(Kept::kPeerLost, std::move(message));
}

SessionActions SessionCore::OnMoveProgress(const v1::MoveProgress& progress) {
  v1::ConnectRequest message;
  *message.mutable_move_progress() = progress;
  return SendNow(std::move(message));
}

SessionActions SessionCore::OnWavePrepared(const v1::WavePrepared& prepared) {
  // Aborted meanwhile.
  if (prepared.epoch() != preparing_.value()) return {};
  preparing_ = Epoch();
  hello_.set_prepared_epoch(prepared.epoch());
  v1::ConnectRequest message;
  *message.mutable_wave_prepared() = prepared;
  return Keep(Kept::kWave, std::move(message));
}

SessionActions SessionCore::OnWaveFailed(Epoch epoch, std::string_view error) {
  if (preparing_ == epoch) preparing_ = Epoch();
  v1::ConnectRequest message;
  message.mutable_wave_failed()->set_epoch(epoch.value());
  message.mutable_wave_failed()->set_error(std::string(error));
  return Keep(Kept::kWave, std::move(message));
}

SessionActions SessionCore::OnEpochInForce(ViewId view, Epoch epoch, StepId step) {
  if (epoch.value() > hello_.epoch()) hello_.set_epoch(epoch.value());
  if (hello_.prepared_epoch() != 0 && hello_.prepared_epoch() <= hello_.epoch()) hello_.set_prepared_epoch(0);
  kept_.erase(Kept::kWave);
  v1::ConnectRequest message;
  v1::EpochInForce& in_force = *message.mutable_epoch_in_force();
  in_force.set_view(view.value());
  in_force.set_epoch(epoch.value());
  in_force.set_step(step.value());
  return Keep(Kept::kEpochInForce, std::move(message));
}

SessionActions SessionCore::OnReport(v1::LoadReport report) {
  v1::ConnectRequest message;
  *message.mutable_load_report() = std::move(report);
  return SendNow(std::move(message));
}

SessionActions SessionCore::OnLeaving(std::string_view reason) {
  v1::ConnectRequest message;
  message.mutable_leaving()->set_reason(std::string(reason));
  return Keep(Kept::kLeaving, std::move(message));
}

}  // namespace ballast
