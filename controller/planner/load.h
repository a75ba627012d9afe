// What a planner is told about load: tokens by layer and expert, one matrix a scenario.
#ifndef BALLAST_CONTROLLER_PLANNER_LOAD_H_
#define BALLAST_CONTROLLER_PLANNER_LOAD_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace ballast {

// Tokens routed to each expert of each MoE layer over some span of time. Layers count MoE layers from 0.
struct LoadMatrix {
  int32_t layers = 0;
  int32_t experts = 0;
  std::vector<double> tokens;  // [layers][experts]

  LoadMatrix() = default;
  LoadMatrix(int32_t num_layers, int32_t num_experts)
      : layers(num_layers), experts(num_experts), tokens(static_cast<size_t>(num_layers) * num_experts) {}
  std::span<const double> layer(int32_t l) const {
    return std::span(tokens).subspan(static_cast<size_t>(l) * experts, experts);
  }
  std::span<double> layer(int32_t l) { return std::span(tokens).subspan(static_cast<size_t>(l) * experts, experts); }
  friend bool operator==(const LoadMatrix&, const LoadMatrix&) = default;
};

// A load that the placement must serve well: a phase, a task, an hour.
struct Scenario {
  std::string name;
  // How much it counts where a policy weighs scenarios; above 0.
  double weight = 1;
  LoadMatrix load;
  // [layers] how much single steps are not as `load`: the squared deviation over mean of an expert's part of a step's
  // tokens, from step to step, beyond what tokens that choose for themselves show. As measured (bursts.h). Empty: not
  // known, and placements are judged by `load` alone.
  std::vector<double> burstiness;
};

// Of one layer; 0 where it is not known.
inline double BurstinessOf(const Scenario& scenario, int32_t layer) {
  return scenario.burstiness.empty() ? 0 : scenario.burstiness[layer];
}

// Whether any layer of any of them has bursts.
bool Bursty(std::span<const Scenario> scenarios);

// InvalidArgument names the scenario, the layer, the expert and the limit unless there is at least one scenario, all
// have the same shape of at least 1 x 1, names differ, weights are above 0 and tokens are finite, at least 0 and at
// most 1e18.
absl::Status Validate(std::span<const Scenario> scenarios);

// One load in place of many: each layer of each scenario is brought to a sum of 1 (or stays zero), times the scenario's
// weight, and added. What policies use that know one load.
LoadMatrix Blend(std::span<const Scenario> scenarios);

// A layer's tokens as integers that keep their proportions to 2^-40: what exact solvers work on. Zero stays zero.
std::vector<int64_t> ToIntegers(std::span<const double> tokens);
void ToIntegers(std::span<const double> tokens, std::vector<int64_t>& out);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_LOAD_H_
