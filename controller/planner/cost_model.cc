#include "controller/planner/cost_model.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"

namespace ballast {

absl::Status Validate(const CostModel& model) {
  const struct {
    const char* name;
    double value;
  } fields[] = {
      {"microseconds_per_token", model.microseconds_per_token},
      {"microseconds_per_expert", model.microseconds_per_expert},
      {"microseconds_per_layer", model.microseconds_per_layer},
      {"microseconds_per_copy_node", model.microseconds_per_copy_node},
      {"microseconds_per_copy_cross_node", model.microseconds_per_copy_cross_node},
      {"microseconds_per_step", model.microseconds_per_step},
  };
  for (const auto& [name, value] : fields) {
    if (!std::isfinite(value) || value < 0 || value > kMaxCostMicroseconds) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ", value, "; must be at least 0 and at most ", kMaxCostMicroseconds));
    }
  }
  if (model.microseconds_per_token == 0) {
    return absl::InvalidArgumentError("microseconds_per_token: 0; must be above 0");
  }
  return absl::OkStatus();
}

double LayerMicroseconds(const CostModel& model, const LayerWork& work) {
  return model.microseconds_per_layer + model.microseconds_per_token * work.busiest_tokens +
         model.microseconds_per_expert * work.experts + model.microseconds_per_copy_node * work.copies_node +
         model.microseconds_per_copy_cross_node * work.copies_cross_node;
}

std::vector<LayerWork> WorkByWorker(const DispatchTable& layer, std::span<const double> pairs,
                                    const Topology& topology) {
  BALLAST_CHECK(static_cast<int32_t>(pairs.size()) == layer.num_replicas()) << pairs.size() << " replicas";
  const size_t workers = topology.workers.size();
  // Nodes may have any numbers.
  std::unordered_map<int32_t, double> on_node;
  for (const TopologyWorker& w : topology.workers) ++on_node[w.node];
  std::vector<LayerWork> work(workers);
  for (int32_t r = 0; r < layer.num_replicas(); ++r) {
    LayerWork& at = work[layer.rank[r]];
    at.busiest_tokens += pairs[r];
    at.experts += pairs[r] > 0 ? 1 : 0;
  }
  for (size_t w = 0; w < workers; ++w) {
    const TopologyWorker& worker = topology.workers[w];
    const double from_each = work[w].busiest_tokens / static_cast<double>(workers);
    const double beside = on_node[worker.node];
    work[w].copies_node = from_each * (beside - 1);
    work[w].copies_cross_node = from_each * (static_cast<double>(workers) - beside);
    work[w].busiest_tokens /= worker.speed;
  }
  return work;
}

double SlowestMicroseconds(const CostModel& model, std::span<const LayerWork> work) {
  double most = 0;
  for (const LayerWork& w : work) most = std::max(most, LayerMicroseconds(model, w));
  return most;
}

double StepMicroseconds(const CostModel& model, double layers_microseconds) {
  return model.microseconds_per_step + layers_microseconds;
}

}  // namespace ballast
