#include "controller/service/planning.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "controller/planner/eplb.h"
#include "controller/planner/failure.h"
#include "controller/planner/grouping/homes.h"
#include "controller/planner/grouping/policies.h"
#include "controller/planner/grouping/reasons.h"
#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "controller/rollout/plan_effect.h"
#include "controller/rollout/traffic_effect.h"
#include "proto/base/clock.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr char kCostAware[] = "cost-aware";
constexpr char kTaskAware[] = "task-aware";
constexpr char kTacg[] = "tacg";
// Moved replicas whose reasons a plan keeps.
constexpr size_t kMostReasons = 20;

PlanRequest MakeRequest(const PlanJob& job, const GateLimits& gate, const CostModel& cost_model) {
  PlanRequest request;
  std::map<std::string, int32_t> nodes;
  for (const PlanWorker& worker : job.workers) {
    const int32_t node = nodes.emplace(worker.node, static_cast<int32_t>(nodes.size())).first->second;
    request.topology.workers.push_back(
        {.name = worker.name, .node = node, .capacity = worker.capacity, .speed = worker.speed});
  }
  if (job.max_bytes_per_second > 0) {
    const auto limit = static_cast<double>(job.max_bytes_per_second);
    request.topology.node_bytes_per_second = std::min(request.topology.node_bytes_per_second, limit);
    request.topology.cross_node_bytes_per_second = std::min(request.topology.cross_node_bytes_per_second, limit);
  }
  for (const PlanScenario& scenario : job.scenarios) {
    LoadMatrix load(job.current.num_layers, job.current.num_experts);
    load.tokens = scenario.tokens;
    request.scenarios.push_back({.name = scenario.name, .load = std::move(load)});
  }
  request.current = job.current;
  request.expert_bytes = job.expert_bytes;
  // EPLB plans from nothing, as published. Going around workers takes the fewest moves; balance is the next plan's.
  if (job.policy == kCostAware && !job.target.has_value())
    request.move_budget = {.max_moves = job.max_moves, .max_bytes = job.max_move_bytes};
  request.gate = gate;
  request.cost_model = cost_model;
  return request;
}

// Homes on other workers: worker w's number becomes to[w]; those with -1 are left out, and tasks without any.
std::vector<TaskHomes> Renumber(const std::vector<TaskHomes>& homes, std::span<const int32_t> to) {
  std::vector<TaskHomes> out;
  for (const TaskHomes& task : homes) {
    TaskHomes kept{task.task, {}};
    for (TaskHome home : task.homes) {
      if (to[home.worker] < 0) continue;
      home.worker = to[home.worker];
      kept.homes.push_back(home);
    }
    if (!kept.homes.empty()) out.push_back(std::move(kept));
  }
  return out;
}

// `placement`, over the workers that serve, over all of `workers`: those that do not serve hold nothing.
Placement OverWorkers(Placement placement, const std::vector<std::string>& workers) {
  std::vector<int32_t> to;
  for (const std::string& name : placement.workers) {
    to.push_back(static_cast<int32_t>(std::find(workers.begin(), workers.end(), name) - workers.begin()));
  }
  for (Replica& replica : placement.replicas) replica.worker = to[replica.worker];
  placement.task_homes = Renumber(placement.task_homes, to);
  placement.workers = workers;
  placement.Sort();
  return placement;
}

// What serves of the placement in force, over the request's workers.
Placement Serving(const Placement& current, const Topology& topology) {
  Placement serving = current;
  serving.workers.clear();
  for (const TopologyWorker& worker : topology.workers) serving.workers.push_back(worker.name);
  serving.replicas.clear();
  const std::vector<int32_t> to = WorkersOf(current, topology);
  for (Replica replica : current.replicas) {
    if (to[replica.worker] < 0) continue;
    replica.worker = to[replica.worker];
    serving.replicas.push_back(replica);
  }
  serving.task_homes = Renumber(current.task_homes, to);
  serving.Sort();
  return serving;
}

// Adds to `placement`, over current's workers, what `current` has of the experts that no wave has brought elsewhere
// yet: until one does they belong to the workers that are to go and serve them, or are gone, and then what needs them
// fails by that name.
Placement KeepLost(const Placement& current, Placement placement) {
  const auto at = [&](ExpertId expert) {
    return static_cast<size_t>(expert.layer) * current.num_experts + expert.expert;
  };
  std::vector<bool> held(static_cast<size_t>(current.num_layers) * current.num_experts);
  for (const Replica& replica : placement.replicas) held[at(replica.expert)] = true;
  for (const Replica& replica : current.replicas) {
    if (!held[at(replica.expert)]) placement.replicas.push_back(replica);
  }
  placement.Sort();
  return placement;
}

// FailedPrecondition when an expert of `target` would be without a replica.
absl::Status AllServe(const Placement& target, const Topology& topology) {
  const std::vector<DispatchTable> layers = Onto(target, topology);
  for (size_t l = 0; l < layers.size(); ++l) {
    for (int32_t e = 0; e < layers[l].num_experts(); ++e) {
      if (layers[l].begin[e] < layers[l].begin[e + 1]) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "layer ", l, ", expert ", e, ": the workers that held it in epoch ", target.epoch.value(), " are gone"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> Heal(const PlanRequest& request) {
  BALLAST_ASSIGN_OR_RETURN(FailurePlan failure, PlanFailure(request));
  if (failure.without_replica.empty()) return std::move(failure.plan);
  const ExpertId first = failure.without_replica.front();
  return absl::FailedPreconditionError(absl::StrCat(
      "the workers that serve have no slot left for ", failure.without_replica.size(),
      " experts of workers that are gone or to go, the first being layer ", first.layer, ", expert ", first.expert));
}

absl::StatusOr<Plan> MakePlanFor(const PlanJob& job, const PlanRequest& request) {
  if (job.target.has_value()) {
    BALLAST_RETURN_IF_ERROR(AllServe(*job.target, request.topology));
    return PlanTo("rollback", request, *job.target);
  }
  if (job.heal) return Heal(request);
  BALLAST_RETURN_IF_ERROR(CheckPolicy(job.policy));
  if (job.policy == kCostAware) return MakePlan(CostAwarePolicy(), request);
  if (!PlansFromRoutes(job.policy)) return MakePlan(EplbPolicy(), request);
  if (job.routes.tasks.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("policy ", job.policy,
                     " plans from routes of tokens, and the window holds none: see --route-samples of the workers"));
  }
  if (job.policy == kTacg) return MakePlan(TacgPolicy(job.routes), request);
  TaskAwareOptions options{.limits = job.group_limits,
                           .budget = {.max_moves = job.max_moves, .max_bytes = job.max_move_bytes}};
  BALLAST_ASSIGN_OR_RETURN(const int64_t budget, AllowedMoves(options.budget, job.expert_bytes));
  int64_t slots = 0;
  for (const PlanWorker& worker : job.workers) slots += worker.capacity.slots - worker.capacity.staging_slots;
  options.anew = job.current.task_homes.empty() && slots <= budget;
  return MakePlan(TaskAwarePolicy(job.routes, options), request);
}

// What a plan made from routes says beside the others, and whether it pays: by the time of a token, in pairs on the
// busiest worker and copies that are sent. `placement` has its homes, `serving` those in force.
void JudgeByRoutes(const PlanJob& job, const PlanRequest& request, const Plan& plan, const Placement& serving,
                   const Placement& placement, PlanOutcome& outcome) {
  const std::vector<DispatchTable> before = Onto(serving, request.topology), after = Onto(placement, request.topology);
  SetTraffic(before, after, job.routes, request.topology, outcome.effect);
  const double pairs = static_cast<double>(job.routes.layers) * job.routes.top_k;
  const auto time = [&](const std::vector<DispatchTable>& layers, const Placement& of, const v1::Traffic& traffic) {
    return TokenMicroseconds(traffic, pairs, HomeSavings(layers, job.routes, of.task_homes, request.topology),
                             request.cost_model);
  };
  const v1::Traffic& was = outcome.effect.traffic_before();
  const v1::Traffic& is = outcome.effect.traffic_after();
  GateInput input = MakeGateInput(request, plan);
  input.gain = 1 - time(after, placement, is) / time(before, serving, was);
  const GateDecision gate = Decide(input, request.gate);
  outcome.worth = gate.worth;
  outcome.reason = absl::StrFormat(
      "%.2f copies a token in place of %.2f, busiest worker of a layer %.3f above the mean in place of %.3f; %s",
      is.copies_per_token(), was.copies_per_token(), is.maxvio(), was.maxvio(), gate.reason);
  for (const ReplicaReason& reason : ReasonsForMoves(
           before, after, job.routes, static_cast<int32_t>(request.topology.workers.size()), kMostReasons)) {
    outcome.reasons.push_back(ToProto(reason, placement.workers));
  }
}

int32_t CountReplicas(const Placement& placement, int32_t layer) {
  return static_cast<int32_t>(std::count_if(placement.replicas.begin(), placement.replicas.end(),
                                            [layer](const Replica& r) { return r.expert.layer == layer; }));
}

// The worker that is to go and has the expert; empty: none has.
std::string GoingHolder(const PlanJob& job, ExpertId expert) {
  for (const Replica& replica : job.current.replicas) {
    if (replica.expert != expert) continue;
    const std::string& holder = job.current.workers[replica.worker];
    if (std::find(job.going.begin(), job.going.end(), holder) != job.going.end()) return holder;
  }
  return "";
}

v1::Move ToProto(const Move& move, const PlanJob& job) {
  v1::Move proto;
  proto.set_layer(move.expert.layer);
  proto.set_expert(move.expert.expert);
  proto.set_source(move.source >= 0 ? job.workers[move.source].name : GoingHolder(job, move.expert));
  proto.set_destination(job.workers[move.worker].name);
  proto.set_slot(move.slot);
  proto.set_bytes(job.expert_bytes);
  return proto;
}

}  // namespace

std::vector<std::string> PolicyNames() { return {kCostAware, "eplb", kTacg, kTaskAware}; }

absl::Status CheckPolicy(std::string_view policy) {
  const std::vector<std::string> names = PolicyNames();
  if (std::find(names.begin(), names.end(), policy) != names.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("policy: '", std::string(policy), "' is none of ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<PlanOutcome> RunPlanJob(const PlanJob& job, const GateLimits& limits, const CostModel& cost_model) {
  const absl::Time start = Clock::Real().Now();
  const PlanRequest request = MakeRequest(job, limits, cost_model);
  BALLAST_ASSIGN_OR_RETURN(const Plan plan, MakePlanFor(job, request));

  PlanOutcome outcome;
  const Placement serving = Serving(job.current, request.topology);
  const bool grouped = !job.target.has_value() && !job.heal && PlansFromRoutes(job.policy);
  std::vector<TaskHomes> homes;
  if (job.target.has_value()) {
    homes = Renumber(job.target->task_homes, WorkersOf(*job.target, request.topology));
  } else if (job.heal) {
    homes = serving.task_homes;
  } else if (grouped) {
    homes = HomesOf(Onto(plan.placement, request.topology), job.routes, request.topology);
  }
  Placement placement = serving;
  for (const Wave& wave : plan.waves) {
    placement = ApplyWave(std::move(placement), wave);
    // Homes go with the last replicas.
    if (&wave == &plan.waves.back()) placement.task_homes = homes;
    PlannedWave& planned = outcome.waves.emplace_back();
    planned.placement = OverWorkers(placement, job.current.workers);
    if (job.heal) planned.placement = KeepLost(job.current, std::move(planned.placement));
    for (const Move& move : wave.moves) planned.moves.push_back(ToProto(move, job));
  }
  if (job.heal && outcome.waves.empty()) {
    // Nothing moves, but the placement no longer counts on who is gone.
    outcome.waves.push_back({OverWorkers(serving, job.current.workers), {}});
  }
  if (grouped && outcome.waves.empty() && homes != serving.task_homes) {
    // Every replica is where it should be, and tasks start elsewhere.
    placement.task_homes = homes;
    outcome.waves.push_back({OverWorkers(placement, job.current.workers), {}});
  }
  // All phases together, as the window's figures are.
  Scenario all{.name = "all", .load = LoadMatrix(job.current.num_layers, job.current.num_experts)};
  for (const PlanScenario& scenario : job.scenarios) {
    if (scenario.remembered) continue;
    for (size_t i = 0; i < scenario.tokens.size(); ++i) all.load.tokens[i] += scenario.tokens[i];
  }
  const LoadScore before = ScoreLoad(serving, all, request.topology);
  const LoadScore after = ScoreLoad(placement, all, request.topology);
  outcome.balancedness_before = before.balancedness;
  outcome.balancedness_after = after.balancedness;
  outcome.balancedness_bound = after.upper_bound;
  outcome.gain_tokens = before.busiest - after.busiest;
  outcome.effect = MakePlanEffect(plan, {before.busiest, after.busiest, after.busiest_bound}, request.cost_model);
  for (int32_t l = 0; l < job.current.num_layers; ++l) {
    v1::LayerEffect& effect = outcome.layers.emplace_back();
    effect.set_layer(l);
    effect.set_balancedness_before(before.layers[l].balancedness);
    effect.set_balancedness_after(after.layers[l].balancedness);
    effect.set_replicas_before(CountReplicas(serving, l));
    effect.set_replicas_after(CountReplicas(placement, l));
  }
  // A plan that its budget cut short leaves what the next one may take.
  const MoveBudget budget =
      job.policy == kTaskAware ? MoveBudget{job.max_moves, job.max_move_bytes} : request.move_budget;
  const bool cut_short = (budget.max_moves > 0 && plan.moves >= budget.max_moves) ||
                         (budget.max_bytes > 0 && plan.bytes + job.expert_bytes > budget.max_bytes);
  // Around workers balance is the next plan's.
  if (!cut_short && !job.heal)
    outcome.settled = Settle(placement, request.topology, request.scenarios, ShareMode::kFixed);
  outcome.worth = job.heal || plan.gate.worth;
  outcome.reason = job.heal ? absl::StrCat("serves with ", job.workers.size(), " of ", job.current.workers.size(),
                                           " workers after ", plan.moves, " moves")
                            : plan.gate.reason;
  if (grouped) {
    JudgeByRoutes(job, request, plan, serving, placement, outcome);
    if (!cut_short && !job.interim) {
      for (const v1::TaskEffect& task : outcome.effect.tasks()) outcome.settled_mix[task.task()] = task.mix_ratio();
    }
  }
  outcome.planning_time = Clock::Real().Now() - start;
  return outcome;
}

}  // namespace ballast
