// What workers say.
#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/group/group.h"
#include "proto/base/release.h"
#include "proto/base/status_macros.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

constexpr size_t kMaxWorkerName = 253;
constexpr uint32_t kMaxSpeed = 1024;
// How far a worker's view and epoch may be above the group's, which then go on above them: more than any backup is
// behind, and far from where numbers begin anew.
constexpr uint64_t kMaxAhead = uint64_t{1} << 32;

absl::Status Malformed(std::string_view field, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("hello.", std::string(field), ": ", std::string(why)));
}

absl::Status CheckPositive(std::string_view field, int64_t value) {
  return value > 0 ? absl::OkStatus() : Malformed(field, absl::StrCat(value, " is not at least 1"));
}

}  // namespace

Group::Worker* Group::Find(SessionId session, std::string* name) {
  for (auto& [worker_name, worker] : workers_) {
    if (worker.session != session || !worker.alive) continue;
    *name = worker_name;
    return &worker;
  }
  return nullptr;
}

absl::Status Group::CheckModel(const v1::Hello& hello) const {
  const v1::ModelIdentity* model = nullptr;
  v1::CombineMode combine = options_.config.combine;
  std::string whose = "the group's";
  if (formed()) {
    model = &record_.model();
    combine = record_.combine();
  }
  for (const auto& [name, worker] : workers_) {
    if (!worker.alive || name == hello.worker()) continue;
    if (model == nullptr) {
      model = &worker.hello.model();
      if (combine == v1::COMBINE_MODE_UNSPECIFIED) combine = worker.hello.combine();
      whose = absl::StrCat("worker ", name, "'s");
    }
    if (hello.combine() == v1::COMBINE_MODE_EXACT && combine == v1::COMBINE_MODE_EXACT &&
        hello.kernel_fingerprint() != worker.hello.kernel_fingerprint()) {
      return absl::FailedPreconditionError(
          absl::StrCat("hello.kernel_fingerprint: '", hello.kernel_fingerprint(), "' is not worker ", name, "'s '",
                       worker.hello.kernel_fingerprint(), "': an exact group computes with one kind of kernels"));
    }
  }
  if (combine != v1::COMBINE_MODE_UNSPECIFIED && combine != hello.combine()) {
    return absl::FailedPreconditionError(absl::StrCat("hello.combine: ", v1::CombineMode_Name(hello.combine()),
                                                      " is not ", whose, " ", v1::CombineMode_Name(combine)));
  }
  if (model == nullptr) return absl::OkStatus();
  if (model->fingerprint() != hello.model().fingerprint()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "hello.model.fingerprint: ", hello.model().fingerprint(), " (", hello.model().name(), ") is not ", whose, " ",
        model->fingerprint(), " (", model->name(), "): another model revision is another group"));
  }
  if (model->SerializeAsString() != hello.model().SerializeAsString()) {
    return absl::FailedPreconditionError(absl::StrCat("hello.model: {", hello.model().ShortDebugString(), "} is not ",
                                                      whose, " {", model->ShortDebugString(), "}"));
  }
  return absl::OkStatus();
}

absl::Status Group::CheckCapacity(const v1::Hello& hello) const {
  const int32_t room = hello.slots() - hello.staging_slots();
  int32_t needed = 0;
  int32_t highest = 0;
  if (formed() && record_.last_view() != 0) {
    for (const Replica& replica : placement_.replicas) {
      if (placement_.workers[replica.worker] != hello.worker()) continue;
      ++needed;
      highest = std::max(highest, replica.slot + 1);
    }
  } else {
    needed = ContiguousSlots(hello.model().num_moe_layers(), hello.model().num_experts(), options_.config.size);
  }
  if (needed <= room && highest <= hello.slots()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("hello.slots: ", hello.slots(), " less ", hello.staging_slots(),
                                                    " for staging; the group's placement needs ",
                                                    std::max(needed, highest - hello.staging_slots())));
}

absl::Status Group::CheckHello(const v1::Hello& hello) const {
  if (hello.worker().empty()) return Malformed("worker", "is empty");
  if (hello.worker().size() > kMaxWorkerName) {
    return Malformed("worker", absl::StrCat(hello.worker().size(), " characters, at most ", kMaxWorkerName));
  }
  BALLAST_RETURN_IF_ERROR(CheckPositive("model.num_moe_layers", hello.model().num_moe_layers()));
  BALLAST_RETURN_IF_ERROR(CheckPositive("model.num_experts", hello.model().num_experts()));
  BALLAST_RETURN_IF_ERROR(CheckPositive("model.expert_bytes", hello.model().expert_bytes()));
  BALLAST_RETURN_IF_ERROR(CheckPositive("slots", hello.slots()));
  BALLAST_RETURN_IF_ERROR(CheckPositive("staging_slots", hello.staging_slots()));
  if (hello.model().fingerprint().empty()) return Malformed("model.fingerprint", "is empty");
  if (hello.data_address().empty()) return Malformed("data_address", "is empty");
  if (hello.serving_address().empty()) return Malformed("serving_address", "is empty");
  if (hello.combine() == v1::COMBINE_MODE_UNSPECIFIED) return Malformed("combine", "is unspecified");
  if (hello.report_stream() == 0) return Malformed("report_stream", "is 0");
  if (const absl::Status skew = CheckSkew(Version(), hello.version()); !skew.ok()) {
    return absl::Status(skew.code(), absl::StrCat("hello.version: ", skew.message()));
  }
  if (hello.speed() > kMaxSpeed) return Malformed("speed", absl::StrCat(hello.speed(), ", at most ", kMaxSpeed));
  if (static_cast<int64_t>(hello.model().num_moe_layers()) * hello.model().num_experts() > (int64_t{1} << 24)) {
    return Malformed("model", absl::StrCat(hello.model().num_moe_layers(), " layers of ", hello.model().num_experts(),
                                           " experts, at most 2^24 experts in all"));
  }

  if (hello.last_term() > term_.value()) {
    return absl::UnavailableError(absl::StrCat("this controller's term is ", term_.value(), ", the worker has obeyed ",
                                               hello.last_term(), ": a newer controller leads"));
  }
  for (const auto& [field, value, known] :
       {std::tuple("view", hello.view(), record_.last_view()), std::tuple("epoch", hello.epoch(), record_.last_epoch()),
        std::tuple("prepared_epoch", hello.prepared_epoch(), record_.last_epoch())}) {
    if (value > known && value - known > kMaxAhead) {
      return Malformed(field,
                       absl::StrCat(value, ", at most ", known + kMaxAhead, ", which is 2^32 above the group's"));
    }
  }
  if (hello.role() != options_.config.role) {
    return absl::FailedPreconditionError(absl::StrCat("hello.role: ", v1::GroupRole_Name(hello.role()),
                                                      " is not the group's ",
                                                      v1::GroupRole_Name(options_.config.role)));
  }

  const auto known = workers_.find(hello.worker());
  const bool alive = known != workers_.end() && known->second.alive;
  if (hello.incarnation() == 0) {
    if (alive && known->second.session != 0) {
      return absl::AlreadyExistsError(absl::StrCat("hello.worker: incarnation ", known->second.incarnation, " of ",
                                                   hello.worker(), " is connected"));
    }
  } else if (!alive || known->second.incarnation != hello.incarnation()) {
    return absl::AbortedError(absl::StrCat("hello.incarnation: ", hello.incarnation(), " of ", hello.worker(),
                                           " was declared dead or is not known"));
  }

  if (!alive) {
    if (record_.last_view() != 0) {
      if (std::find(placement_.workers.begin(), placement_.workers.end(), hello.worker()) == placement_.workers.end()) {
        return absl::FailedPreconditionError(absl::StrCat("hello.worker: ", hello.worker(), " is none of the ",
                                                          placement_.workers.size(), " workers of group ", name()));
      }
    } else {
      const auto others =
          std::count_if(workers_.begin(), workers_.end(), [](const auto& entry) { return entry.second.alive; });
      if (others >= options_.config.size) {
        return absl::FailedPreconditionError(
            absl::StrCat("hello.worker: group ", name(), " has its ", options_.config.size, " workers already"));
      }
    }
  }
  BALLAST_RETURN_IF_ERROR(CheckModel(hello));
  return CheckCapacity(hello);
}

void Group::Hello(SessionId session, const v1::Hello& hello, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  if (absl::Status status = CheckHello(hello); !status.ok()) {
    Say(turn, Severity::kWarning,
        absl::StrCat("worker '", hello.worker(), "' is refused: ", std::string(status.message())));
    turn.step.sends.emplace_back(CloseSession{session, std::move(status)});
    EndStep(turn);
    return;
  }
  Worker& worker = workers_[hello.worker()];
  if (hello.incarnation() == 0) {
    if (worker.alive) {
      Say(turn, Severity::kWarning,
          absl::StrCat("worker ", hello.worker(), " incarnation ", worker.incarnation,
                       " is dead: a new process has its name"));
    }
    worker = Worker{};
    record_.set_last_incarnation(record_.last_incarnation() + 1);
    worker.incarnation = record_.last_incarnation();
    worker.alive = true;
  } else if (worker.session != 0) {
    turn.step.sends.emplace_back(
        CloseSession{worker.session, absl::UnavailableError("the worker has opened another session")});
  }
  worker.session = session;
  worker.last_heard = now;
  worker.lease_deadline = std::max(worker.lease_deadline, now + options_.timing.lease);
  worker.hello = hello;
  worker.told_profiles = 0;
  // A process that was here before may have been told by another controller.
  worker.told_drain = hello.incarnation() == 0 ? std::optional(v1::DRAIN_STATE_UNSPECIFIED) : std::nullopt;
  record_dirty_ = true;
  ledger_.BeginStream(hello.worker(), hello.report_stream());
  Say(turn, Severity::kInfo,
      absl::StrCat("worker ", hello.worker(), " incarnation ", worker.incarnation,
                   hello.incarnation() == 0 ? " joined" : " is back", ", version ", hello.version()));

  v1::ConnectResponse message;
  v1::Welcome& welcome = *message.mutable_welcome();
  welcome.set_term(term_.value());
  welcome.set_incarnation(worker.incarnation);
  *welcome.mutable_lease() = ToProto(options_.timing.lease);
  *welcome.mutable_heartbeat_interval() = ToProto(options_.timing.heartbeat);
  *welcome.mutable_report_interval() = ToProto(options_.timing.report);
  welcome.set_reports_stored(ledger_.stored(hello.worker()));
  welcome.set_version(Version());
  Send(turn, worker, std::move(message));
  if (hello.incarnation() != 0) Reconcile(turn, hello.worker(), worker);
  if (formed() && !InView(hello.worker(), worker.incarnation)) SendLoadPlacement(turn, hello.worker(), worker);
  Settle(turn);
}

// A process that was here before: brings it up to what has happened since.
void Group::Reconcile(Turn& turn, const std::string& name, Worker& worker) {
  const v1::Hello& hello = worker.hello;
  worker.view_installed = hello.view();
  worker.epoch_in_force = hello.epoch();
  worker.prepared_epoch = hello.prepared_epoch();
  // Ahead of this store, which is a backup's: numbers go on above what the worker has seen.
  if (hello.view() > record_.last_view()) {
    record_.set_last_view(hello.view());
    reissue_at_ = turn.now;
  }
  if (const uint64_t epoch = std::max(hello.epoch(), hello.prepared_epoch()); epoch > record_.last_epoch()) {
    record_.set_last_epoch(epoch + 1);
    if (formed()) {
      placement_.epoch = Epoch(epoch + 1);
      placement_dirty_ = true;
      reissue_at_ = turn.now;
    }
  }
  record_dirty_ = true;
  if (!InView(name, worker.incarnation)) return;
  if (worker.view_installed != record_.last_view()) {
    worker.sent_epoch = placement_.epoch.value();
    Send(turn, worker, InstallViewMessage());
  }

  const store::PlanRecord* plan = ActivePlan();
  const uint64_t in_force = placement_.epoch.value();
  if (Preparing()) {
    if (worker.prepared_epoch != plan->wave_epoch()) Send(turn, worker, PrepareWaveMessage(*plan, name));
  } else if (worker.prepared_epoch != 0 && worker.prepared_epoch != in_force) {
    Send(turn, worker, AbortWaveMessage(worker.prepared_epoch, "it was given up"));
  }
  if (worker.epoch_in_force < in_force && worker.view_installed == record_.last_view()) {
    if (worker.prepared_epoch == in_force) {
      Send(turn, worker, CommitWaveMessage());
    } else {
      // It has the view but neither the epoch nor its replicas: a new view brings both.
      reissue_at_ = turn.now;
    }
  }
}

void Group::SendLoadPlacement(Turn& turn, const std::string& name, Worker& worker) {
  worker.loaded_epoch = 0;
  worker.load_error.clear();
  v1::ConnectResponse message;
  message.mutable_load_placement()->set_term(term_.value());
  message.mutable_load_placement()->set_group(this->name());
  *message.mutable_load_placement()->mutable_placement() = ToProto(placement_);
  Send(turn, worker, std::move(message));
}

void Group::Lost(SessionId session, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  std::string name;
  Worker* worker = Find(session, &name);
  if (worker == nullptr) return;
  worker->session = 0;
  Say(turn, Severity::kWarning, absl::StrCat("worker ", name, " lost its session"));
  Settle(turn);
}

void Group::Receive(SessionId session, const v1::ConnectRequest& message, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  std::string name;
  Worker* worker = Find(session, &name);
  if (worker == nullptr) return;
  worker->last_heard = now;
  worker->lease_deadline = std::max(worker->lease_deadline, now + options_.timing.lease);
  switch (message.message_case()) {
    case v1::ConnectRequest::kHeartbeat:
      OnHeartbeat(turn, *worker, message.heartbeat());
      break;
    case v1::ConnectRequest::kPlacementLoaded:
      OnPlacementLoaded(turn, name, *worker, message.placement_loaded());
      break;
    case v1::ConnectRequest::kViewInstalled:
      OnViewInstalled(turn, name, *worker, message.view_installed());
      break;
    case v1::ConnectRequest::kPeerLost:
      OnPeersLost(turn, name, message.peer_lost().view(), message.peer_lost().ranks(), message.peer_lost().reason());
      break;
    case v1::ConnectRequest::kLoadReport:
      OnReport(turn, name, *worker, message.load_report());
      break;
    case v1::ConnectRequest::kMoveProgress:
      OnProgress(turn, *worker, message.move_progress());
      break;
    case v1::ConnectRequest::kWavePrepared:
      OnPrepared(turn, *worker, message.wave_prepared());
      break;
    case v1::ConnectRequest::kWaveFailed:
      OnFailed(turn, name, message.wave_failed());
      break;
    case v1::ConnectRequest::kEpochInForce:
      worker->epoch_in_force = std::max(worker->epoch_in_force, message.epoch_in_force().epoch());
      break;
    case v1::ConnectRequest::kLeaving:
      if (!std::exchange(worker->leaving, true)) worker->drain_order = ++last_drain_order_;
      Say(turn, Severity::kInfo, absl::StrCat("worker ", name, " is leaving: ", message.leaving().reason()));
      break;
    case v1::ConnectRequest::kHello:
      // Its leases and views would be unclear: the process has to begin a session anew.
      turn.step.sends.emplace_back(CloseSession{session, absl::InvalidArgumentError("hello: a second one")});
      worker->session = 0;
      break;
    case v1::ConnectRequest::MESSAGE_NOT_SET:
      break;
  }
  Settle(turn);
}

void Group::OnHeartbeat(Turn& turn, Worker& worker, const v1::Heartbeat& heartbeat) {
  worker.heartbeat = heartbeat;
  worker.idle = worker.leaving && heartbeat.requests_running() == 0 && heartbeat.requests_waiting() == 0;
  v1::ConnectResponse message;
  v1::HeartbeatAck& ack = *message.mutable_heartbeat_ack();
  ack.set_number(heartbeat.number());
  const auto draining = [this](const v1::Member& member) {
    const auto found = workers_.find(member.worker());
    if (found == workers_.end()) return false;
    const v1::DrainState state = DrainOf(found->first, found->second);
    return found->second.leaving || state == v1::DRAIN_STATE_MOVING || state == v1::DRAIN_STATE_EMPTY;
  };
  if (!placement_.task_homes.empty() || std::any_of(record_.members().begin(), record_.members().end(), draining)) {
    for (const v1::Member& member : record_.members()) {
      const auto other = workers_.find(member.worker());
      if (other == workers_.end() || &other->second == &worker || other->second.session == 0) continue;
      v1::MemberLoad& load = *ack.add_loads();
      load.set_worker(member.worker());
      load.set_requests_running(other->second.heartbeat.requests_running());
      load.set_requests_waiting(other->second.heartbeat.requests_waiting());
      load.set_kv_cache_used_ratio(other->second.heartbeat.kv_cache_used_ratio());
      load.set_draining(draining(member));
    }
  }
  Send(turn, worker, std::move(message));
}

void Group::OnPlacementLoaded(Turn& turn, const std::string& name, Worker& worker, const v1::PlacementLoaded& loaded) {
  worker.load_error = loaded.error();
  if (!loaded.error().empty()) {
    Say(turn, Severity::kError, absl::StrCat("worker ", name, " cannot load its replicas: ", loaded.error()));
    return;
  }
  worker.loaded_epoch = loaded.epoch();
  Say(turn, Severity::kInfo, absl::StrCat("worker ", name, " has loaded epoch ", loaded.epoch()));
}

void Group::OnViewInstalled(Turn& turn, const std::string& name, Worker& worker, const v1::ViewInstalled& installed) {
  if (installed.view() != record_.last_view()) return;
  if (!installed.error().empty()) {
    OnPeersLost(turn, name, installed.view(), installed.peer_ranks(), installed.error());
    return;
  }
  worker.view_installed = installed.view();
  worker.epoch_in_force = std::max(worker.epoch_in_force, worker.sent_epoch);
  if (ViewInstalledEverywhere()) {
    Say(turn, Severity::kInfo, absl::StrCat("view ", installed.view(), " is installed everywhere"));
  }
}

void Group::OnReport(Turn& turn, const std::string& name, const Worker& worker, const v1::LoadReport& report) {
  const auto count = [&](const char* result) {
    turn.effects.metrics.push_back({"ballast_telemetry_reports_total", {result}});
  };
  if (load_ == nullptr) return count("invalid");
  const ReportLedger::Verdict verdict = ledger_.Accept(name, worker.hello.report_stream(), report);
  switch (verdict) {
    case ReportLedger::Verdict::kDuplicate:
      return count("duplicate");
    case ReportLedger::Verdict::kInvalid:
    case ReportLedger::Verdict::kOverlap:
      Say(turn, Severity::kError,
          absl::StrCat("load report ", report.first_sequence(), " to ", report.sequence(), " of worker ", name,
                       " is not counted: it is out of sequence"));
      return count(verdict == ReportLedger::Verdict::kInvalid ? "invalid" : "overlap");
    case ReportLedger::Verdict::kAfterGap:
      Say(turn, Severity::kWarning,
          absl::StrCat("load reports of worker ", name, " are missing before ", report.sequence()));
      break;
    case ReportLedger::Verdict::kNew:
      break;
  }
  if (const absl::Status status = load_->Add(report, turn.now); !status.ok()) {
    Say(turn, Severity::kError,
        absl::StrCat("load report ", report.sequence(), " of worker ", name,
                     " is not counted: ", std::string(status.message())));
    return count("invalid");
  }
  count(verdict == ReportLedger::Verdict::kNew ? "counted" : "after_gap");
  if (std::any_of(workers_.begin(), workers_.end(),
                  [](const auto& entry) { return entry.second.alive && entry.second.hello.classifies_tasks(); })) {
    profiles_->Add(report);
  }
  newest_report_ = std::max(newest_report_, std::min(FromProto(report.end()), turn.now));
  const std::string& model = record_.model().name();
  for (const v1::LoadCount& load : report.counts()) {
    std::vector<double>& counted = load.phase() == v1::PHASE_PREFILL ? counted_prefill_ : counted_decode_;
    counted[static_cast<size_t>(load.layer()) * placement_.num_experts + load.expert()] +=
        static_cast<double>(load.tokens());
  }
  for (const v1::TaskTokens& task : report.task_tokens()) {
    for (const auto& [phase, tokens] :
         {std::pair("prefill", task.prefill_tokens()), std::pair("decode", task.decode_tokens())}) {
      if (tokens == 0) continue;
      turn.effects.metrics.push_back({"ballast_task_tokens_total",
                                      {model, this->name(), CountedAs(task.task()), phase},
                                      static_cast<double>(tokens)});
    }
  }
  for (const v1::StepBalance& balance : report.balance()) {
    const std::string phase = balance.phase() == v1::PHASE_PREFILL ? "prefill" : "decode";
    turn.effects.metrics.push_back({"ballast_step_balancedness_ratio",
                                    {model, this->name(), phase},
                                    balance.balancedness_sum(),
                                    {balance.buckets().begin(), balance.buckets().end()}});
    for (const auto& [form, layers] : {std::pair("fixed", balance.layers_with_fixed_shares()),
                                       std::pair("previous", balance.layers_with_previous_shares()),
                                       std::pair("current", balance.layers_with_current_shares())}) {
      if (layers == 0) continue;
      turn.effects.metrics.push_back(
          {"ballast_step_shares_total", {model, this->name(), phase, form}, static_cast<double>(layers)});
    }
  }
}

std::string Group::CountedAs(const std::string& task) {
  std::string shown = load_->Shown(task);
  if (counted_tasks_.contains(shown)) return shown;
  // Room for as many as the window keeps apart now, and as many that it kept apart before.
  if (counted_tasks_.size() >= 2 * static_cast<size_t>(options_.load.max_tasks)) return std::string(kPooledTask);
  counted_tasks_.insert(shown);
  return shown;
}

void Group::TellProfiles(Turn& turn) {
  if (!profiles_.has_value()) return;
  v1::ConnectResponse message;
  for (auto& [name, worker] : workers_) {
    if (worker.session == 0 || !worker.hello.classifies_tasks()) continue;
    if (std::exchange(worker.told_profiles, profiles_->version()) == profiles_->version()) continue;
    if (!message.has_task_profiles()) *message.mutable_task_profiles() = profiles_->ToProto();
    Send(turn, worker, message);
  }
}

void Group::OnProgress(Turn& turn, Worker& worker, const v1::MoveProgress& progress) {
  const store::PlanRecord* plan = ActivePlan();
  if (plan == nullptr || !Preparing() || progress.epoch() != plan->wave_epoch()) return;
  worker.progress = progress;
  turn.effects.changed = true;
}

void Group::OnPrepared(Turn& turn, Worker& worker, const v1::WavePrepared& prepared) {
  const store::PlanRecord* plan = ActivePlan();
  if (Preparing() && prepared.epoch() == plan->wave_epoch()) {
    worker.progress.set_epoch(prepared.epoch());
    worker.progress.set_moves_done(worker.progress.moves_total());
    worker.progress.set_bytes_done(prepared.bytes_from_peers() + prepared.bytes_from_checkpoint());
    turn.effects.changed = true;
    worker.prepared_epoch = prepared.epoch();
    return;
  }
  if (prepared.epoch() != placement_.epoch.value()) {
    Send(turn, worker, AbortWaveMessage(prepared.epoch(), "it was given up"));
  } else if (worker.epoch_in_force < prepared.epoch()) {
    worker.prepared_epoch = prepared.epoch();
    Send(turn, worker, CommitWaveMessage());
  }
}

void Group::OnFailed(Turn& turn, const std::string& name, const v1::WaveFailed& failed) {
  const store::PlanRecord* plan = ActivePlan();
  if (!Preparing() || failed.epoch() != plan->wave_epoch()) return;
  wave_failure_ = absl::StrCat("worker ", name, ": ", failed.error().empty() ? "no reason given" : failed.error());
}

}  // namespace ballast
