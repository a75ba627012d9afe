// What a worker shows Prometheus.
#ifndef BALLAST_WORKER_TELEMETRY_WORKER_METRICS_H_
#define BALLAST_WORKER_TELEMETRY_WORKER_METRICS_H_

#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/base/metrics.h"
#include "proto/base/mutex.h"
#include "worker/homes/home_policy.h"
#include "worker/moe/moe_step.h"
#include "worker/telemetry/task_classifier.h"

namespace ballast {

// The rows of dashboards/metrics.md under "Worker".
std::span<const MetricDef> WorkerMetricDefs();

// "OK", "UNAVAILABLE": a gRPC status code as a label's value.
std::string CodeLabel(absl::StatusCode code);

// Thread-safe.
class WorkerMetrics {
 public:
  // Labels that clients choose get series of their own up to this many; further ones are counted as "_other".
  static constexpr size_t kMaxTasks = 64;

  // All series have the label `group`.
  WorkerMetrics(std::string worker, const std::string& group);

  Metrics& registry() { return metrics_; }

  // A committed step. `rows` by phase are this worker's; `layers` is the model's number of MoE layers.
  void StepEnded(int prefill_rows, int decode_rows, absl::Duration duration, int layers, const MoeStepStats& stats);
  void RequestEnded(const std::string& task, absl::StatusCode code) BALLAST_EXCLUDES(mu_);
  // A request whose task has homes. `result`: "came_back" where the worker that it was handed to did not run it, so
  // this one did; "redirected" where the client was sent there; otherwise a status code's label.
  void RequestRouted(const std::string& task, RequestRoute route, const std::string& result) BALLAST_EXCLUDES(mu_);
  // An unlabelled request whose prompt's routes were looked at.
  void RequestClassified(const Classification& classification) BALLAST_EXCLUDES(mu_);
  // Negative: there was none.
  void TokenTimes(absl::Duration first_token, absl::Duration per_output_token);
  void Requests(int running, int waiting, double kv_used_ratio);
  void ReplicaBytes(double bytes);
  void MoveBytes(double from_peers, double from_checkpoint);

 private:
  const std::string& TaskLabel(const std::string& task) BALLAST_REQUIRES(mu_);

  const std::string worker_;
  Metrics metrics_;
  CounterHandle prefill_tokens_, decode_tokens_;
  CounterHandle copies_self_, copies_node_, copies_far_;
  CounterHandle moved_from_peers_, moved_from_checkpoint_;
  HistogramHandle step_, route_, share_, dispatch_, experts_, combine_;
  HistogramHandle first_token_, output_token_, confidence_;
  GaugeHandle running_, waiting_, kv_used_, replica_bytes_;

  Mutex mu_;
  std::map<std::pair<std::string, absl::StatusCode>, CounterHandle> requests_ BALLAST_GUARDED_BY(mu_);
  std::map<std::vector<std::string>, CounterHandle> routed_ BALLAST_GUARDED_BY(mu_);
  std::map<std::string, CounterHandle> classified_ BALLAST_GUARDED_BY(mu_);
  std::set<std::string> tasks_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TELEMETRY_WORKER_METRICS_H_
