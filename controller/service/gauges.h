// What a group shows in the metrics beside its counters: gauges set from time to time.
#ifndef BALLAST_CONTROLLER_SERVICE_GAUGES_H_
#define BALLAST_CONTROLLER_SERVICE_GAUGES_H_

#include <map>
#include <set>
#include <string>
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
  // `expert_top`: as Runtime::Options::expert_metrics_top.
  Gauges(Metrics& metrics, int expert_top) : metrics_(metrics), expert_top_(expert_top) {}

  // Once a second or so.
  void Update(const Group& group, absl::Time now);

 private:
  void UpdateBalance(const Group& group, absl::Time now);
  void UpdateExperts(const Group& group);

  Metrics& metrics_;
  const int expert_top_;
  std::set<std::string> tasks_;
  struct Shown {
    std::vector<double> tokens;
    std::map<size_t, CounterHandle> handles;
  };
  std::map<int, Shown> experts_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_GAUGES_H_
