// Replays hours of load through placements and a cost model: the controller's own planner, no cluster.
//
// Pure and deterministic: the same source, options and strategies give the same figures.
#ifndef BALLAST_CONTROLLER_SIM_REPLAY_H_
#define BALLAST_CONTROLLER_SIM_REPLAY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/cost_model.h"
#include "controller/sim/load_source.h"
#include "controller/sim/step.h"
#include "controller/sim/strategy.h"

namespace ballast {

struct ReplayOptions {
  int64_t steps = 86'400;
  // Simulated time from one step to the next: what moves, hold-offs and horizons are measured by. One step stands for
  // all of that time.
  double seconds_per_step = 1;
  // Every step is counted by telemetry; of each `sample_every` the first is drawn by itself and executed, the others
  // are drawn as one sum.
  int64_t sample_every = 20;
  SampleOptions sample;
  uint64_t seed = 1;
  CostModel cost;
  // The part of serving speed that is lost while weights move.
  double move_slowdown = 0.1;
};

struct ReplayResult {
  std::string name;
  // Means over the executed steps.
  double balancedness = 0;
  double step_microseconds = 0;
  // Of the executed steps: tokens over time.
  double tokens_per_second = 0;
  // The lowest mean of 1/24 of the steps.
  double worst_hour = 0;
  int64_t plans = 0;
  int64_t moves = 0;
  int64_t bytes = 0;
  // Time that weights moved.
  double moving_seconds = 0;
};

// All strategies start from ground's placement and see the same counts. A plan's placement comes into force as a whole
// when its moves are done, at the links' rates; until then steps are slower. Errors are the planner's.
absl::StatusOr<std::vector<ReplayResult>> Replay(const LoadSource& source, const Ground& ground,
                                                 const ReplayOptions& options,
                                                 std::span<const std::unique_ptr<Strategy>> strategies);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SIM_REPLAY_H_
