// Co-activation of one layer's experts, by task and pooled.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_AFFINITY_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_AFFINITY_H_

#include <cstdint>
#include <vector>

#include "controller/planner/grouping/routes.h"

namespace ballast {

// A symmetric experts x experts matrix, row after row, zeros on the diagonal.
struct Affinity {
  int32_t experts = 0;
  std::vector<double> values;

  explicit Affinity(int32_t n = 0) : experts(n), values(static_cast<size_t>(n) * n) {}
  double operator()(int32_t a, int32_t b) const { return values[static_cast<size_t>(a) * experts + b]; }
  double& operator()(int32_t a, int32_t b) { return values[static_cast<size_t>(a) * experts + b]; }
};

struct TaskStatistics {
  // [experts] the part of the task's pairs that is the expert's.
  std::vector<double> use;
  // How often a token of the task chooses both, over its tokens.
  Affinity together;
};

// One for each task of the layer; of one without pairs all is 0. O(tokens * top_k^2).
std::vector<TaskStatistics> Statistics(const LayerRoutes& layer);

// The tasks' co-activation averaged, every task counting the same.
Affinity Pool(const std::vector<TaskStatistics>& tasks);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_AFFINITY_H_
