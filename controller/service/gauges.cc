#include "controller/service/gauges.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "proto/placement/balancedness.h"

namespace ballast {
namespace {

// The label of all tasks together; no task can have it, an asterisk being no character of a task.
constexpr char kAllTasks[] = "*";

const char* PhaseName(v1::Phase phase) { return phase == v1::PHASE_PREFILL ? "prefill" : "decode"; }

}  // namespace

const std::vector<MetricDef>& ControllerMetrics() {
  static const auto& defs = *new std::vector<MetricDef>{
      {"ballast_layer_balancedness_ratio",
       MetricType::kGauge,
       "ratio",
       {"model", "group", "phase", "task", "layer"},
       "Mean over max of the workers' tokens in a layer, over the planning window, under the placement in force; "
       "task `*` is all of them. A layer without load has none."},
      {"ballast_worker_layer_load_ratio",
       MetricType::kGauge,
       "ratio",
       {"model", "group", "phase", "layer", "worker"},
       "A worker's tokens in a layer for its speed, over the group's tokens for its workers' speeds, over the planning "
       "window, under the placement in force: 1 is its fair part."},
      {"ballast_step_balancedness_ratio",
       MetricType::kHistogram,
       "ratio",
       {"model", "group", "phase"},
       "Mean over max of tokens by worker in one step, averaged over layers, as reported by the views' leaders.",
       {kStepBalancednessBounds.begin(), kStepBalancednessBounds.end()}},
      {"ballast_step_shares_total",
       MetricType::kCounter,
       "1",
       {"model", "group", "phase", "form"},
       "MoE layers run in steps, by where their traffic shares came from: fixed (the placement), previous (the counts "
       "of the step before), current (the step's own counts)."},
      {"ballast_expert_tokens_total",
       MetricType::kCounter,
       "tokens",
       {"model", "group", "phase", "layer", "expert"},
       "Tokens routed to an expert, summed over its replicas, as reported by workers since the controller started."},
      {"ballast_task_tokens_total",
       MetricType::kCounter,
       "tokens",
       {"model", "group", "task", "phase"},
       "Tokens that entered the model, by the label of their request. A controller shows twice --max-tasks labels, the "
       "rest as _other."},
      {"ballast_task_routes",
       MetricType::kGauge,
       "tokens",
       {"model", "group", "task"},
       "Tokens of the planning window whose whole routes are known: what grouping by task is planned from."},
      {"ballast_task_mix_distance_ratio",
       MetricType::kGauge,
       "ratio",
       {"model", "group"},
       "How far the recent mix of tasks is from the one that the placement is grouped for: half the sum of the tasks' "
       "differences, 1 where it is grouped for none."},
      {"ballast_task_mix_noise_ratio",
       MetricType::kGauge,
       "ratio",
       {"model", "group"},
       "What chance shows of ballast_task_mix_distance_ratio."},
      {"ballast_plan_predicted_copies_per_token",
       MetricType::kGauge,
       "1",
       {"model", "group"},
       "Copies of a token that go to other workers, summed over MoE layers, as the newest plan predicts; absent where "
       "it was not made from routes."},
      {"ballast_replicas",
       MetricType::kGauge,
       "1",
       {"model", "group", "layer"},
       "Replicas of a layer's experts in the placement in force."},
      {"ballast_placement_epoch",
       MetricType::kGauge,
       "1",
       {"model", "group"},
       "Epoch of the placement in force; 0 is none."},
      {"ballast_view", MetricType::kGauge, "1", {"group"}, "Number of the group's view; 0 is none."},
      {"ballast_group_workers",
       MetricType::kGauge,
       "1",
       {"group", "state"},
       "Workers of a group by state (LOADING, READY, SERVING, DISCONNECTED, DEAD, LEAVING)."},
      {"ballast_missing_experts",
       MetricType::kGauge,
       "1",
       {"model", "group"},
       "Experts without a live replica; requests that need them get UNAVAILABLE."},
      {"ballast_rebalancing",
       MetricType::kGauge,
       "1",
       {"model", "group"},
       "1 while a rollout is under way, else 0; for routers."},
      {"ballast_rollouts_total",
       MetricType::kCounter,
       "1",
       {"model", "group", "result"},
       "Rollouts that ended: done, aborted, or rollback."},
      {"ballast_rollout_duration_seconds",
       MetricType::kHistogram,
       "seconds",
       {"model", "group"},
       "From a rollout's first wave to its end.",
       {0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600}},
      {"ballast_plan_duration_seconds",
       MetricType::kHistogram,
       "seconds",
       {"policy"},
       "Time to make a plan.",
       {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}},
      {"ballast_plan_predicted_balancedness_ratio",
       MetricType::kGauge,
       "ratio",
       {"model", "group"},
       "Mean over layers of mean over max of the workers' tokens that the newest plan predicts."},
      {"ballast_telemetry_reports_total",
       MetricType::kCounter,
       "1",
       {"result"},
       "Load reports received: counted, after_gap (counted, but reports before it are missing), duplicate, overlap, "
       "invalid."},
      {"ballast_telemetry_lag_seconds",
       MetricType::kGauge,
       "seconds",
       {"group"},
       "Age of the newest load that has been counted."},
      {"ballast_store_up", MetricType::kGauge, "1", {}, "1 while the store can be written, else 0."},
      {"ballast_leader", MetricType::kGauge, "1", {}, "1 while this controller commands, else 0."},
  };
  return defs;
}

void Gauges::Update(const Group& group, absl::Time now) {
  const v1::Group shown = group.Describe(now);
  const std::string& model = shown.model().name();
  const std::string& name = shown.name();
  metrics_.Gauge("ballast_view", {name}).Set(static_cast<double>(shown.view().view()));
  std::map<std::string, int> states = {{"LOADING", 0},      {"READY", 0}, {"SERVING", 0},
                                       {"DISCONNECTED", 0}, {"DEAD", 0},  {"LEAVING", 0}};
  for (const v1::Worker& worker : group.Workers(now)) {
    ++states[v1::WorkerState_Name(worker.state()).substr(std::string("WORKER_STATE_").size())];
  }
  for (const auto& [state, count] : states) metrics_.Gauge("ballast_group_workers", {name, state}).Set(count);
  if (shown.epoch() == 0) return;
  // From 0: what a counter begins with is no increase to Prometheus.
  for (const char* result : {"done", "aborted", "rollback"}) {
    metrics_.Counter("ballast_rollouts_total", {model, name, result});
  }
  metrics_.Gauge("ballast_placement_epoch", {model, name}).Set(static_cast<double>(shown.epoch()));
  metrics_.Gauge("ballast_missing_experts", {model, name}).Set(shown.missing_total());
  metrics_.Gauge("ballast_rebalancing", {model, name}).Set(group.record().active_plan().empty() ? 0 : 1);
  if (const auto plan = group.Plan(group.record().newest_plan()); plan.has_value()) {
    metrics_.Gauge("ballast_plan_predicted_balancedness_ratio", {model, name}).Set(plan->plan().balancedness_after());
    if (plan->plan().effect().has_traffic_after()) {
      metrics_.Gauge("ballast_plan_predicted_copies_per_token", {model, name})
          .Set(plan->plan().effect().traffic_after().copies_per_token());
    } else {
      metrics_.Remove("ballast_plan_predicted_copies_per_token", {model, name});
    }
  }
  if (group.newest_report() != absl::InfinitePast()) {
    metrics_.Gauge("ballast_telemetry_lag_seconds", {name})
        .Set(std::max(0.0, absl::ToDoubleSeconds(now - group.newest_report())));
  }
  std::vector<int> replicas(group.placement().num_layers);
  for (const Replica& replica : group.placement().replicas) ++replicas[replica.expert.layer];
  for (size_t l = 0; l < replicas.size(); ++l) {
    metrics_.Gauge("ballast_replicas", {model, name, absl::StrCat(l)}).Set(replicas[l]);
  }
  const MixDrift mix = group.DetectMixDrift();
  metrics_.Gauge("ballast_task_mix_distance_ratio", {model, name}).Set(mix.distance);
  metrics_.Gauge("ballast_task_mix_noise_ratio", {model, name}).Set(mix.noise);
  UpdateBalance(group, now);
  UpdateExperts(group);
}

void Gauges::UpdateBalance(const Group& group, absl::Time now) {
  const std::string& model = group.record().model().name();
  const std::string& name = group.name();
  std::set<std::string> tasks;
  std::set<std::vector<std::string>> levels;
  for (const v1::Phase phase : {v1::PHASE_PREFILL, v1::PHASE_DECODE}) {
    const auto show = [&](const LoadWindow::Selection& selection, const std::string& task) {
      const auto load = group.Load(selection, now);
      for (const v1::LayerLoad& layer : load->layers()) {
        // Nothing to do is not level: it would hide what is not among means.
        const auto& tokens = layer.worker_tokens();
        if (std::all_of(tokens.begin(), tokens.end(), [](double t) { return t == 0; })) continue;
        std::vector<std::string> labels = {model, name, PhaseName(phase), task, absl::StrCat(layer.layer())};
        metrics_.Gauge("ballast_layer_balancedness_ratio", labels).Set(layer.balancedness());
        levels.insert(std::move(labels));
      }
      return load;
    };
    const auto all = show({.phase = phase}, kAllTasks);
    UpdateWorkerLoads(group, phase, *all, now);
    for (const v1::TaskLoad& task : all->tasks()) {
      tasks.insert(task.task());
      metrics_.Gauge("ballast_task_routes", {model, name, task.task()}).Set(static_cast<double>(task.sampled_tokens()));
      show({.phase = phase, .task = task.task()}, task.task());
    }
  }
  for (const std::string& task : tasks_) {
    if (!tasks.contains(task)) metrics_.Remove("ballast_task_routes", {model, name, task});
  }
  tasks_ = std::move(tasks);
  for (const std::vector<std::string>& labels : levels_) {
    if (!levels.contains(labels)) metrics_.Remove("ballast_layer_balancedness_ratio", labels);
  }
  levels_ = std::move(levels);
}

void Gauges::UpdateWorkerLoads(const Group& group, v1::Phase phase, const v1::GetLoadResponse& load, absl::Time now) {
  const std::string& model = group.record().model().name();
  const std::vector<std::string>& workers = group.placement().workers;
  std::map<std::string, uint32_t> speed_of;
  for (const v1::Worker& worker : group.Workers(now)) speed_of[worker.name()] = worker.speed();
  std::vector<double> speeds;
  for (const std::string& worker : workers) {
    const auto speed = speed_of.find(worker);
    speeds.push_back(speed == speed_of.end() ? 1 : speed->second);
  }
  const double all_speeds = std::accumulate(speeds.begin(), speeds.end(), 0.0);
  std::set<WorkerLayer> shown;
  for (const v1::LayerLoad& layer : load.layers()) {
    const auto& tokens = layer.worker_tokens();
    const double sum = std::accumulate(tokens.begin(), tokens.end(), 0.0);
    if (sum == 0 || tokens.size() != std::ssize(workers)) continue;
    std::vector<int> order(workers.size());
    std::iota(order.begin(), order.end(), 0);
    const auto relative = [&](int w) { return tokens[w] / speeds[w] / (sum / all_speeds); };
    if (top_ > 0 && top_ < std::ssize(order)) {
      std::partial_sort(order.begin(), order.begin() + top_, order.end(),
                        [&](int a, int b) { return relative(a) > relative(b); });
      order.resize(top_);
    }
    for (const int w : order) {
      metrics_
          .Gauge("ballast_worker_layer_load_ratio",
                 {model, group.name(), PhaseName(phase), absl::StrCat(layer.layer()), workers[w]})
          .Set(relative(w));
      shown.emplace(layer.layer(), workers[w]);
    }
  }
  for (const auto& [layer, worker] : worker_layers_[phase]) {
    if (shown.contains({layer, worker})) continue;
    metrics_.Remove("ballast_worker_layer_load_ratio",
                    {model, group.name(), PhaseName(phase), absl::StrCat(layer), worker});
  }
  worker_layers_[phase] = std::move(shown);
}

void Gauges::UpdateExperts(const Group& group) {
  const Placement& placement = group.placement();
  const auto experts = static_cast<size_t>(placement.num_experts);
  for (const v1::Phase phase : {v1::PHASE_PREFILL, v1::PHASE_DECODE}) {
    const std::vector<double>& counted = group.counted(phase);
    Shown& shown = experts_[phase];
    shown.tokens.resize(counted.size());
    for (int32_t l = 0; l < placement.num_layers; ++l) {
      std::vector<size_t> order(experts);
      std::iota(order.begin(), order.end(), l * experts);
      if (top_ > 0 && static_cast<size_t>(top_) < experts) {
        std::partial_sort(order.begin(), order.begin() + top_, order.end(),
                          [&](size_t a, size_t b) { return counted[a] > counted[b]; });
        order.resize(top_);
      }
      for (const size_t i : order) {
        if (counted[i] == shown.tokens[i]) continue;
        auto handle = shown.handles.find(i);
        if (handle == shown.handles.end()) {
          handle = shown.handles
                       .emplace(i, metrics_.Counter("ballast_expert_tokens_total",
                                                    {group.record().model().name(), group.name(), PhaseName(phase),
                                                     absl::StrCat(l), absl::StrCat(i - l * experts)}))
                       .first;
        }
        handle->second.Add(counted[i] - shown.tokens[i]);
        shown.tokens[i] = counted[i];
      }
    }
  }
}

}  // namespace ballast
