// What a group shows in the metrics beside its counters: gauges set from time to time.
#ifndef BALLAST_CONTROLLER_SERVICE_GAUGES_H_
#define BALLAST_CONTROLLER_SERVICE_GAUGES_H_

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "controller/group/group.h"
#include "proto/base/metrics.h"

namespace ballast {

// Every metric of the controller; the table of dashboards/metrics.md holds the same.
const std::vector<MetricDef>& ControllerMetrics();

// Of one group; not thread-safe.
class Gauges {
 public:
  // `top`: as Runtime::Options::expert_metrics_top.
  Gauges(Metrics& metrics, int top) : metrics_(metrics), top_(top) {}

  // Once a second or so.
  void Update(const Group& group, absl::Time now);

 private:
  using WorkerLayer = std::pair<int32_t, std::string>;

  void UpdateBalance(const Group& group, absl::Time now);
  void UpdateWorkerLoads(const Group& group, v1::Phase phase, const v1::GetLoadResponse& load, absl::Time now);
  void UpdateExperts(const Group& group);

  Metrics& metrics_;
  const int top_;
  // What ballast_task_routes was last shown of, and the labels of ballast_layer_balancedness_ratio.
  std::set<std::string> tasks_;
  std::set<std::vector<std::string>> levels_;
  // By phase: what ballast_worker_layer_load_ratio was last shown of.
  std::map<int, std::set<WorkerLayer>> worker_layers_;
  struct Shown {
    std::vector<double> tokens;
    std::map<size_t, CounterHandle> handles;
  };
  std::map<int, Shown> experts_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_GAUGES_H_
