#include "controller/planner/planner.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/planner/layer_search.h"
#include "controller/planner/memory.h"
#include "controller/planner/objective.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

bool SameReplicas(const DispatchTable& a, const DispatchTable& b) { return a.begin == b.begin && a.rank == b.rank; }

// Hands MakePlan a placement that is known beforehand.
class StandingPolicy final : public PlannerPolicy {
 public:
  StandingPolicy(std::string_view name, const Placement& target) : name_(name), target_(target) {}
  std::string_view name() const override { return name_; }
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override {
    return Onto(target_, request.topology);
  }

 private:
  const std::string_view name_;
  const Placement& target_;
};

// The tables with the changes made, workers ascending.
std::vector<DispatchTable> AfterChanges(std::vector<DispatchTable> tables, std::span<const Change> changes) {
  std::vector<std::vector<const Change*>> of(tables.size());
  for (const Change& change : changes) of[change.layer].push_back(&change);
  std::vector<Change::Place> held;
  for (size_t l = 0; l < tables.size(); ++l) {
    if (of[l].empty()) continue;
    DispatchTable& table = tables[l];
    held.clear();
    for (int32_t e = 0; e < table.num_experts(); ++e) {
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) held.push_back({e, table.rank[r]});
    }
    for (const Change* change : of[l]) {
      for (const Change::Place& place : change->departures)
        held.erase(std::lower_bound(held.begin(), held.end(), place));
      for (const Change::Place& place : change->arrivals) {
        held.insert(std::lower_bound(held.begin(), held.end(), place), place);
      }
    }
    table.rank.clear();
    std::fill(table.begin.begin(), table.begin.end(), 0);
    for (const auto& [e, w] : held) {
      ++table.begin[e + 1];
      table.rank.push_back(w);
    }
    for (int32_t e = 0; e < table.num_experts(); ++e) table.begin[e + 1] += table.begin[e];
    table.weight.assign(table.rank.size(), 1);
  }
  return tables;
}

// Slots from 0 on every worker, layer after layer.
Placement FirstPlacement(std::span<const DispatchTable> layers, const Topology& topology) {
  Placement out;
  out.num_layers = static_cast<int32_t>(layers.size());
  out.num_experts = layers[0].num_experts();
  for (const TopologyWorker& w : topology.workers) out.workers.push_back(w.name);
  std::vector<int32_t> next(topology.workers.size());
  for (int32_t l = 0; l < out.num_layers; ++l) {
    for (int32_t e = 0; e < out.num_experts; ++e) {
      for (int32_t r = layers[l].begin[e]; r < layers[l].begin[e + 1]; ++r) {
        const int32_t w = layers[l].rank[r];
        out.replicas.push_back({{l, e}, w, next[w]++, layers[l].weight[r]});
      }
    }
  }
  return out;
}

std::vector<SlotCapacity> Capacities(const Topology& topology) {
  std::vector<SlotCapacity> capacity;
  for (const TopologyWorker& w : topology.workers) capacity.push_back(w.capacity);
  return capacity;
}

// The placement that the waves lead to, and what they cost.
void FollowWaves(const PlanRequest& request, const Placement& current, Plan& plan) {
  plan.placement = ApplyWaves(current, plan.waves);
  for (const Wave& wave : plan.waves) plan.moves += static_cast<int64_t>(wave.moves.size());
  plan.bytes = BytesOf(plan.moves, request.expert_bytes);
  plan.transfer = CostOfTransfers(plan.waves, request.topology, request.expert_bytes);
}

std::vector<double> Busiest(std::span<const LoadScore> scores) {
  std::vector<double> busiest;
  for (const LoadScore& score : scores) busiest.push_back(score.busiest_in_step);
  return busiest;
}

// The effect of plan.placement, whose tables are `layers`, and of the placement in force where there is one (`current`
// not empty). What does not change is scored once. `solved` [layers]: the balancedness of `layers` with shares solved
// for the one scenario, where it is known; else empty.
void Predict(const PlanRequest& request, std::span<const DispatchTable> current, std::span<const DispatchTable> layers,
             std::span<const double> solved, Plan& plan) {
  LayerScorer scorer(request.topology);
  for (const Scenario& s : request.scenarios) {
    std::vector<LayerScore> now;
    std::vector<LayerScore> then;
    for (size_t l = 0; l < layers.size(); ++l) {
      const auto tokens = s.load.layer(static_cast<int32_t>(l));
      const double burstiness = BurstinessOf(s, static_cast<int32_t>(l));
      then.push_back(scorer.Score(layers[l], tokens, solved.empty() ? 0 : solved[l], burstiness));
      if (current.empty()) continue;
      const bool same = SameReplicas(current[l], layers[l]) && current[l].weight == layers[l].weight;
      now.push_back(same ? then.back() : scorer.ScoreUnsolved(current[l], tokens, burstiness));
    }
    plan.predicted.push_back(SumUp(std::move(then), s));
    if (!current.empty()) plan.current.push_back(SumUp(std::move(now), s));
  }
  const Objective objective(request.scenarios, request.topology);
  plan.objective = plan.objective_now = objective.Of(Busiest(plan.predicted));
  if (current.empty()) return;
  plan.objective_now = objective.Of(Busiest(plan.current));
  plan.gain = 1 - plan.objective / plan.objective_now;
  for (size_t i = 0; i < plan.current.size(); ++i) {
    plan.gain_tokens += plan.current[i].busiest_in_step - plan.predicted[i].busiest_in_step;
  }
  plan.gain_microseconds = plan.gain_tokens * request.cost_model.microseconds_per_token;
  plan.gate = Decide(MakeGateInput(request, plan), request.gate);
}

// Weights where the policy left them open.
void SolveOpenWeights(const PlanRequest& request, std::vector<DispatchTable>& layers) {
  const LoadMatrix blend = Blend(request.scenarios);
  LayerSolver solver(static_cast<int32_t>(request.topology.workers.size()), Speeds(request.topology));
  for (int32_t l = 0; l < blend.layers; ++l) {
    const auto& weight = layers[l].weight;
    if (std::find(weight.begin(), weight.end(), 0u) != weight.end()) solver.SolveWeights(blend.layer(l), layers[l]);
  }
}

// Replicas of `to` that `from` has not.
int64_t Arrivals(const DispatchTable& from, const DispatchTable& to) {
  int64_t arrivals = 0;
  std::vector<int32_t> before;
  for (int32_t e = 0; e < to.num_experts(); ++e) {
    before.assign(from.rank.begin() + from.begin[e], from.rank.begin() + from.begin[e + 1]);
    std::sort(before.begin(), before.end());
    for (int32_t r = to.begin[e]; r < to.begin[e + 1]; ++r) {
      arrivals += !std::binary_search(before.begin(), before.end(), to.rank[r]);
    }
  }
  return arrivals;
}

// At most what placing layers anew could take off the objective with `left` moves: what is above the bound in the
// layers that have most of it, a layer that is placed anew moving at least half of its replicas. (Close to the
// placement in force some stay by chance; a layer that kept more would be changed one by one.)
double MostByNewLayers(const PlanRequest& request, const Plan& plan, int64_t left) {
  const size_t layers = plan.predicted[0].layers.size();
  const auto each = std::max<int64_t>(1, static_cast<int64_t>(plan.placement.replicas.size() / layers / 2));
  const std::vector<double> slopes = Objective(request.scenarios, request.topology).Slopes(Busiest(plan.predicted));
  std::vector<double> above(layers);
  for (size_t l = 0; l < layers; ++l) {
    for (size_t s = 0; s < slopes.size(); ++s) {
      const LayerScore& score = plan.predicted[s].layers[l];
      above[l] += slopes[s] * (score.busiest_in_step - score.busiest_bound);
    }
  }
  std::sort(above.begin(), above.end(), std::greater<>());
  const auto some = static_cast<std::ptrdiff_t>(std::min<int64_t>(std::ssize(above), left / each));
  return std::accumulate(above.begin(), above.begin() + some, 0.0);
}

// `plan` with some layers as the policy places them anew: those that gain most a move, within `allowed` moves in all
// and the workers' room. Nothing where no layer is.
std::optional<Plan> WithNewLayers(const PlannerPolicy& policy, const PlanRequest& request, const Placement& current,
                                  const Plan& plan, int64_t allowed) {
  absl::StatusOr<std::vector<DispatchTable>> placed = policy.Place(request);
  if (!placed.ok()) return std::nullopt;
  SolveOpenWeights(request, *placed);
  const std::vector<DispatchTable> now = Onto(current, request.topology);
  std::vector<DispatchTable> then = Onto(plan.placement, request.topology);
  const std::vector<double> slopes = Objective(request.scenarios, request.topology).Slopes(Busiest(plan.predicted));
  LayerScorer scorer(request.topology);
  struct Candidate {
    double ratio;  // gain a move
    int32_t layer;
    int64_t moves;  // more than `plan` makes there
    bool operator<(const Candidate& other) const {
      return ratio != other.ratio ? ratio > other.ratio : layer < other.layer;
    }
  };
  std::vector<Candidate> candidates;
  for (int32_t l = 0; l < static_cast<int32_t>(then.size()); ++l) {
    double gain = 0;
    for (size_t s = 0; s < slopes.size(); ++s) {
      const Scenario& scenario = request.scenarios[s];
      const double anew = scorer.Busiest((*placed)[l], scenario.load.layer(l), BurstinessOf(scenario, l));
      gain += slopes[s] * (plan.predicted[s].layers[l].busiest_in_step - anew);
    }
    const int64_t moves = Arrivals(now[l], (*placed)[l]) - Arrivals(now[l], then[l]);
    if (gain > 0) candidates.push_back({gain / static_cast<double>(std::max<int64_t>(1, moves)), l, moves});
  }
  std::sort(candidates.begin(), candidates.end());
  std::vector<int32_t> free = Room(plan.placement, request.topology, LimitsOf(request, allowed).slots_per_worker).free;
  int64_t left = allowed - plan.moves;
  bool any = false;
  for (const Candidate& candidate : candidates) {
    DispatchTable& anew = (*placed)[candidate.layer];
    std::vector<int32_t> after = free;
    for (const int32_t w : then[candidate.layer].rank) ++after[w];
    for (const int32_t w : anew.rank) --after[w];
    bool fits = candidate.moves <= left;
    for (size_t w = 0; w < after.size(); ++w) fits &= after[w] >= std::min(0, free[w]);
    if (!fits) continue;
    any = true;
    left -= candidate.moves;
    free = std::move(after);
    then[candidate.layer] = std::move(anew);
  }
  if (!any) return std::nullopt;
  absl::StatusOr<std::vector<Wave>> waves =
      PlanWaves(current, then, request.topology, request.scenarios, request.waves);
  if (!waves.ok()) return std::nullopt;
  Plan anew;
  anew.policy = plan.policy;
  anew.waves = *std::move(waves);
  FollowWaves(request, current, anew);
  BALLAST_CHECK(anew.moves <= allowed) << anew.moves << " moves, " << allowed << " allowed";
  Predict(request, now, then, {}, anew);
  return anew;
}

absl::StatusOr<Plan> MakeIncrement(const PlannerPolicy& policy, const PlanRequest& request) {
  const Placement current = OverTopology(*request.current, request.topology);
  if (const absl::Status sound = Validate(current, Capacities(request.topology)); !sound.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("current: on the topology's workers: ", std::string(sound.message())));
  }
  BALLAST_ASSIGN_OR_RETURN(const int64_t moves, AllowedMoves(request.move_budget, request.expert_bytes));
  const Split split = policy.split(request);
  SolvedLayers solved;
  const std::vector<Change> changes =
      FindIncrement(current, request.topology, request.scenarios, split, LimitsOf(request, moves), &solved);
  BALLAST_ASSIGN_OR_RETURN(Plan plan, PlanChanges(policy.name(), request, current, changes, split, solved));
  const double part = Bursty(request.scenarios) ? GateLimits::kOfGainInBursts : 1;
  const double least = std::max(request.gate.min_gain * part, 1e-6) * plan.objective;
  if (MostByNewLayers(request, plan, moves - plan.moves) >= least) {
    std::optional<Plan> anew = WithNewLayers(policy, request, current, plan, moves);
    if (anew && anew->objective <= plan.objective - least && (anew->gate.worth || !plan.gate.worth)) {
      plan = *std::move(anew);
    }
  }
  // The search knows the split that the policy goes by, for all scenarios together; by the weights in force a scenario
  // may say otherwise.
  if (plan.objective <= plan.objective_now) return plan;
  Plan none;
  none.policy = policy.name();
  none.placement = current;
  const std::vector<DispatchTable> tables = Onto(current, request.topology);
  Predict(request, tables, tables, {}, none);
  return none;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> SlotsOfWorkers(const PlanRequest& request) {
  const LoadMatrix& load = request.scenarios[0].load;
  std::vector<int32_t> slots;
  int64_t all = 0;
  for (const TopologyWorker& w : request.topology.workers) {
    const int32_t fit = (w.capacity.slots - w.capacity.staging_slots) / load.layers;
    if (request.slots_per_layer > fit) {
      return absl::FailedPreconditionError(absl::StrCat(
          "slots_per_layer: ", request.slots_per_layer, " in each of ", load.layers, " layers; worker '", w.name,
          "' has room for ", fit, " (", w.capacity.slots, " slots less ", w.capacity.staging_slots, " for staging)"));
    }
    slots.push_back(std::min(request.slots_per_layer > 0 ? request.slots_per_layer : fit, load.experts));
    all += slots.back();
  }
  if (all < load.experts) {
    return absl::FailedPreconditionError(
        absl::StrCat("slots: ", all, " a layer on ", slots.size(), " workers; a layer has ", load.experts, " experts"));
  }
  return slots;
}

absl::StatusOr<int32_t> SlotsPerLayer(const PlanRequest& request) {
  BALLAST_ASSIGN_OR_RETURN(const std::vector<int32_t> each, SlotsOfWorkers(request));
  const auto workers = static_cast<int64_t>(each.size());
  const int32_t slots = *std::min_element(each.begin(), each.end());
  const int32_t experts = request.scenarios[0].load.experts;
  if (slots * workers < experts) {
    return absl::FailedPreconditionError(
        absl::StrCat("slots: ", workers, " workers of ", slots, " slots a layer; a layer has ", experts, " experts"));
  }
  return slots;
}

Placement WithSolvedShares(Placement placement, const Topology& topology, std::span<const Scenario> scenarios) {
  const LoadMatrix blend = Blend(scenarios);
  LayerSolver solver(static_cast<int32_t>(topology.workers.size()), Speeds(topology));
  std::vector<DispatchTable> layers = Onto(placement, topology);
  for (int32_t l = 0; l < placement.num_layers; ++l) solver.SolveWeights(blend.layer(l), layers[l]);
  std::vector<bool> known;
  for (const std::string& name : placement.workers) {
    known.push_back(std::any_of(topology.workers.begin(), topology.workers.end(),
                                [&](const TopologyWorker& w) { return w.name == name; }));
  }
  // The tables hold the replicas in the placement's order.
  std::vector<size_t> next(layers.size());
  for (Replica& r : placement.replicas) {
    if (known[r.worker]) r.weight = layers[r.expert.layer].weight[next[r.expert.layer]++];
  }
  return placement;
}

IncrementLimits LimitsOf(const PlanRequest& request, int64_t max_moves) {
  IncrementLimits limits;
  limits.max_moves = max_moves;
  limits.slots_per_layer = request.slots_per_layer;
  const Topology& topology = request.topology;
  const bool one_node = std::all_of(topology.workers.begin(), topology.workers.end(),
                                    [&](const TopologyWorker& w) { return w.node == topology.workers[0].node; });
  const double seconds = static_cast<double>(request.expert_bytes) /
                         (one_node ? topology.node_bytes_per_second : topology.cross_node_bytes_per_second);
  // Nothing pays within no time; then what moves cost is left to the gate.
  if (const double worth = request.gate.horizon_seconds * request.gate.moe_share; worth > 0) {
    limits.least_gain =
        std::max(limits.least_gain, request.gate.payback * seconds * request.gate.move_slowdown / worth);
  }
  if (request.replicas_per_worker) {
    const LoadMatrix& load = request.scenarios[0].load;
    const auto workers = static_cast<int64_t>(request.topology.workers.size());
    const int64_t each = (static_cast<int64_t>(load.layers) * load.experts + workers - 1) / workers;
    limits.slots_per_worker = static_cast<int32_t>(
        std::min<int64_t>(each + *request.replicas_per_worker, std::numeric_limits<int32_t>::max()));
  }
  return limits;
}

absl::Status Validate(const PlanRequest& request) {
  BALLAST_RETURN_IF_ERROR(Validate(request.topology));
  BALLAST_RETURN_IF_ERROR(Validate(request.scenarios));
  if (request.expert_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("expert_bytes: ", request.expert_bytes, "; must be at least 0"));
  }
  if (request.slots_per_layer < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("slots_per_layer: ", request.slots_per_layer, "; must be at least 0"));
  }
  BALLAST_RETURN_IF_ERROR(AllowedMoves(request.move_budget, request.expert_bytes).status());
  BALLAST_RETURN_IF_ERROR(Validate(request.cost_model));
  if (!request.current) return absl::OkStatus();
  const LoadMatrix& load = request.scenarios[0].load;
  if (request.current->num_layers != load.layers || request.current->num_experts != load.experts) {
    return absl::InvalidArgumentError(absl::StrCat("current: ", request.current->num_layers, " layers of ",
                                                   request.current->num_experts, " experts; the load has ", load.layers,
                                                   " of ", load.experts));
  }
  return Validate(*request.current);
}

GateInput MakeGateInput(const PlanRequest& request, const Plan& plan) {
  GateInput input;
  input.gain = plan.gain;
  input.bursty = Bursty(request.scenarios);
  input.moves = plan.moves;
  input.transfer_seconds = plan.transfer.seconds;
  input.waves = static_cast<int64_t>(plan.waves.size());
  const LoadMatrix& shape = request.scenarios[0].load;
  double tokens = 0;
  for (const Scenario& s : request.scenarios) {
    for (const double t : s.load.tokens) tokens += t;
  }
  input.tokens_per_worker_layer = tokens / shape.layers / static_cast<double>(request.topology.workers.size());
  if (request.current) {
    const std::vector<int32_t> worker_of = WorkersOf(*request.current, request.topology);
    std::vector<uint8_t> held(shape.tokens.size());
    for (const Replica& r : request.current->replicas) {
      if (worker_of[r.worker] >= 0) held[static_cast<size_t>(r.expert.layer) * shape.experts + r.expert.expert] = 1;
    }
    input.restores_experts = std::find(held.begin(), held.end(), 0) != held.end();
  }
  return input;
}

absl::StatusOr<Plan> PlanChanges(std::string_view name, const PlanRequest& request, const Placement& current,
                                 std::span<const Change> changes, Split split, const SolvedLayers& known) {
  const LoadMatrix blend = Blend(request.scenarios);
  LayerSolver solver(static_cast<int32_t>(request.topology.workers.size()), Speeds(request.topology));
  const std::vector<DispatchTable> tables = Onto(current, request.topology);
  std::vector<DispatchTable> target = AfterChanges(tables, changes);
  std::vector<double> solved = known.levels;
  for (int32_t l = 0; l < blend.layers; ++l) {
    if (split == Split::kSolved && !known.flow.empty()) {
      FlowToWeights(known.flow[l], target[l]);
    } else if (split == Split::kSolved) {
      solved.push_back(solver.SolveWeights(blend.layer(l), target[l]));
    } else {
      target[l].weight.assign(target[l].rank.size(), 1);
    }
  }
  Plan plan;
  plan.policy = name;
  BALLAST_ASSIGN_OR_RETURN(plan.waves,
                           PackWaves(current, changes, target, request.topology, request.scenarios, request.waves));
  FollowWaves(request, current, plan);
  // Of the blend, which is the one scenario's load or of use to nobody.
  if (request.scenarios.size() > 1) solved.clear();
  Predict(request, tables, target, solved, plan);
  return plan;
}

std::optional<PlanRequest> ByMeans(const PlanRequest& request, Split split) {
  if (split != Split::kSolved || !Bursty(request.scenarios)) return std::nullopt;
  PlanRequest by_means = request;
  for (Scenario& s : by_means.scenarios) s.burstiness.clear();
  return by_means;
}

absl::StatusOr<Plan> PlanTo(std::string_view name, PlanRequest request, const Placement& target) {
  request.move_budget = {};
  return MakePlan(StandingPolicy(name, target), request);
}

absl::StatusOr<Plan> MakePlan(const PlannerPolicy& policy, const PlanRequest& request) {
  BALLAST_RETURN_IF_ERROR(Validate(request));
  if (const auto by_means = ByMeans(request, policy.split(request))) return MakePlan(policy, *by_means);
  if (request.current && request.move_budget.limited()) return MakeIncrement(policy, request);
  BALLAST_ASSIGN_OR_RETURN(std::vector<DispatchTable> layers, policy.Place(request));
  SolveOpenWeights(request, layers);
  Plan plan;
  plan.policy = policy.name();
  std::optional<Placement> current;
  if (request.current) {
    current = OverTopology(*request.current, request.topology);
    BALLAST_ASSIGN_OR_RETURN(plan.waves,
                             PlanWaves(*current, layers, request.topology, request.scenarios, request.waves));
    FollowWaves(request, *current, plan);
  } else {
    plan.placement = FirstPlacement(layers, request.topology);
  }
  const absl::Status sound = Validate(plan.placement, Capacities(request.topology));
  BALLAST_CHECK(sound.ok()) << policy.name() << " made an unsound placement: " << sound.message();
  Predict(request, current ? Onto(*current, request.topology) : std::vector<DispatchTable>(), layers, {}, plan);
  return plan;
}

}  // namespace ballast
