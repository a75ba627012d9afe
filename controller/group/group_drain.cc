// Workers that are to go: performs the steps of drain.h.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/group/drain.h"
#include "controller/group/group.h"

namespace ballast {

bool Group::Cordoned(const std::string& name) const {
  return std::binary_search(record_.cordoned().begin(), record_.cordoned().end(), name);
}

int32_t Group::SlotsUsed(const std::string& name) const {
  const auto number =
      std::find(placement_.workers.begin(), placement_.workers.end(), name) - placement_.workers.begin();
  return static_cast<int32_t>(std::count_if(placement_.replicas.begin(), placement_.replicas.end(),
                                            [number](const Replica& r) { return r.worker == number; }));
}

v1::DrainState Group::DrainOf(const std::string& name, const Worker& worker) const {
  // What follows costs a pass over the placement.
  if (!worker.leaving && !Cordoned(name)) return v1::DRAIN_STATE_UNSPECIFIED;
  return DrainStateOf({.alive = worker.alive,
                       .leaving = worker.leaving,
                       .cordoned = Cordoned(name),
                       .member = InView(name, worker.incarnation),
                       .holds = SlotsUsed(name) > 0,
                       .no_room = !worker.no_room.empty()});
}

v1::DrainStatus Group::DrainStatusOf(const std::string& name, const Worker& worker) const {
  v1::DrainStatus status;
  status.set_term(term_.value());
  status.set_group(this->name());
  status.set_state(DrainOf(name, worker));
  if (status.state() == v1::DRAIN_STATE_STUCK) status.set_reason(worker.no_room);
  return status;
}

std::vector<std::string> Group::Going() const {
  std::vector<std::string> going;
  for (const auto& [name, worker] : workers_) {
    if (DrainOf(name, worker) == v1::DRAIN_STATE_MOVING) going.push_back(name);
  }
  std::stable_sort(going.begin(), going.end(), [this](const std::string& a, const std::string& b) {
    return workers_.at(a).drain_order < workers_.at(b).drain_order;
  });
  return going;
}

bool Group::AnyDrains() const {
  return std::any_of(workers_.begin(), workers_.end(), [this](const auto& entry) {
    return (entry.second.alive && entry.second.leaving) || DrainOf(entry.first, entry.second) == v1::DRAIN_STATE_MOVING;
  });
}

bool Group::MaybeDrain(Turn& turn) {
  std::vector<std::string> going = Going();
  const auto takes = [this](const std::string& name) {
    return Serves(name) && DrainOf(name, workers_.at(name)) == v1::DRAIN_STATE_UNSPECIFIED;
  };
  const DrainPlanFacts facts{
      .moving = !going.empty(),
      .others = static_cast<int>(std::count_if(placement_.workers.begin(), placement_.workers.end(), takes)),
      .planning = !jobs_.empty(),
      .rollout_active = ActivePlan() != nullptr,
      .view_works = record_.members_size() > 0 && ViewInstalledEverywhere(),
      .last_planned = last_drain_planned_,
      .failures = drain_failures_};
  switch (DecideDrain(facts, options_.timing.drain_retry, turn.now)) {
    case DrainStep::kNothing:
      break;
    case DrainStep::kGiveUp:
      GiveUpDrain(turn, going.back(),
                  facts.others == 0
                      ? "no other worker serves"
                      : absl::StrCat(drain_failures_, " rollouts in a row failed, the last so: ", drain_failure_));
      // The others may fare better.
      drain_failures_ = 0;
      Settle(turn);
      break;
    case DrainStep::kPlan: {
      last_drain_planned_ = turn.now;
      const std::string reason = absl::StrCat(absl::StrJoin(going, ", "), going.size() == 1 ? " is" : " are", " to go");
      StartJob(turn,
               Job{.purpose = Job::Purpose::kDrain, .policy = "drain", .reason = reason, .going = std::move(going)},
               std::nullopt);
      break;
    }
  }
  return facts.moving;
}

void Group::OnDrainPlanned(Turn& turn, const Job& job, const absl::StatusOr<PlanOutcome>& outcome) {
  // Planned again if the group has changed meanwhile.
  if (Going() != job.going || ActivePlan() != nullptr || placement_.epoch.value() != job.base_epoch) return;
  if (outcome.ok()) {
    AddPlan(turn, *outcome, job, v1::PLAN_STATE_APPROVED);
    return;
  }
  // Where there is not room for all, there may be for those who asked before the last.
  GiveUpDrain(turn, job.going.back(), std::string(outcome.status().message()));
  last_drain_planned_ = absl::InfinitePast();
}

void Group::GiveUpDrain(Turn& turn, const std::string& name, const std::string& reason) {
  Worker& worker = workers_.at(name);
  worker.no_room = reason;
  Say(turn, Severity::kWarning,
      absl::StrCat("worker ", name, " keeps what it holds", worker.leaving ? " and takes it along" : "", ": ", reason));
}

void Group::TryDrainsAnew() {
  drain_failures_ = 0;
  for (auto& [name, worker] : workers_) worker.no_room.clear();
}

void Group::TellDrains(Turn& turn) {
  for (auto& [name, worker] : workers_) {
    if (worker.session == 0) continue;
    v1::DrainStatus status = DrainStatusOf(name, worker);
    if (status.state() == worker.told_drain) continue;
    worker.told_drain = status.state();
    turn.effects.changed = true;
    v1::ConnectResponse message;
    *message.mutable_drain_status() = std::move(status);
    Send(turn, worker, std::move(message));
  }
}

absl::StatusOr<v1::Worker> Group::Cordon(const std::string& name, bool cordoned, absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  if (!formed() || record_.last_view() == 0) {
    return absl::FailedPreconditionError(absl::StrCat("group ", this->name(), " is not formed"));
  }
  const auto found = workers_.find(name);
  if (found == workers_.end()) {
    return absl::NotFoundError(absl::StrCat("worker: group ", this->name(), " has no worker '", name, "'"));
  }
  if (Cordoned(name) != cordoned) {
    std::set<std::string> names(record_.cordoned().begin(), record_.cordoned().end());
    if (cordoned) {
      names.insert(name);
      found->second.drain_order = ++last_drain_order_;
    } else {
      names.erase(name);
    }
    record_.mutable_cordoned()->Assign(names.begin(), names.end());
    record_dirty_ = true;
    TryDrainsAnew();
    Say(turn, Severity::kInfo, absl::StrCat("worker ", name, cordoned ? " is to be drained" : " may be used again"));
  }
  Settle(turn);
  for (v1::Worker& worker : Workers(now)) {
    if (worker.name() == name) return std::move(worker);
  }
  return absl::InternalError(absl::StrCat("worker ", name, " is gone"));
}

absl::StatusOr<v1::Worker> Group::DrainWorker(const std::string& name, absl::Time now, Effects& effects) {
  return Cordon(name, true, now, effects);
}

absl::StatusOr<v1::Worker> Group::UndrainWorker(const std::string& name, absl::Time now, Effects& effects) {
  return Cordon(name, false, now, effects);
}

}  // namespace ballast
