// What operators ask, and plans on their way in.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "controller/group/group.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

constexpr int kMaxMissingShown = 100;

// The number at the end of a plan's id, by which plans of one group are ordered.
uint64_t PlanNumber(const std::string& id) {
  const size_t dash = id.rfind('-');
  return dash == std::string::npos ? 0 : std::strtoull(id.c_str() + dash + 1, nullptr, 10);
}

void SetMix(const TaskMix& mix, google::protobuf::RepeatedPtrField<store::MixRecord>& out) {
  out.Clear();
  for (const auto& [task, part] : mix) {
    store::MixRecord& record = *out.Add();
    record.set_task(task);
    record.set_ratio(part);
  }
}

}  // namespace

absl::Status Group::CanPlan(absl::Time now) const {
  if (!formed() || record_.members_size() == 0) {
    return absl::FailedPreconditionError(absl::StrCat("group ", name(), " is not formed"));
  }
  if (!GroupComplete(placement_)) {
    return absl::FailedPreconditionError(absl::StrCat("group ", name(), ": ", record_.members_size(),
                                                      " workers serve of ", Holders(placement_).size(),
                                                      " that hold replicas"));
  }
  if (AnyDrains()) return absl::FailedPreconditionError(absl::StrCat("group ", name(), ": a worker is being drained"));
  if (ActivePlan() != nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("the rollout of plan ", record_.active_plan(), " is under way"));
  }
  if (load_->total_tokens() == 0) {
    return absl::FailedPreconditionError(absl::StrCat("group ", name(), ": the load window is empty"));
  }
  return absl::OkStatus();
}

void Group::StartJob(Turn& turn, Job job, std::optional<Placement> target) {
  PlanJob out{.ticket = ++last_ticket_,
              .group = name(),
              .policy = job.policy,
              .current = placement_,
              .expert_bytes = record_.model().expert_bytes(),
              .scenarios = PlanScenarios(turn.now),
              .target = std::move(target),
              .heal = job.purpose == Job::Purpose::kHeal || job.purpose == Job::Purpose::kDrain,
              .max_moves = options_.planning.max_moves,
              .max_move_bytes = options_.planning.max_move_bytes,
              .max_bytes_per_second = options_.planning.max_bytes_per_second};
  if (PlansFromRoutes(job.policy) && !out.target.has_value() && !out.heal) {
    out.routes = SampledRoutes();
    out.interim =
        turn.now - load_->Start({}, turn.now) < options_.load.window / 2 ||
        MixIsMoving(load_->TasksByBucket(), {.recent = MixBuckets(), .min_distance = options_.planning.mix_drift});
    out.group_limits = options_.planning.group_limits;
  }
  for (const std::string& worker : job.going) {
    if (InView(worker, workers_.at(worker).incarnation)) out.going.push_back(worker);
  }
  for (const std::string& worker : placement_.workers) {
    if (!Serves(worker)) continue;
    const v1::Hello& hello = workers_.at(worker).hello;
    out.workers.push_back({worker, hello.node(), {hello.slots(), hello.staging_slots()}, SpeedOf(worker)});
    if (DrainOf(worker, workers_.at(worker)) == v1::DRAIN_STATE_STUCK) {
      // Keeps what it holds, and is given no more.
      out.workers.back().capacity.staging_slots = hello.slots() - SlotsUsed(worker);
    }
  }
  if (out.scenarios.empty()) {
    // Rollbacks and plans around workers that are gone do not wait for load.
    out.scenarios.push_back(
        {"none", std::vector<double>(static_cast<size_t>(placement_.num_layers) * placement_.num_experts)});
  }
  job.base_epoch = placement_.epoch.value();
  jobs_[last_ticket_] = std::move(job);
  BALLAST_CHECK(!turn.effects.job.has_value());
  turn.effects.job = std::move(out);
}

void Group::CreatePlan(uint64_t call, const v1::CreatePlanRequest& request, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  if (absl::Status status = CanPlan(now); !status.ok()) {
    effects.replies.push_back({call, std::move(status)});
    return;
  }
  StartJob(turn,
           Job{.purpose = Job::Purpose::kCall,
               .call = call,
               .dry_run = request.dry_run(),
               .policy = request.policy().empty() ? policy() : request.policy(),
               .reason = "asked for"},
           std::nullopt);
  EndStep(turn);
}

void Group::Planned(uint64_t ticket, absl::StatusOr<PlanOutcome> outcome, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  const auto found = jobs_.find(ticket);
  BALLAST_CHECK(found != jobs_.end()) << "ticket " << ticket;
  const Job job = std::move(found->second);
  jobs_.erase(found);
  if (outcome.ok()) {
    effects.metrics.push_back(
        {"ballast_plan_duration_seconds", {job.policy}, absl::ToDoubleSeconds(outcome->planning_time)});
  }
  if (job.purpose == Job::Purpose::kRollback || job.purpose == Job::Purpose::kDrain) {
    if (job.purpose == Job::Purpose::kRollback) {
      OnRollbackPlanned(turn, job, outcome);
    } else {
      OnDrainPlanned(turn, job, outcome);
    }
    Settle(turn);
    return;
  }
  // The group may have changed meanwhile.
  absl::Status status = outcome.status();
  if (status.ok() && job.purpose != Job::Purpose::kHeal) {
    status = CanPlan(now);
  } else if (status.ok() && GroupComplete(placement_)) {
    status = absl::FailedPreconditionError("the workers that were gone are back");
  }
  if (status.ok() && placement_.epoch.value() != job.base_epoch) {
    status = absl::FailedPreconditionError(absl::StrCat("the epoch changed from ", job.base_epoch, " to ",
                                                        placement_.epoch.value(), " while the plan was made"));
  }
  if (job.purpose == Job::Purpose::kCall) {
    if (!status.ok()) {
      effects.replies.push_back({job.call, std::move(status)});
      return;
    }
    if (job.dry_run) {
      store::PlanRecord plan;
      plan.mutable_plan()->set_group(name());
      plan.mutable_plan()->set_policy(job.policy);
      plan.mutable_plan()->set_state(v1::PLAN_STATE_PROPOSED);
      *plan.mutable_plan()->mutable_created() = ToProto(now);
      plan.mutable_plan()->set_base_epoch(job.base_epoch);
      Turn unused{effects, now, {}};
      AddWaves(unused, plan, *outcome);
      v1::GetPlanResponse reply;
      *reply.mutable_plan() = plan.plan();
      effects.replies.push_back({job.call, std::move(reply)});
      return;
    }
    const store::PlanRecord& plan = AddPlan(turn, *outcome, job, v1::PLAN_STATE_PROPOSED);
    v1::GetPlanResponse reply;
    *reply.mutable_plan() = plan.plan();
    effects.replies.push_back({job.call, std::move(reply)});
    Settle(turn);
    return;
  }

  if (!status.ok() || !outcome->worth || outcome->waves.empty()) {
    const std::string why = !status.ok()             ? std::string(status.message())
                            : outcome->waves.empty() ? "the placement is as good as the policy's"
                                                     : outcome->reason;
    // Said once, not at every interval.
    if (why != last_no_plan_reason_) Say(turn, Severity::kInfo, absl::StrCat("no plan: ", why));
    last_no_plan_reason_ = why;
    if (job.purpose == Job::Purpose::kAuto) {
      pace_.Fruitless(job.drift_gain);
      // Looked at for this mix, the placement need not be changed for it.
      if (status.ok() && !outcome->settled_mix.empty()) {
        SetMix(outcome->settled_mix, *record_.mutable_settled_mix());
        record_dirty_ = true;
      }
    }
    EndStep(turn);
    return;
  }
  last_no_plan_reason_.clear();
  pace_.Fruitful();
  const bool go = record_.mode() == v1::GROUP_MODE_AUTO && !record_.paused();
  AddPlan(turn, *outcome, job, go ? v1::PLAN_STATE_APPROVED : v1::PLAN_STATE_PROPOSED);
  Settle(turn);
}

store::PlanRecord& Group::NewPlan(Turn& turn, v1::PlanState state, const std::string& policy,
                                  const std::string& reason) {
  record_.set_last_plan(record_.last_plan() + 1);
  const std::string id = absl::StrCat(name(), "-", record_.last_plan());
  record_.set_newest_plan(id);
  record_dirty_ = true;
  store::PlanRecord& plan = plans_[id];
  v1::Plan& shown = *plan.mutable_plan();
  shown.set_id(id);
  shown.set_group(name());
  shown.set_policy(policy);
  *shown.mutable_created() = ToProto(turn.now);
  shown.set_reason(reason);
  shown.set_base_epoch(placement_.epoch.value());
  shown.set_target_epoch(placement_.epoch.value());
  SetState(turn, plan, state, reason);
  RetireProposals(turn, id);
  PrunePlans(turn);
  return plan;
}

store::PlanRecord& Group::AddPlan(Turn& turn, const PlanOutcome& outcome, const Job& job, v1::PlanState state) {
  store::PlanRecord& plan = NewPlan(turn, state, job.policy, absl::StrCat(job.reason, "; ", outcome.reason));
  plan.set_drain(job.purpose == Job::Purpose::kDrain);
  plan.set_heal(plan.drain() || job.purpose == Job::Purpose::kHeal);
  AddWaves(turn, plan, outcome);
  if (state == v1::PLAN_STATE_APPROVED) record_.set_active_plan(plan.plan().id());
  return plan;
}

void Group::AddWaves(Turn& turn, store::PlanRecord& plan, const PlanOutcome& outcome) {
  v1::Plan& shown = *plan.mutable_plan();
  plan.set_waves_known(true);
  shown.set_balancedness_before(outcome.balancedness_before);
  shown.set_balancedness_after(outcome.balancedness_after);
  shown.set_balancedness_bound(outcome.balancedness_bound);
  shown.set_gain_tokens(outcome.gain_tokens);
  *shown.mutable_effect() = outcome.effect;
  *shown.mutable_planning_time() = ToProto(outcome.planning_time);
  shown.set_waves_total(static_cast<int32_t>(outcome.waves.size()));
  shown.set_target_epoch(placement_.epoch.value() + outcome.waves.size());
  plan.mutable_layers()->Assign(outcome.layers.begin(), outcome.layers.end());
  for (const SettledScenario& settled : outcome.settled) {
    store::SettledRecord& record = *plan.add_settled();
    record.set_scenario(settled.name);
    record.set_excess(settled.excess);
  }
  SetMix(outcome.settled_mix, *plan.mutable_settled_mix());
  plan.mutable_reasons()->Assign(outcome.reasons.begin(), outcome.reasons.end());
  for (const PlannedWave& wave : outcome.waves) {
    shown.set_moves_total(shown.moves_total() + static_cast<int32_t>(wave.moves.size()));
    for (const v1::Move& move : wave.moves) shown.set_bytes_total(shown.bytes_total() + move.bytes());
  }
  if (shown.id().empty()) return;
  std::vector<store::WaveRecord>& waves = waves_[shown.id()];
  for (size_t i = 0; i < outcome.waves.size(); ++i) {
    store::WaveRecord& wave = waves.emplace_back();
    *wave.mutable_placement() = ToProto(outcome.waves[i].placement);
    wave.mutable_moves()->Assign(outcome.waves[i].moves.begin(), outcome.waves[i].moves.end());
    turn.step.writes.push_back({absl::StrFormat("wave/%s/%05d", shown.id(), i), wave.SerializeAsString()});
  }
  plans_dirty_.insert(shown.id());
}

void Group::PrunePlans(Turn& turn) {
  std::vector<std::pair<uint64_t, std::string>> finished;
  for (const auto& [id, plan] : plans_) {
    if (IsFinished(plan.plan().state())) finished.emplace_back(PlanNumber(id), id);
  }
  std::sort(finished.begin(), finished.end());
  for (size_t i = 0; i + options_.planning.keep_plans < finished.size(); ++i) {
    const std::string& id = finished[i].second;
    turn.step.writes.push_back({absl::StrCat("plan/", id), std::nullopt});
    for (int w = 0; w < plans_.at(id).plan().waves_total(); ++w) {
      turn.step.writes.push_back({absl::StrFormat("wave/%s/%05d", id, w), std::nullopt});
    }
    plans_.erase(id);
  }
}

absl::StatusOr<v1::Plan> Group::Approve(const std::string& id, const std::string& by, absl::Time now,
                                        Effects& effects) {
  Turn turn{effects, now, {}};
  SweepProposals(turn);
  EndStep(turn);
  const auto found = plans_.find(id);
  if (found == plans_.end()) return absl::NotFoundError(absl::StrCat("there is no plan ", id));
  store::PlanRecord& plan = found->second;
  if (plan.plan().state() != v1::PLAN_STATE_PROPOSED) {
    return absl::FailedPreconditionError(
        absl::StrCat("plan ", id, " is ", StateName(plan.plan().state()), ", not PROPOSED"));
  }
  if (record_.mode() == v1::GROUP_MODE_OBSERVE) {
    return absl::FailedPreconditionError(absl::StrCat("group ", name(), " is in mode observe; set approve or auto"));
  }
  if (record_.paused()) return absl::FailedPreconditionError(absl::StrCat("group ", name(), " is paused"));
  if (ActivePlan() != nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("the rollout of plan ", record_.active_plan(), " is under way"));
  }
  record_.set_active_plan(id);
  record_dirty_ = true;
  SetState(turn, plan, v1::PLAN_STATE_APPROVED, absl::StrCat("by ", by));
  Settle(turn);
  return Shown(plans_.at(id));
}

absl::StatusOr<v1::Plan> Group::Reject(const std::string& id, const std::string& reason, const std::string& by,
                                       absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  const auto found = plans_.find(id);
  if (found == plans_.end()) return absl::NotFoundError(absl::StrCat("there is no plan ", id));
  store::PlanRecord& plan = found->second;
  if (plan.plan().state() != v1::PLAN_STATE_PROPOSED) {
    return absl::FailedPreconditionError(
        absl::StrCat("plan ", id, " is ", StateName(plan.plan().state()), ", not PROPOSED"));
  }
  *plan.mutable_plan()->mutable_finished() = ToProto(now);
  waves_.erase(id);
  SetState(turn, plan, v1::PLAN_STATE_REJECTED, absl::StrCat("by ", by, reason.empty() ? "" : ": ", reason));
  v1::Plan rejected = Shown(plan);
  PrunePlans(turn);
  EndStep(turn);
  return rejected;
}

absl::StatusOr<v1::Plan> Group::Rollback(const std::string& reason, const std::string& by, absl::Time now,
                                         Effects& effects) {
  Turn turn{effects, now, {}};
  const store::PlanRecord* active = ActivePlan();
  if (!record_.next_plan().empty()) return Shown(plans_.at(record_.next_plan()));
  if (active != nullptr && active->rollback()) return Shown(*active);
  if (previous_.epoch.value() == 0 && active == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("group ", name(), ": there is no earlier placement"));
  }
  const uint64_t under_way = active == nullptr ? 0 : active->plan().base_epoch();
  store::PlanRecord& plan = NewPlan(turn, v1::PLAN_STATE_APPROVED, "rollback",
                                    absl::StrCat("rollback by ", by, reason.empty() ? "" : ": ", reason));
  const std::string id = plan.plan().id();
  plan.set_rollback(true);
  plan.set_nothing_at_epoch(under_way);
  (under_way == 0 ? *record_.mutable_active_plan() : *record_.mutable_next_plan()) = id;
  *record_.mutable_hold_off_until() = ToProto(now + options_.planning.rollback_hold_off);
  Settle(turn);
  return Shown(plans_.at(id));
}

void Group::SetMode(v1::GroupMode mode, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  if (record_.mode() != mode) {
    record_.set_mode(mode);
    record_dirty_ = true;
    Say(turn, Severity::kInfo,
        absl::StrCat("mode ", absl::AsciiStrToLower(absl::StripPrefix(v1::GroupMode_Name(mode), "GROUP_MODE_"))));
  }
  Settle(turn);
}

void Group::SetPolicy(const std::string& policy, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  if (this->policy() != policy) {
    record_.set_policy(policy);
    record_dirty_ = true;
    // What is settled was so by the policy before, and its plans that were not worth it say nothing of this one's.
    record_.clear_settled();
    record_.clear_settled_mix();
    pace_.Fruitful();
    Say(turn, Severity::kInfo, absl::StrCat("policy ", policy));
  }
  Settle(turn);
}

void Group::SetPaused(bool paused, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  if (record_.paused() != paused) {
    record_.set_paused(paused);
    record_dirty_ = true;
    Say(turn, Severity::kInfo, paused ? "paused" : "resumed");
  }
  Settle(turn);
}

double Group::WindowBalancedness(absl::Time now) const {
  return formed() ? MeanBalancedness(LevelByLayer(placement_, PlacementSpeeds(), load_->Tokens({}, now))) : 0;
}

v1::Group Group::Describe(absl::Time now) const {
  v1::Group group;
  group.set_name(name());
  group.set_role(record_.role());
  group.set_mode(record_.mode());
  group.set_size(options_.config.size);
  group.set_paused(record_.paused());
  group.set_policy(policy());
  group.set_term(term_.value());
  group.set_state(v1::GROUP_STATE_FORMING);
  group.set_plan(record_.active_plan().empty() ? record_.newest_plan() : record_.active_plan());
  if (record_.has_hold_off_until() && FromProto(record_.hold_off_until()) > now) {
    *group.mutable_hold_off_until() = record_.hold_off_until();
  }
  group.mutable_view()->set_view(record_.last_view());
  *group.mutable_view()->mutable_members() = record_.members();
  if (!formed()) return group;
  *group.mutable_model() = record_.model();
  group.set_combine(record_.combine());
  group.set_epoch(placement_.epoch.value());
  group.set_shares_version(placement_.shares_version.value());
  group.set_window_tokens(load_->total_tokens());
  group.set_balancedness(WindowBalancedness(now));
  if (record_.members_size() == 0) return group;
  const std::vector<ExpertId> missing = MissingExperts(placement_, ViewWorkers());
  // Before its workers have built the view's connections a group serves nothing.
  if (ViewInstalledEverywhere()) {
    group.set_state(missing.empty() ? v1::GROUP_STATE_SERVING : v1::GROUP_STATE_DEGRADED);
  }
  group.set_missing_total(static_cast<int32_t>(missing.size()));
  for (const ExpertId& expert : missing) {
    if (group.missing_size() == kMaxMissingShown) break;
    v1::ExpertRef& shown = *group.add_missing();
    shown.set_layer(expert.layer);
    shown.set_expert(expert.expert);
  }
  return group;
}

std::vector<v1::Worker> Group::Workers(absl::Time now) const {
  std::map<std::string, double> load;
  double total = 0;
  std::map<std::string, int32_t> used;
  if (formed()) {
    for (const LayerLevel& layer : LevelByLayer(placement_, PlacementSpeeds(), load_->Tokens({}, now))) {
      for (size_t w = 0; w < layer.worker_tokens.size(); ++w) {
        load[placement_.workers[w]] += layer.worker_tokens[w];
        total += layer.worker_tokens[w];
      }
    }
    for (const Replica& replica : placement_.replicas) ++used[placement_.workers[replica.worker]];
  }
  std::vector<v1::Worker> workers;
  for (const auto& [name, worker] : workers_) {
    v1::Worker& shown = workers.emplace_back();
    shown.set_name(name);
    shown.set_group(this->name());
    shown.set_incarnation(worker.incarnation);
    shown.set_rank(-1);
    for (const v1::Member& member : record_.members()) {
      if (member.worker() == name && member.incarnation() == worker.incarnation) shown.set_rank(member.rank());
    }
    const bool loaded = formed() && worker.loaded_epoch == placement_.epoch.value();
    shown.set_state(!worker.alive         ? v1::WORKER_STATE_DEAD
                    : worker.leaving      ? v1::WORKER_STATE_LEAVING
                    : worker.session == 0 ? v1::WORKER_STATE_DISCONNECTED
                    : shown.rank() >= 0   ? v1::WORKER_STATE_SERVING
                    : loaded              ? v1::WORKER_STATE_READY
                                          : v1::WORKER_STATE_LOADING);
    shown.set_node(worker.hello.node());
    shown.set_data_address(worker.hello.data_address());
    shown.set_serving_address(worker.hello.serving_address());
    shown.set_slots(worker.hello.slots());
    shown.set_staging_slots(worker.hello.staging_slots());
    shown.set_slots_used(used[name]);
    shown.set_speed(SpeedOf(name));
    shown.set_kernel_fingerprint(worker.hello.kernel_fingerprint());
    shown.set_version(worker.hello.version());
    *shown.mutable_last_heard() = ToProto(worker.last_heard);
    shown.set_load_ratio(total == 0 ? 0 : load[name] / total);
    shown.set_requests_running(worker.heartbeat.requests_running());
    shown.set_requests_waiting(worker.heartbeat.requests_waiting());
    shown.set_kv_cache_used_ratio(worker.heartbeat.kv_cache_used_ratio());
    const v1::DrainStatus drain = DrainStatusOf(name, worker);
    shown.set_drain(drain.state());
    shown.set_drain_reason(drain.reason());
    shown.set_cordoned(Cordoned(name));
  }
  const auto order = [](const v1::Worker& w) {
    return std::tuple(w.rank() < 0 ? std::numeric_limits<int32_t>::max() : w.rank(), w.name());
  };
  std::sort(workers.begin(), workers.end(),
            [&](const v1::Worker& a, const v1::Worker& b) { return order(a) < order(b); });
  return workers;
}

std::optional<v1::GetLoadResponse> Group::Load(const LoadWindow::Selection& selection, absl::Time now) const {
  if (!formed()) return std::nullopt;
  v1::GetLoadResponse response;
  *response.mutable_start() = ToProto(load_->Start(selection, now));
  *response.mutable_end() = ToProto(now);
  const std::vector<double> tokens = load_->Tokens(selection, now);
  const std::vector<LayerLevel> levels = LevelByLayer(placement_, PlacementSpeeds(), tokens);
  for (int32_t l = 0; l < placement_.num_layers; ++l) {
    v1::LayerLoad& layer = *response.add_layers();
    layer.set_layer(l);
    layer.set_balancedness(levels[l].balancedness);
    const auto begin = tokens.begin() + static_cast<ptrdiff_t>(l) * placement_.num_experts;
    layer.mutable_tokens()->Assign(begin, begin + placement_.num_experts);
    layer.mutable_worker_tokens()->Assign(levels[l].worker_tokens.begin(), levels[l].worker_tokens.end());
  }
  for (const LoadWindow::TaskTotal& total : load_->Tasks(selection, now)) {
    v1::TaskLoad& task = *response.add_tasks();
    task.set_task(total.task);
    task.set_prefill_tokens(total.prefill);
    task.set_decode_tokens(total.decode);
    task.set_sampled_tokens(load_->SampledTokens(total.task));
  }
  return response;
}

v1::Plan Group::Shown(const store::PlanRecord& plan) const {
  v1::Plan shown = plan.plan();
  if (Preparing() && &plan == ActivePlan()) {
    for (const auto& [name, worker] : workers_) {
      if (worker.progress.epoch() != plan.wave_epoch()) continue;
      shown.set_moves_done(shown.moves_done() + worker.progress.moves_done());
      shown.set_bytes_done(shown.bytes_done() + worker.progress.bytes_done());
    }
  }
  return shown;
}

std::vector<v1::Plan> Group::Plans() const {
  std::vector<v1::Plan> plans;
  for (const auto& [id, plan] : plans_) plans.push_back(Shown(plan));
  std::sort(plans.begin(), plans.end(),
            [](const v1::Plan& a, const v1::Plan& b) { return PlanNumber(a.id()) > PlanNumber(b.id()); });
  return plans;
}

std::optional<v1::GetPlanResponse> Group::Plan(const std::string& id) const {
  const auto plan = plans_.find(id);
  if (plan == plans_.end()) return std::nullopt;
  v1::GetPlanResponse response;
  *response.mutable_plan() = Shown(plan->second);
  *response.mutable_layers() = plan->second.layers();
  *response.mutable_reasons() = plan->second.reasons();
  return response;
}

}  // namespace ballast
