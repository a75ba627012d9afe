#include "controller/planner/grouping/affinity.h"

#include <span>

namespace ballast {

std::vector<TaskStatistics> Statistics(const LayerRoutes& layer) {
  std::vector<TaskStatistics> out;
  const auto k = static_cast<size_t>(layer.top_k);
  for (const LayerRoutes::Task& task : layer.tasks) {
    TaskStatistics& s = out.emplace_back();
    s.use.resize(layer.experts);
    s.together = Affinity(layer.experts);
    if (task.pairs == 0) continue;
    // Counts first: they are exact.
    for (size_t row = 0; row < task.experts.size(); row += k) {
      const std::span<const int32_t> token = task.experts.subspan(row, k);
      for (size_t i = 0; i < k; ++i) {
        if (token[i] < 0) continue;
        ++s.use[token[i]];
        for (size_t j = 0; j < k; ++j) {
          if (j != i && token[j] >= 0) ++s.together(token[i], token[j]);
        }
      }
    }
    for (double& u : s.use) u /= static_cast<double>(task.pairs);
    for (double& a : s.together.values) a /= static_cast<double>(task.tokens);
  }
  return out;
}

Affinity Pool(const std::vector<TaskStatistics>& tasks) {
  Affinity out(tasks[0].together.experts);
  for (const TaskStatistics& task : tasks) {
    for (size_t i = 0; i < out.values.size(); ++i) {
      out.values[i] += task.together.values[i] / static_cast<double>(tasks.size());
    }
  }
  return out;
}

}  // namespace ballast
