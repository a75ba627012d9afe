#include "controller/service/planning.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/planner/eplb.h"
#include "controller/planner/planner.h"
#include "proto/base/clock.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// Hands MakePlan a placement that is known beforehand.
class FixedPolicy final : public PlannerPolicy {
 public:
  explicit FixedPolicy(const Placement& target) : target_(target) {}
  std::string_view name() const override { return "rollback"; }
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override {
    return Onto(target_, request.topology);
  }

 private:
  const Placement& target_;
};

PlanRequest MakeRequest(const PlanJob& job) {
  PlanRequest request;
  std::map<std::string, int32_t> nodes;
  for (const PlanWorker& worker : job.workers) {
    const int32_t node = nodes.emplace(worker.node, static_cast<int32_t>(nodes.size())).first->second;
    request.topology.workers.push_back({.name = worker.name, .node = node, .capacity = worker.capacity});
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
  return request;
}

int32_t CountReplicas(const Placement& placement, int32_t layer) {
  return static_cast<int32_t>(std::count_if(placement.replicas.begin(), placement.replicas.end(),
                                            [layer](const Replica& r) { return r.expert.layer == layer; }));
}

v1::Move ToProto(const Move& move, const PlanJob& job) {
  v1::Move proto;
  proto.set_layer(move.expert.layer);
  proto.set_expert(move.expert.expert);
  if (move.source >= 0) proto.set_source(job.workers[move.source].name);
  proto.set_destination(job.workers[move.worker].name);
  proto.set_slot(move.slot);
  proto.set_bytes(job.expert_bytes);
  return proto;
}

}  // namespace

std::vector<std::string> PolicyNames() { return {"eplb"}; }

absl::Status CheckPolicy(std::string_view policy) {
  const std::vector<std::string> names = PolicyNames();
  if (std::find(names.begin(), names.end(), policy) != names.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("policy: '", std::string(policy), "' is none of ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<PlanOutcome> RunPlanJob(const PlanJob& job, const GateLimits& limits) {
  const absl::Time start = Clock::Real().Now();
  const PlanRequest request = MakeRequest(job);
  absl::StatusOr<Plan> made;
  if (job.target.has_value()) {
    made = MakePlan(FixedPolicy(*job.target), request);
  } else {
    BALLAST_RETURN_IF_ERROR(CheckPolicy(job.policy));
    made = MakePlan(EplbPolicy(), request);
  }
  if (!made.ok()) return made.status();
  const Plan& plan = *made;

  PlanOutcome outcome;
  Placement placement = job.current;
  for (const Wave& wave : plan.waves) {
    placement = ApplyWave(std::move(placement), wave);
    PlannedWave& planned = outcome.waves.emplace_back();
    planned.placement = placement;
    for (const Move& move : wave.moves) planned.moves.push_back(ToProto(move, job));
  }
  // All phases together, as the window's figures are.
  Scenario all{.name = "all", .load = LoadMatrix(job.current.num_layers, job.current.num_experts)};
  for (const PlanScenario& scenario : job.scenarios) {
    for (size_t i = 0; i < scenario.tokens.size(); ++i) all.load.tokens[i] += scenario.tokens[i];
  }
  const LoadScore before = ScoreLoad(job.current, all, request.topology);
  const LoadScore after = ScoreLoad(placement, all, request.topology);
  outcome.balancedness_before = before.balancedness;
  outcome.balancedness_after = after.balancedness;
  outcome.balancedness_bound = after.upper_bound;
  outcome.gain_tokens = before.busiest - after.busiest;
  for (int32_t l = 0; l < job.current.num_layers; ++l) {
    v1::LayerEffect& effect = outcome.layers.emplace_back();
    effect.set_layer(l);
    effect.set_balancedness_before(before.layers[l].balancedness);
    effect.set_balancedness_after(after.layers[l].balancedness);
    effect.set_replicas_before(CountReplicas(job.current, l));
    effect.set_replicas_after(CountReplicas(placement, l));
  }
  const GateDecision gate = Decide(MakeGateInput(request, plan), limits);
  outcome.worth = gate.worth;
  outcome.reason = gate.reason;
  outcome.planning_time = Clock::Real().Now() - start;
  return outcome;
}

}  // namespace ballast
