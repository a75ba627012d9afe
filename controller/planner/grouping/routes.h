// What the tokens of several tasks chose: what grouping is computed from and judged by.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_ROUTES_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_ROUTES_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "controller/planner/load.h"

namespace ballast {

// Tokens of one task. What token t chose in layer l is experts[l][t * top_k .. (t + 1) * top_k), distinct experts in
// any order, -1 where it chose fewer.
struct TaskRoutes {
  std::string name;
  // Its part of the mix, whatever number of tokens stands for it; above 0.
  double weight = 1;
  // [layers]: [tokens][top_k]; layers may differ in tokens.
  std::vector<std::vector<int32_t>> experts;
};

struct Routes {
  int32_t layers = 0;
  int32_t experts = 0;
  int32_t top_k = 0;
  std::vector<TaskRoutes> tasks;
};

// InvalidArgument names the task, the layer, the token, the value and the limit unless there is a task with tokens in
// every layer, shapes agree, experts are in range and distinct within a token, weights are above 0 and names differ.
absl::Status Validate(const Routes& routes);

// One layer of it: the spans point into the routes, which must outlive them.
struct LayerRoutes {
  struct Task {
    // Part of the mix: they sum to 1 over the tasks that have pairs in this layer.
    double weight = 0;
    std::span<const int32_t> experts;
    int64_t tokens = 0;
    // (token, expert) pairs.
    int64_t pairs = 0;
  };
  int32_t experts = 0;
  int32_t top_k = 0;
  // In the order of the routes; one without pairs has weight 0.
  std::vector<Task> tasks;
};
LayerRoutes LayerOf(const Routes& routes, int32_t layer);

// [experts]: pairs of each expert, tasks weighted: sums to 1 where there are any.
std::vector<double> MixLoad(const LayerRoutes& layer);

// Tokens by layer and expert, a scenario for each task.
std::vector<Scenario> LoadsByTask(const Routes& routes);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_ROUTES_H_
