// The cost model's constants from measured layers, and how well it says other layers' times.
#ifndef BALLAST_TESTS_LEVELLING_COST_FIT_H_
#define BALLAST_TESTS_LEVELLING_COST_FIT_H_

#include <span>
#include <vector>

#include "controller/planner/cost_model.h"

namespace ballast {

// One layer as it was measured: what every worker had to do, and what it took.
struct MeasuredLayer {
  std::vector<LayerWork> work;
  double microseconds = 0;
};

// The constants of a layer, an expert and a pair, none below 0, with the least sum of squared relative errors of
// SlowestMicroseconds: coordinate descent, with the slowest worker of each layer taken from the solution before.
// Copies cost nothing of their own: where workers are alike and few they grow with the pairs, and are part of them.
CostModel FitCostModel(std::span<const MeasuredLayer> layers);

struct FitQuality {
  double r_squared = 0;
  // Of |predicted / measured - 1|.
  double median_error = 0;
  double p90_error = 0;
  double max_error = 0;
  // The part of the layers with an error of at most a tenth.
  double within_tenth = 0;
};
FitQuality JudgeCostModel(const CostModel& model, std::span<const MeasuredLayer> layers);

}  // namespace ballast

#endif  // BALLAST_TESTS_LEVELLING_COST_FIT_H_
