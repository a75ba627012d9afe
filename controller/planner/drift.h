// Has the load moved away from the placement, or is it chance? And is it time to plan again?
//
// Pure rules over what windows of telemetry hold; time comes in as seconds. Any thread.
//
// What a window shows above level has three parts: what no placement could avoid (score.h's bound), what sampling alone
// shows on a level placement, and what a plan could win. Only the last is drift. Counts are taken as Poisson times a
// dispersion, so a worker that gets the part s of each expert's n tokens sees a variance of dispersion * sum s^2 n; the
// busiest of D such workers is expected less than sqrt(2 ln D) deviations above the mean (the maximum of D normal
// variables), and the placement itself was planned on a window as noisy: another factor of sqrt(2).
//
// Where bursts are known (Scenario::burstiness), the busiest worker's tokens are those of a single step (bursts.h) by
// the placement's weights, whatever the share mode: shares solved step by step leave less, but gain by the same
// replicas.
#ifndef BALLAST_CONTROLLER_PLANNER_DRIFT_H_
#define BALLAST_CONTROLLER_PLANNER_DRIFT_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "controller/planner/load.h"
#include "controller/planner/topology.h"
#include "proto/placement/placement.h"
#include "proto/placement/quotas.h"

namespace ballast {

// How the group splits an expert's tokens over its replicas.
enum class ShareMode {
  // By the placement's weights, until a plan changes them.
  kFixed,
  // Solved for each step: only what no shares can level counts.
  kPerStep,
};

struct DriftLimits {
  ShareMode shares = ShareMode::kFixed;
  // The part of the busiest workers' tokens, summed over layers, that a plan must be able to save. As GateLimits's.
  double min_gain = 0.01;
  // Variance over mean of a count in the window. 1 is independent tokens; those of one document are not. See
  // Dispersion.
  double dispersion = 1;
};

// The excess of a load over level: (tokens over speed of the busiest workers) / (those of level ones) - 1, both summed
// over layers. 0 is level.
struct ScenarioDrift {
  std::string name;
  // Under the placement.
  double excess = 0;
  // What sampling alone shows, its mean and three deviations of the sum over layers; and what no placement of as many
  // replicas can be below.
  double noise = 0;
  double unavoidable = 0;
  // What the plan in force was predicted to leave; 0 where it did not know this scenario.
  double settled = 0;
  // 1 - (1 + the largest of the three) / (1 + excess), at least 0.
  double gain = 0;
};

struct SettledScenario {
  std::string name;
  double excess = 0;
};

struct DriftReport {
  // In the order of the scenarios.
  std::vector<ScenarioDrift> scenarios;
  // The largest gain of a scenario, and whose it is; -1: none.
  double gain = 0;
  int32_t worst = -1;
  // gain >= min_gain.
  bool drifted = false;
  // One sentence with the numbers.
  std::string reason;
};

// `placement` is valid, of the scenarios' shape; replicas on workers that `topology` lacks count as gone, and an expert
// without any replica left counts as the worst drift there is (gain 1). Scenarios hold tokens as counted: their sums
// are what the noise is known from.
DriftReport DetectDrift(const Placement& placement, const Topology& topology, std::span<const Scenario> scenarios,
                        std::span<const SettledScenario> settled, const DriftLimits& limits);

// What a placement leaves of each scenario, for later calls of DetectDrift.
std::vector<SettledScenario> Settle(const Placement& placement, const Topology& topology,
                                    std::span<const Scenario> scenarios, ShareMode shares);

// The part of the busiest workers' tokens that `after` saves, mean over scenarios of one total each: 1 - mean(1 +
// after) / mean(1 + before). Both as Settle gives them for the same scenarios, at least one.
double MeanGain(std::span<const SettledScenario> before, std::span<const SettledScenario> after);

// The excess that sampling alone is expected to show at most in one layer on a level placement, from the tokens that
// the layer has; relative to level, as ScenarioDrift::noise.
double NoiseExcess(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology,
                   double dispersion);

// Variance over mean of counts, from samples of one load in order of time, each [layers][experts]: the mean of the
// squared differences of neighbours over what Poisson counts would show. Slow drift cancels out. 1 where there are
// fewer than two samples with tokens.
double Dispersion(std::span<const LoadMatrix> samples);

struct ReplanLimits {
  // After a plan, none for so long; after plans that were not worth their moves twice as long each time, up to 32
  // times.
  double hold_off_seconds = 60;
};

struct ReplanState {
  // Since the last plan was made, whatever became of it; infinite: none yet.
  double seconds_since_plan = 0;
  // Plans in a row that were not worth it.
  int32_t fruitless = 0;
};

struct ReplanDecision {
  bool plan = false;
  std::string reason;
};

ReplanDecision DecideReplan(const DriftReport& drift, const ReplanState& state, const ReplanLimits& limits);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_DRIFT_H_
