// What a control plane does about load over time: the simulator's subjects.
#ifndef BALLAST_CONTROLLER_SIM_STRATEGY_H_
#define BALLAST_CONTROLLER_SIM_STRATEGY_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/drift.h"
#include "controller/planner/gate.h"
#include "controller/planner/planner.h"
#include "controller/planner/scenario_book.h"
#include "controller/sim/step.h"

namespace ballast {

// What telemetry says of the last few steps, which were of one phase.
struct Observed {
  // Steps so far, these included.
  int64_t step = 0;
  double seconds_per_step = 0;
  const std::string& phase;
  // Pairs of these steps, [layers][experts].
  const LoadMatrix& counts;
  // Of the first of them alone.
  const LoadMatrix& first_step;
};

// The machines, the placement in force and what else every plan needs.
struct Ground {
  Topology topology;
  Placement placement;
  int64_t expert_bytes = 0;
};

// Deterministic; not thread-safe.
class Strategy {
 public:
  virtual ~Strategy() = default;
  virtual std::string name() const = 0;
  virtual StepSplit split() const = 0;
  // Called after every few steps. `moving`: the last plan's moves are under way, so none may be given. A plan's waves
  // start from ground.placement.
  virtual absl::StatusOr<std::optional<Plan>> Look(const Observed& observed, const Ground& ground, bool moving) = 0;
};

// What others do: plans with `policy` from the last `window` steps, first when there are as many and then every `every`
// steps (0: never again), and splits equally.
struct PeriodicOptions {
  std::string name;
  int64_t window = 1000;
  int64_t every = 3000;
  // PlanRequest::replicas_per_worker.
  std::optional<int32_t> replicas_per_worker;
};
std::unique_ptr<Strategy> PeriodicStrategy(PeriodicOptions options, std::unique_ptr<PlannerPolicy> policy);

// Stays with the placement it starts from, split equally.
std::unique_ptr<Strategy> StayStrategy(std::string name);

// Ballast: looks every `look_every` steps whether the load has drifted away from the placement (drift.h) under any of
// the scenarios that it remembers (scenario_book.h), plans for all of them at once from the placement in force, and
// moves when that pays (gate.h). Shares are solved step by step.
struct DriftStrategyOptions {
  std::string name = "ballast";
  StepSplit split = StepSplit::kSolved;
  // Steps before the first plan and between looks.
  int64_t warm_up = 200;
  int64_t look_every = 200;
  DriftLimits drift = {.shares = ShareMode::kPerStep};
  ReplanLimits replan;
  GateLimits gate;
  ScenarioBook::Options book;
  // Whether single steps tell it how bursty loads are.
  bool measure_bursts = true;
  std::optional<int32_t> replicas_per_worker;
  // Limited: plans change the placement in force.
  MoveBudget move_budget = {.max_moves = 512};
};
std::unique_ptr<Strategy> DriftStrategy(DriftStrategyOptions options, std::unique_ptr<PlannerPolicy> policy);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SIM_STRATEGY_H_
