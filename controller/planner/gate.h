// Is a plan worth its moves?
#ifndef BALLAST_CONTROLLER_PLANNER_GATE_H_
#define BALLAST_CONTROLLER_PLANNER_GATE_H_

#include <cstdint>
#include <string>

namespace ballast {

struct GateLimits {
  // Least relative gain (Plan::gain): about what sampling alone shows in a window of 150,000 tokens a worker and layer
  // (drift.h). What moves cost has rules of its own below.
  double min_gain = 0.01;
  // The part of min_gain that is asked for where loads have bursts (Scenario::burstiness), of DriftLimits's, too.
  // Bursts blur who is busiest: of what sampling shows of a gain they leave n / (sqrt(2) s), where the window's mean
  // deviates by n and a step by s; with n of .26 % (150,000 tokens) and s of 5 % a twentieth.
  static constexpr double kOfGainInBursts = 0.1;
  // Tokens that the window must hold for each worker and layer: below, its skew may be chance.
  double min_tokens_per_worker_layer = 64;
  // How long the load is taken to stay as it is.
  double horizon_seconds = 600;
  // The share of a step that MoE layers take, and of serving speed lost while weights move.
  double moe_share = 0.5;
  double move_slowdown = 0.1;
  // Serving seconds lost at each wave's change of epoch.
  double seconds_per_wave = 0.005;
  // The saving must be this many times the cost.
  double payback = 2;
};

// What the decision rests on, all of it.
struct GateInput {
  // From Plan.
  double gain = 0;
  int64_t moves = 0;
  double transfer_seconds = 0;
  int64_t waves = 0;
  // Mean load in tokens of a worker in a layer over the window.
  double tokens_per_worker_layer = 0;
  // Some scenario has bursts.
  bool bursty = false;
  // An expert has no live replica, and the plan gives it one: always worth it.
  bool restores_experts = false;
};

struct GateDecision {
  bool worth = false;
  double saved_seconds = 0;
  double cost_seconds = 0;
  // One sentence with the numbers, for logs and operators.
  std::string reason;
};

GateDecision Decide(const GateInput& input, const GateLimits& limits);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GATE_H_
