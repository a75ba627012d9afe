// How plans come into force: performs the steps of rollout.h.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/group/group.h"
#include "proto/base/check.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

std::vector<std::string> Holders(const v1::Placement& placement) {
  std::vector<bool> holds(placement.workers_size());
  for (const v1::Replica& replica : placement.replicas()) holds[replica.worker()] = true;
  std::vector<std::string> holders;
  for (int w = 0; w < placement.workers_size(); ++w) {
    if (holds[w]) holders.push_back(placement.workers(w));
  }
  return holders;
}

}  // namespace

store::PlanRecord* Group::ActivePlan() {
  const auto plan = plans_.find(record_.active_plan());
  return plan == plans_.end() ? nullptr : &plan->second;
}

const store::PlanRecord* Group::ActivePlan() const { return const_cast<Group*>(this)->ActivePlan(); }

bool Group::Preparing() const {
  const store::PlanRecord* plan = ActivePlan();
  return plan != nullptr &&
         (plan->plan().state() == v1::PLAN_STATE_PREPARING || plan->plan().state() == v1::PLAN_STATE_PREPARED);
}

RolloutFacts Group::RolloutState() const {
  const store::PlanRecord& plan = *ActivePlan();
  // A wave needs whom it gives replicas; who is planned around is not needed, though earlier waves leave it what later
  // ones bring elsewhere.
  const bool wave_known = plan.waves_known() && plan.plan().waves_done() < plan.plan().waves_total();
  const int wave = plan.heal() ? plan.plan().waves_total() - 1 : plan.plan().waves_done();
  const std::vector<std::string> needed =
      wave_known ? Holders(waves_.at(plan.plan().id())[wave].placement()) : Holders(placement_);
  RolloutFacts facts{.state = plan.plan().state(),
                     .waves_known = plan.waves_known(),
                     .working_out = std::any_of(jobs_.begin(), jobs_.end(),
                                                [&](const auto& job) { return job.second.plan == plan.plan().id(); }),
                     .waves_done = plan.plan().waves_done(),
                     .waves_total = plan.plan().waves_total(),
                     .group_complete = AllServe(needed),
                     .view_installed = ViewInstalledEverywhere(),
                     .view_changed = plan.wave_view() != record_.last_view(),
                     .failure = wave_failure_,
                     .deadline = FromProto(plan.deadline()),
                     .paused = record_.paused(),
                     .ordered = plan.rollback() || plan.drain(),
                     .stop = !record_.next_plan().empty()};
  const uint64_t epoch = plan.wave_epoch();
  for (const v1::Member& member : record_.members()) {
    const Worker& worker = workers_.at(member.worker());
    const bool same = worker.incarnation == member.incarnation();
    facts.members.push_back({.connected = same && worker.session != 0,
                             .prepared = same && worker.prepared_epoch == epoch,
                             .in_force = same && worker.epoch_in_force >= epoch});
  }
  return facts;
}

void Group::PerformRollout(Turn& turn, const RolloutDecision& decision) {
  store::PlanRecord& plan = *ActivePlan();
  switch (decision.step) {
    case RolloutStep::kNothing:
      return;
    case RolloutStep::kWorkOut:
      return WorkOut(turn, plan);
    case RolloutStep::kBeginWave:
      return BeginWave(turn, plan);
    case RolloutStep::kRecordPrepared:
      return SetState(turn, plan, v1::PLAN_STATE_PREPARED, "every worker has prepared the wave");
    case RolloutStep::kCommit:
      return Commit(turn, plan);
    case RolloutStep::kWaveDone:
      return WaveDone(turn, plan);
    case RolloutStep::kFinish:
      return Finish(turn, plan, v1::PLAN_STATE_DONE,
                    plan.plan().waves_total() == 0 ? "there was nothing to move" : "every wave is in force");
    case RolloutStep::kAbort:
      return Abort(turn, plan, decision);
  }
}

void Group::SetState(Turn& turn, store::PlanRecord& plan, v1::PlanState state, const std::string& text) {
  plan.mutable_plan()->set_state(state);
  v1::Event& event = *plan.mutable_plan()->add_history();
  *event.mutable_at() = ToProto(turn.now);
  event.set_text(absl::StrCat(StateName(state), text.empty() ? "" : ": ", text));
  plans_dirty_.insert(plan.plan().id());
  Say(turn, state == v1::PLAN_STATE_ABORTED ? Severity::kWarning : Severity::kInfo,
      absl::StrCat("plan ", plan.plan().id(), " ", event.text()));
}

Placement Group::WavePlacement(const store::PlanRecord& plan) const {
  const store::WaveRecord& wave = waves_.at(plan.plan().id())[plan.plan().waves_done()];
  absl::StatusOr<Placement> placement = FromProto(wave.placement());
  BALLAST_CHECK(placement.ok()) << placement.status();
  placement->epoch = Epoch(plan.wave_epoch());
  placement->shares_version = placement_.shares_version.next();
  return *std::move(placement);
}

v1::ConnectResponse Group::PrepareWaveMessage(const store::PlanRecord& plan, const std::string& worker) const {
  v1::ConnectResponse message;
  v1::PrepareWave& prepare = *message.mutable_prepare_wave();
  prepare.set_term(term_.value());
  prepare.set_group(name());
  prepare.set_view(record_.last_view());
  prepare.set_plan(plan.plan().id());
  *prepare.mutable_placement() = ToProto(WavePlacement(plan));
  for (const v1::Move& move : waves_.at(plan.plan().id())[plan.plan().waves_done()].moves()) {
    if (move.destination() == worker) *prepare.add_moves() = move;
  }
  *prepare.mutable_deadline() = plan.deadline();
  prepare.set_max_bytes_per_second(options_.planning.max_bytes_per_second);
  return message;
}

v1::ConnectResponse Group::CommitWaveMessage() const {
  v1::ConnectResponse message;
  v1::CommitWave& commit = *message.mutable_commit_wave();
  commit.set_term(term_.value());
  commit.set_group(name());
  commit.set_view(record_.last_view());
  commit.set_epoch(placement_.epoch.value());
  return message;
}

v1::ConnectResponse Group::AbortWaveMessage(uint64_t epoch, std::string reason) const {
  v1::ConnectResponse message;
  v1::AbortWave& abort = *message.mutable_abort_wave();
  abort.set_term(term_.value());
  abort.set_group(name());
  abort.set_epoch(epoch);
  abort.set_reason(std::move(reason));
  return message;
}

void Group::BeginWave(Turn& turn, store::PlanRecord& plan) {
  if (!plan.has_rollout_start()) *plan.mutable_rollout_start() = ToProto(turn.now);
  record_.set_last_epoch(record_.last_epoch() + 1);
  record_dirty_ = true;
  plan.set_wave_epoch(record_.last_epoch());
  plan.set_wave_view(record_.last_view());
  *plan.mutable_deadline() = ToProto(turn.now + options_.timing.wave_deadline);
  wave_failure_.clear();
  for (auto& [name, worker] : workers_) worker.progress.Clear();
  SetState(turn, plan, v1::PLAN_STATE_PREPARING,
           absl::StrCat("wave ", plan.plan().waves_done() + 1, " of ", plan.plan().waves_total(), ", epoch ",
                        plan.wave_epoch()));
  for (const v1::Member& member : record_.members()) {
    Send(turn, workers_.at(member.worker()), PrepareWaveMessage(plan, member.worker()));
  }
}

void Group::Commit(Turn& turn, store::PlanRecord& plan) {
  Placement next = WavePlacement(plan);
  BALLAST_CHECK(next.epoch > placement_.epoch) << next.epoch << " after " << placement_.epoch;
  if (plan.plan().waves_done() == 0) {
    previous_ = placement_;
    previous_dirty_ = true;
  }
  placement_ = std::move(next);
  placement_dirty_ = true;
  pace_.Fruitful();
  record_dirty_ = true;
  force_by_ = turn.now + options_.timing.force_deadline;
  force_views_ = 0;
  SetState(turn, plan, v1::PLAN_STATE_COMMITTING, absl::StrCat("epoch ", placement_.epoch.value()));
  for (const v1::Member& member : record_.members()) Send(turn, workers_.at(member.worker()), CommitWaveMessage());
  // Whoever waits outside the view has to bring in what is now in force.
  for (auto& [name, worker] : workers_) {
    if (worker.alive && !worker.leaving && !InView(name, worker.incarnation)) SendLoadPlacement(turn, name, worker);
  }
}

void Group::WaveDone(Turn& turn, store::PlanRecord& plan) {
  force_by_ = absl::InfiniteFuture();
  const store::WaveRecord& wave = waves_.at(plan.plan().id())[plan.plan().waves_done()];
  v1::Plan& shown = *plan.mutable_plan();
  shown.set_waves_done(shown.waves_done() + 1);
  shown.set_moves_done(shown.moves_done() + wave.moves_size());
  for (const v1::Move& move : wave.moves()) shown.set_bytes_done(shown.bytes_done() + move.bytes());
  SetState(turn, plan, v1::PLAN_STATE_APPROVED,
           absl::StrCat("wave ", shown.waves_done(), " of ", shown.waves_total(), " is in force, epoch ",
                        placement_.epoch.value()));
}

void Group::Abort(Turn& turn, store::PlanRecord& plan, const RolloutDecision& decision) {
  const std::string& reason = decision.reason;
  if (plan.drain() && decision.failed) {
    ++drain_failures_;
    drain_failure_ = reason;
  }
  if (Preparing()) {
    for (const v1::Member& member : record_.members()) {
      Worker& worker = workers_.at(member.worker());
      worker.prepared_epoch = 0;
      Send(turn, worker, AbortWaveMessage(plan.wave_epoch(), reason));
    }
  }
  Finish(turn, plan, v1::PLAN_STATE_ABORTED,
         plan.plan().waves_done() == 0
             ? reason
             : absl::StrCat("after ", plan.plan().waves_done(), " of ", plan.plan().waves_total(), " waves: ", reason));
}

void Group::Finish(Turn& turn, store::PlanRecord& plan, v1::PlanState state, const std::string& reason) {
  v1::Plan& shown = *plan.mutable_plan();
  shown.set_reason(absl::StrCat(shown.reason(), shown.reason().empty() ? "" : "; ", reason));
  shown.set_target_epoch(placement_.epoch.value());
  *shown.mutable_finished() = ToProto(turn.now);
  SetState(turn, plan, state, reason);

  absl::Time hold_off = record_.has_hold_off_until() ? FromProto(record_.hold_off_until()) : absl::InfinitePast();
  if (plan.rollback()) {
    hold_off = std::max(hold_off, turn.now + options_.planning.rollback_hold_off);
  } else if (state == v1::PLAN_STATE_ABORTED && !AnyDrains()) {
    // A rollout that gives way to a worker's drain has not failed.
    hold_off = std::max(hold_off, turn.now + options_.planning.abort_hold_off);
  }
  if (hold_off != absl::InfinitePast()) *record_.mutable_hold_off_until() = ToProto(hold_off);
  if (shown.waves_done() > 0) {
    record_.clear_settled();
    record_.clear_settled_mix();
    if (!plan.rollback()) {
      *record_.mutable_settled() = plan.settled();
      *record_.mutable_settled_mix() = plan.settled_mix();
    }
    // There may be room now.
    TryDrainsAnew();
  }
  record_.set_active_plan(record_.next_plan());
  record_.clear_next_plan();
  record_dirty_ = true;
  wave_failure_.clear();
  waves_.erase(shown.id());

  const std::string& model = record_.model().name();
  turn.effects.metrics.push_back({"ballast_rollouts_total",
                                  {model, name(),
                                   plan.rollback()                ? "rollback"
                                   : state == v1::PLAN_STATE_DONE ? "done"
                                                                  : "aborted"}});
  if (plan.has_rollout_start()) {
    turn.effects.metrics.push_back({"ballast_rollout_duration_seconds",
                                    {model, name()},
                                    absl::ToDoubleSeconds(turn.now - FromProto(plan.rollout_start()))});
  }
  PrunePlans(turn);
}

void Group::WorkOut(Turn& turn, store::PlanRecord& plan) {
  if (plan.nothing_at_epoch() == placement_.epoch.value()) {
    plan.set_waves_known(true);
    plans_dirty_.insert(plan.plan().id());
    return;
  }
  Job job{.purpose = Job::Purpose::kRollback, .policy = policy(), .plan = plan.plan().id()};
  StartJob(turn, std::move(job), previous_);
}

void Group::OnRollbackPlanned(Turn& turn, const Job& job, const absl::StatusOr<PlanOutcome>& outcome) {
  store::PlanRecord* plan = ActivePlan();
  if (plan == nullptr || plan->plan().id() != job.plan) return;
  if (!outcome.ok()) {
    Finish(turn, *plan, v1::PLAN_STATE_ABORTED, std::string(outcome.status().message()));
    return;
  }
  AddWaves(turn, *plan, *outcome);
  plan->mutable_plan()->set_base_epoch(job.base_epoch);
}

void Group::RetireProposals(Turn& turn, const std::string& except) {
  for (auto& [id, plan] : plans_) {
    if (plan.plan().state() != v1::PLAN_STATE_PROPOSED || id == except) continue;
    *plan.mutable_plan()->mutable_finished() = ToProto(turn.now);
    waves_.erase(id);
    SetState(turn, plan, v1::PLAN_STATE_SUPERSEDED, absl::StrCat("by plan ", except));
  }
}

void Group::SweepProposals(Turn& turn) {
  bool swept = false;
  for (auto& [id, plan] : plans_) {
    if (plan.plan().state() != v1::PLAN_STATE_PROPOSED) continue;
    std::string superseded;
    if (plan.plan().base_epoch() != placement_.epoch.value()) {
      superseded = absl::StrCat("the epoch is ", placement_.epoch.value(), " now");
    } else if (plan.heal() && GroupComplete(placement_)) {
      superseded = "the workers that were gone are back";
    }
    if (superseded.empty() && turn.now < FromProto(plan.plan().created()) + options_.planning.expiry) continue;
    swept = true;
    *plan.mutable_plan()->mutable_finished() = ToProto(turn.now);
    waves_.erase(id);
    if (superseded.empty()) {
      SetState(turn, plan, v1::PLAN_STATE_EXPIRED, "nobody approved it in time");
    } else {
      SetState(turn, plan, v1::PLAN_STATE_SUPERSEDED, superseded);
    }
  }
  if (swept) PrunePlans(turn);
}

}  // namespace ballast
