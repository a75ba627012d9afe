// What a plan is judged by: one number from the busiest workers of every scenario.
#ifndef BALLAST_CONTROLLER_PLANNER_OBJECTIVE_H_
#define BALLAST_CONTROLLER_PLANNER_OBJECTIVE_H_

#include <span>
#include <vector>

#include "controller/planner/load.h"
#include "controller/planner/topology.h"

namespace ballast {

// How far the scenarios are from level: for each the tokens on the busiest worker, summed over layers (what its steps
// wait for), over the same were every layer level; and of these ratios the power mean of exponent 16, each weighing as
// its scenario does. So the worst counts most, the others still count, and with one scenario it is its ratio. 1 is
// level; where there is no load at all it is 1. Not bound to a thread.
class Objective {
 public:
  Objective(std::span<const Scenario> scenarios, const Topology& topology);

  // `busiest` [scenarios]: the busiest workers' tokens over speed, summed over layers.
  double Of(std::span<const double> busiest) const;
  // What one token more on the busiest worker adds, by scenario, to first order.
  std::vector<double> Slopes(std::span<const double> busiest) const;

 private:
  std::vector<double> weight_;  // [scenarios], summing to 1 over those with load
  std::vector<double> level_;   // [scenarios], 0: no load
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_OBJECTIVE_H_
