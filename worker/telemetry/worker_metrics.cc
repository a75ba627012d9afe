#include "worker/telemetry/worker_metrics.h"

#include <vector>

#include "worker/moe/load_counters.h"

namespace ballast {
namespace {

std::vector<double> Seconds(double from, double factor, int count) {
  std::vector<double> out;
  for (double bound = from; count > 0; --count, bound *= factor) out.push_back(bound);
  return out;
}

}  // namespace

std::span<const MetricDef> WorkerMetricDefs() {
  static const auto& defs = *new std::vector<MetricDef>{
      {"ballast_worker_tokens_total",
       MetricType::kCounter,
       "tokens",
       {"worker", "phase"},
       "Tokens of this worker's requests that entered the model."},
      {"ballast_requests_total", MetricType::kCounter, "1", {"task", "code"}, "Requests ended, by gRPC status code."},
      {"ballast_requests_routed_total",
       MetricType::kCounter,
       "1",
       {"task", "route", "result"},
       "Requests of tasks with homes that clients sent here, by where they went (here and home: to a home of the task; "
       "spilled_here and spilled: elsewhere, as the homes were full), and those that a worker that is to go handed to "
       "another (away), and how they ended: the gRPC status code, redirected where the client was sent to the other "
       "worker, or came_back where that one did not run the request and this one did."},
      {"ballast_requests_classified_total",
       MetricType::kCounter,
       "1",
       {"task"},
       "Unlabelled requests whose task was asked of their prompts' routes, by the task that they count as since; an "
       "empty task: none was likely enough."},
      {"ballast_classification_confidence_ratio",
       MetricType::kHistogram,
       "ratio",
       {},
       "How certain the likeliest task of an unlabelled request's prompt was.",
       {.1, .2, .3, .4, .5, .6, .7, .8, .9, .95, .99, .999, 1}},
      {"ballast_requests_running", MetricType::kGauge, "1", {"worker"}, "Requests that hold KV cache."},
      {"ballast_requests_waiting", MetricType::kGauge, "1", {"worker"}, "Requests in the queue."},
      {"ballast_time_to_first_token_seconds",
       MetricType::kHistogram,
       "seconds",
       {},
       "From a request's arrival to its first token.",
       Seconds(0.001, 2, 15)},
      {"ballast_time_per_output_token_seconds",
       MetricType::kHistogram,
       "seconds",
       {},
       "Mean time between a request's tokens after the first.",
       Seconds(0.0005, 2, 13)},
      {"ballast_kv_cache_used_ratio", MetricType::kGauge, "ratio", {"worker"}, "Part of the KV blocks set aside."},
      {"ballast_step_duration_seconds",
       MetricType::kHistogram,
       "seconds",
       {},
       "One group step, as this worker saw it.",
       Seconds(0.0002, 2, 15)},
      {"ballast_layer_duration_seconds",
       MetricType::kHistogram,
       "seconds",
       {"stage"},
       "One MoE layer's stage (route, share, dispatch, experts, combine), the mean over a step's layers; share, "
       "dispatch "
       "and combine include waiting for peers.",
       Seconds(0.00001, 2, 16)},
      {"ballast_dispatch_copies_total",
       MetricType::kCounter,
       "tokens",
       {"link"},
       "Rows sent to a worker for its experts: to itself, inside the node, to another node."},
      {"ballast_replica_bytes", MetricType::kGauge, "bytes", {"worker"}, "Expert weights of the placement in force."},
      {"ballast_move_bytes_total",
       MetricType::kCounter,
       "bytes",
       {"worker", "source"},
       "Expert weights brought in by rollouts, by where they came from."},
  };
  return defs;
}

std::string CodeLabel(absl::StatusCode code) { return absl::StatusCodeToString(code); }

WorkerMetrics::WorkerMetrics(std::string worker, const std::string& group)
    : worker_(std::move(worker)),
      metrics_(WorkerMetricDefs(), {{"group", group}}),
      prefill_tokens_(metrics_.Counter("ballast_worker_tokens_total", {worker_, "prefill"})),
      decode_tokens_(metrics_.Counter("ballast_worker_tokens_total", {worker_, "decode"})),
      copies_self_(metrics_.Counter("ballast_dispatch_copies_total", {"self"})),
      copies_node_(metrics_.Counter("ballast_dispatch_copies_total", {"node"})),
      copies_far_(metrics_.Counter("ballast_dispatch_copies_total", {"far"})),
      moved_from_peers_(metrics_.Counter("ballast_move_bytes_total", {worker_, "peer"})),
      moved_from_checkpoint_(metrics_.Counter("ballast_move_bytes_total", {worker_, "checkpoint"})),
      step_(metrics_.Histogram("ballast_step_duration_seconds")),
      route_(metrics_.Histogram("ballast_layer_duration_seconds", {"route"})),
      share_(metrics_.Histogram("ballast_layer_duration_seconds", {"share"})),
      dispatch_(metrics_.Histogram("ballast_layer_duration_seconds", {"dispatch"})),
      experts_(metrics_.Histogram("ballast_layer_duration_seconds", {"experts"})),
      combine_(metrics_.Histogram("ballast_layer_duration_seconds", {"combine"})),
      first_token_(metrics_.Histogram("ballast_time_to_first_token_seconds")),
      output_token_(metrics_.Histogram("ballast_time_per_output_token_seconds")),
      confidence_(metrics_.Histogram("ballast_classification_confidence_ratio")),
      running_(metrics_.Gauge("ballast_requests_running", {worker_})),
      waiting_(metrics_.Gauge("ballast_requests_waiting", {worker_})),
      kv_used_(metrics_.Gauge("ballast_kv_cache_used_ratio", {worker_})),
      replica_bytes_(metrics_.Gauge("ballast_replica_bytes", {worker_})) {}

void WorkerMetrics::StepEnded(int prefill_rows, int decode_rows, absl::Duration duration, int layers,
                              const MoeStepStats& stats) {
  if (prefill_rows > 0) prefill_tokens_.Add(prefill_rows);
  if (decode_rows > 0) decode_tokens_.Add(decode_rows);
  step_.Observe(absl::ToDoubleSeconds(duration));
  route_.Observe(absl::ToDoubleSeconds(stats.route) / layers);
  share_.Observe(absl::ToDoubleSeconds(stats.share) / layers);
  dispatch_.Observe(absl::ToDoubleSeconds(stats.dispatch) / layers);
  experts_.Observe(absl::ToDoubleSeconds(stats.experts) / layers);
  combine_.Observe(absl::ToDoubleSeconds(stats.combine) / layers);
  copies_self_.Add(static_cast<double>(stats.copies_self));
  copies_node_.Add(static_cast<double>(stats.copies_node));
  copies_far_.Add(static_cast<double>(stats.copies_far));
}

const std::string& WorkerMetrics::TaskLabel(const std::string& task) {
  static const std::string& other = *new std::string(LoadCounters::kOtherTasks);
  const auto known = tasks_.find(task);
  if (known != tasks_.end()) return *known;
  return tasks_.size() < kMaxTasks ? *tasks_.insert(task).first : other;
}

void WorkerMetrics::RequestRouted(const std::string& task, RequestRoute route, const std::string& result) {
  const char* name = nullptr;
  switch (route) {
    case RequestRoute::kNone:
      return;
    case RequestRoute::kHere:
      name = "here";
      break;
    case RequestRoute::kHome:
      name = "home";
      break;
    case RequestRoute::kSpilledHere:
      name = "spilled_here";
      break;
    case RequestRoute::kSpilled:
      name = "spilled";
      break;
    case RequestRoute::kAway:
      name = "away";
      break;
  }
  MutexLock lock(mu_);
  const std::vector<std::string> labels = {TaskLabel(task), name, result};
  const auto [place, is_new] = routed_.try_emplace(labels);
  if (is_new) place->second = metrics_.Counter("ballast_requests_routed_total", labels);
  place->second.Add();
}

void WorkerMetrics::RequestEnded(const std::string& task, absl::StatusCode code) {
  MutexLock lock(mu_);
  const std::string& label = TaskLabel(task);
  const auto [place, is_new] = requests_.try_emplace({label, code});
  if (is_new) place->second = metrics_.Counter("ballast_requests_total", {label, CodeLabel(code)});
  place->second.Add();
}

void WorkerMetrics::RequestClassified(const Classification& classification) {
  confidence_.Observe(classification.confidence);
  MutexLock lock(mu_);
  const std::string& label = TaskLabel(classification.task);
  const auto [place, is_new] = classified_.try_emplace(label);
  if (is_new) place->second = metrics_.Counter("ballast_requests_classified_total", {label});
  place->second.Add();
}

void WorkerMetrics::TokenTimes(absl::Duration first_token, absl::Duration per_output_token) {
  if (first_token >= absl::ZeroDuration()) first_token_.Observe(absl::ToDoubleSeconds(first_token));
  if (per_output_token >= absl::ZeroDuration()) output_token_.Observe(absl::ToDoubleSeconds(per_output_token));
}

void WorkerMetrics::Requests(int running, int waiting, double kv_used_ratio) {
  running_.Set(running);
  waiting_.Set(waiting);
  kv_used_.Set(kv_used_ratio);
}

void WorkerMetrics::ReplicaBytes(double bytes) { replica_bytes_.Set(bytes); }

void WorkerMetrics::MoveBytes(double from_peers, double from_checkpoint) {
  moved_from_peers_.Add(from_peers);
  moved_from_checkpoint_.Add(from_checkpoint);
}

}  // namespace ballast
