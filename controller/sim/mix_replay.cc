#include "controller/sim/mix_replay.h"

#include <algorithm>
#include <optional>
#include <random>
#include <string>

#include "controller/planner/grouping/hops.h"
#include "controller/planner/planner.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// The routes with the mix's weights; tasks without a part left out.
Routes Weighted(const Routes& routes, const TaskMix& mix) {
  Routes out{routes.layers, routes.experts, routes.top_k, {}};
  for (const TaskRoutes& task : routes.tasks) {
    const auto part = mix.find(task.name);
    if (part == mix.end() || part->second <= 0) continue;
    out.tasks.push_back(task);
    out.tasks.back().weight = part->second;
  }
  return out;
}

PlanRequest Request(const Routes& routes, const MixReplayOptions& options) {
  PlanRequest request;
  request.scenarios = LoadsByTask(routes);
  request.topology = options.topology;
  request.slots_per_layer = options.slots_per_layer;
  request.expert_bytes = options.expert_bytes;
  return request;
}

MixScore Score(const Placement& placement, const Routes& held_out, const Topology& topology) {
  const std::vector<DispatchTable> layers = Onto(placement, topology);
  MixScore out;
  for (const HopScore& score : ScoreHops(layers, held_out, topology)) {
    if (score.task.empty()) {
      out.hops = score.hops;
      out.maxvio = score.balance.maxvio_layer;
    } else {
      out.task_maxvio = std::max(out.task_maxvio, score.balance.maxvio_layer);
    }
  }
  for (const Scenario& task : LoadsByTask(held_out)) {
    const LoadScore load = ScoreLoad(layers, task, topology);
    double solved = 0;
    for (const LayerScore& layer : load.layers) solved += 1 / layer.balancedness_solved - 1;
    out.task_maxvio_solved = std::max(out.task_maxvio_solved, solved / static_cast<double>(load.layers.size()));
  }
  return out;
}

class Source {
 public:
  Source(const Routes& served, const MixReplayOptions& options)
      : served_(served), options_(options), random_(options.seed) {}

  v1::LoadReport Bucket(const TaskMix& mix, absl::Time end) {
    std::vector<double> chances;
    for (const TaskRoutes& task : served_.tasks) {
      const auto part = mix.find(task.name);
      chances.push_back(part == mix.end() ? 0 : part->second);
    }
    std::discrete_distribution<size_t> draw(chances.begin(), chances.end());
    std::vector<int64_t> tokens(served_.tasks.size());
    for (int64_t left = options_.tokens_per_bucket; left > 0; left -= options_.tokens_per_request) {
      tokens[draw(random_)] += options_.tokens_per_request;
    }
    v1::LoadReport report;
    report.mutable_end()->set_seconds(absl::ToUnixSeconds(end));
    for (size_t f = 0; f < tokens.size(); ++f) {
      if (tokens[f] > 0) AddTask(served_.tasks[f], tokens[f], report);
    }
    return report;
  }

 private:
  void AddTask(const TaskRoutes& task, int64_t tokens, v1::LoadReport& report) {
    v1::RouteSample& sample = *report.add_route_samples();
    sample.set_task(report.task_tokens_size());
    sample.set_phase(v1::PHASE_PREFILL);
    sample.set_tokens(static_cast<int32_t>(std::min<int64_t>(options_.routes_per_bucket, tokens)));
    v1::TaskTokens& entered = *report.add_task_tokens();
    entered.set_task(task.name);
    entered.set_prefill_tokens(tokens);
    const size_t k = served_.top_k;
    // The same token in every layer.
    size_t known = task.experts[0].size() / k;
    for (const std::vector<int32_t>& layer : task.experts) known = std::min(known, layer.size() / k);
    for (int32_t t = 0; t < sample.tokens(); ++t) {
      const size_t token = random_() % known;
      for (const std::vector<int32_t>& layer : task.experts) {
        for (size_t i = 0; i < k; ++i) sample.add_experts(layer[token * k + i]);
      }
    }
  }

  const Routes& served_;
  const MixReplayOptions& options_;
  std::mt19937 random_;
};

}  // namespace

absl::StatusOr<MixScore> OwnPlan(const Routes& served, const Routes& held_out, const TaskMix& mix,
                                 const MixReplayOptions& options) {
  const Routes routes = Weighted(served, mix);
  BALLAST_ASSIGN_OR_RETURN(const Plan plan,
                           MakePlan(TaskAwarePolicy(routes, options.planner), Request(routes, options)));
  return Score(plan.placement, Weighted(held_out, mix), options.topology);
}

absl::StatusOr<std::vector<MixStep>> ReplayMix(const Routes& served, const Routes& held_out,
                                               std::span<const TaskMix> schedule, const MixReplayOptions& options) {
  LoadWindow window("replay", served.layers, served.experts, options.load, served.top_k);
  Source source(served, options);
  std::optional<Placement> placement;
  TaskMix settled;
  int32_t since_plan = options.buckets_between_plans;
  absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  std::vector<MixStep> out;
  for (const TaskMix& mix : schedule) {
    BALLAST_RETURN_IF_ERROR(window.Add(source.Bucket(mix, now), now));
    window.Expire(now);
    MixStep& step = out.emplace_back();
    const MixDrift drift = DetectMixDrift(settled, window.TasksByBucket(), options.limits);
    if (++since_plan >= options.buckets_between_plans && drift.drifted) {
      since_plan = 0;
      const Routes routes = window.SampledRoutes(drift.mix, options.max_route_tokens);
      PlanRequest request = Request(routes, options);
      request.current = placement;
      BALLAST_ASSIGN_OR_RETURN(const Plan plan, MakePlan(TaskAwarePolicy(routes, options.planner), request));
      step.planned = true;
      step.moves = plan.moves;
      step.bytes = plan.bytes;
      placement = plan.placement;
      settled = drift.mix;
      // Of few routes, or of a mix on its way, it is not the last.
      const std::vector<TaskBucket> buckets = window.TasksByBucket();
      if (2 * buckets.size() < static_cast<size_t>(options.load.window / options.load.bucket) ||
          MixIsMoving(buckets, options.limits))
        settled.clear();
      const MoveBudget& budget = options.planner.budget;
      // What its budget cut short goes on.
      if (budget.limited() && request.current && plan.moves >= *AllowedMoves(budget, options.expert_bytes))
        settled.clear();
    }
    BALLAST_CHECK(placement.has_value()) << "the first bucket's mix is drift from none";
    step.score = Score(*placement, Weighted(held_out, mix), options.topology);
    now += options.load.bucket;
  }
  return out;
}

}  // namespace ballast
