#include "controller/planner/planner.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// Solves the weights of a layer for a load.
class Weigher {
 public:
  explicit Weigher(const Topology& topology) {
    bool alike = true;
    for (const TopologyWorker& w : topology.workers) {
      speeds_.push_back(w.speed);
      alike &= w.speed == topology.workers[0].speed;
    }
    workers_ = static_cast<int32_t>(speeds_.size());
    if (alike) speeds_.clear();
  }

  void Solve(std::span<const double> tokens, DispatchTable& layer) const {
    ShareSolver solver(layer, workers_, speeds_);
    std::vector<int64_t> flow(layer.num_replicas());
    solver.Solve(ToIntegers(tokens), flow);
    FlowToWeights(flow, layer);
  }

 private:
  int32_t workers_;
  std::vector<uint32_t> speeds_;
};

absl::Status ValidateRequest(const PlanRequest& request) {
  BALLAST_RETURN_IF_ERROR(Validate(request.topology));
  BALLAST_RETURN_IF_ERROR(Validate(request.scenarios));
  if (request.expert_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("expert_bytes: ", request.expert_bytes, "; must be at least 0"));
  }
  if (request.slots_per_layer < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("slots_per_layer: ", request.slots_per_layer, "; must be at least 0"));
  }
  if (!request.current) return absl::OkStatus();
  const LoadMatrix& load = request.scenarios[0].load;
  if (request.current->num_layers != load.layers || request.current->num_experts != load.experts) {
    return absl::InvalidArgumentError(absl::StrCat("current: ", request.current->num_layers, " layers of ",
                                                   request.current->num_experts, " experts; the load has ", load.layers,
                                                   " of ", load.experts));
  }
  return Validate(*request.current);
}

// `current` over topology's workers. Replicas on others are gone, so experts may be without.
Placement OverTopology(const Placement& current, const Topology& topology) {
  Placement out;
  out.num_layers = current.num_layers;
  out.num_experts = current.num_experts;
  for (const TopologyWorker& w : topology.workers) out.workers.push_back(w.name);
  for (Replica r : current.replicas) {
    const auto found = std::find(out.workers.begin(), out.workers.end(), current.workers[r.worker]);
    if (found == out.workers.end()) continue;
    r.worker = static_cast<int32_t>(found - out.workers.begin());
    out.replicas.push_back(r);
  }
  out.Sort();
  return out;
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

}  // namespace

absl::StatusOr<int32_t> SlotsPerLayer(const PlanRequest& request) {
  const LoadMatrix& load = request.scenarios[0].load;
  const auto workers = static_cast<int64_t>(request.topology.workers.size());
  int32_t slots = request.slots_per_layer;
  for (const TopologyWorker& w : request.topology.workers) {
    const int32_t fit = (w.capacity.slots - w.capacity.staging_slots) / load.layers;
    if (request.slots_per_layer > fit) {
      return absl::FailedPreconditionError(absl::StrCat(
          "slots_per_layer: ", request.slots_per_layer, " in each of ", load.layers, " layers; worker '", w.name,
          "' has room for ", fit, " (", w.capacity.slots, " slots less ", w.capacity.staging_slots, " for staging)"));
    }
    if (request.slots_per_layer == 0) slots = slots == 0 ? fit : std::min(slots, fit);
    if (slots == 0) break;
  }
  if (slots * workers < load.experts) {
    return absl::FailedPreconditionError(absl::StrCat("slots: ", workers, " workers of ", slots,
                                                      " slots a layer; a layer has ", load.experts, " experts"));
  }
  return std::min(slots, load.experts);
}

Placement WithSolvedShares(Placement placement, const Topology& topology, std::span<const Scenario> scenarios) {
  const LoadMatrix blend = Blend(scenarios);
  const Weigher weigher(topology);
  std::vector<DispatchTable> layers = Onto(placement, topology);
  for (int32_t l = 0; l < placement.num_layers; ++l) weigher.Solve(blend.layer(l), layers[l]);
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

absl::StatusOr<Plan> MakePlan(const PlannerPolicy& policy, const PlanRequest& request) {
  BALLAST_RETURN_IF_ERROR(ValidateRequest(request));
  BALLAST_ASSIGN_OR_RETURN(std::vector<DispatchTable> layers, policy.Place(request));
  const LoadMatrix blend = Blend(request.scenarios);
  const Weigher weigher(request.topology);
  for (int32_t l = 0; l < blend.layers; ++l) {
    const auto& weight = layers[l].weight;
    if (std::find(weight.begin(), weight.end(), 0u) != weight.end()) weigher.Solve(blend.layer(l), layers[l]);
  }
  Plan plan;
  plan.policy = policy.name();
  if (request.current) {
    const Placement current = OverTopology(*request.current, request.topology);
    BALLAST_ASSIGN_OR_RETURN(plan.waves,
                             PlanWaves(current, layers, request.topology, request.scenarios, request.waves));
    plan.placement = current;
    for (const Wave& wave : plan.waves) {
      plan.placement = ApplyWave(std::move(plan.placement), wave);
      plan.moves += static_cast<int64_t>(wave.moves.size());
      plan.transfer_seconds += TransferSeconds(wave, request.topology, request.expert_bytes);
    }
    plan.bytes = plan.moves * request.expert_bytes;
    for (const Scenario& s : request.scenarios) plan.current.push_back(ScoreLoad(current, s, request.topology));
  } else {
    plan.placement = FirstPlacement(layers, request.topology);
  }
  std::vector<SlotCapacity> capacity;
  for (const TopologyWorker& w : request.topology.workers) capacity.push_back(w.capacity);
  const absl::Status sound = Validate(plan.placement, capacity);
  BALLAST_CHECK(sound.ok()) << policy.name() << " made an unsound placement: " << sound.message();
  for (const Scenario& s : request.scenarios) plan.predicted.push_back(ScoreLoad(plan.placement, s, request.topology));
  for (size_t i = 0; i < plan.current.size(); ++i) {
    const double now = plan.current[i].busiest;
    const double gain = now == 0 ? 0 : 1 - plan.predicted[i].busiest / now;
    plan.gain = i == 0 ? gain : std::min(plan.gain, gain);
  }
  return plan;
}

}  // namespace ballast
