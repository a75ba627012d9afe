#include "controller/rollout/traffic_effect.h"

#include <algorithm>

#include "controller/planner/grouping/homes.h"
#include "controller/planner/grouping/hops.h"
#include "controller/planner/load.h"
#include "controller/planner/score.h"

namespace ballast {
namespace {

v1::Traffic ToProto(const HopScore& score, const LoadScore& load) {
  v1::Traffic out;
  out.set_hops_per_token(score.hops);
  out.set_copies_per_token(score.copies);
  out.set_cross_node_copies_per_token(score.cross_node);
  out.set_maxvio(score.balance.maxvio_layer);
  out.set_maxvio_worst_layer(score.balance.maxvio_worst_layer);
  double solved = 0;
  for (const LayerScore& layer : load.layers) solved += 1 / layer.balancedness_solved - 1;
  out.set_maxvio_solved_shares(solved / static_cast<double>(load.layers.size()));
  return out;
}

// The mix first, then every task.
std::vector<v1::Traffic> TrafficOf(std::span<const DispatchTable> layers, const Routes& routes,
                                   const Topology& topology) {
  std::vector<Scenario> loads = LoadsByTask(routes);
  loads.insert(loads.begin(), Scenario{"mix", 1, Blend(loads)});
  const std::vector<HopScore> hops = ScoreHops(layers, routes, topology);
  std::vector<v1::Traffic> out;
  for (size_t i = 0; i < hops.size(); ++i) out.push_back(ToProto(hops[i], ScoreLoad(layers, loads[i], topology)));
  return out;
}

}  // namespace

void SetTraffic(std::span<const DispatchTable> before, std::span<const DispatchTable> after, const Routes& routes,
                const Topology& topology, v1::PlanEffect& effect) {
  std::vector<v1::Traffic> then;
  if (!before.empty()) {
    then = TrafficOf(before, routes, topology);
    *effect.mutable_traffic_before() = then[0];
  }
  const std::vector<v1::Traffic> now = TrafficOf(after, routes, topology);
  *effect.mutable_traffic_after() = now[0];
  double sum = 0;
  for (const TaskRoutes& task : routes.tasks) sum += task.weight;
  for (size_t f = 0; f < routes.tasks.size(); ++f) {
    v1::TaskEffect& task = *effect.add_tasks();
    task.set_task(routes.tasks[f].name);
    task.set_mix_ratio(routes.tasks[f].weight / sum);
    if (!before.empty()) *task.mutable_before() = then[f + 1];
    *task.mutable_after() = now[f + 1];
  }
  std::sort(effect.mutable_tasks()->begin(), effect.mutable_tasks()->end(),
            [](const v1::TaskEffect& a, const v1::TaskEffect& b) { return a.task() < b.task(); });
}

double TokenMicroseconds(const v1::Traffic& traffic, double pairs_per_token, double saved, const CostModel& model) {
  const double copies = traffic.copies_per_token();
  const double left = copies > 0 ? std::max(0.0, copies - saved) / copies : 0;
  const double cross_node = traffic.cross_node_copies_per_token();
  return pairs_per_token * (1 + traffic.maxvio()) * model.microseconds_per_token +
         left * ((copies - cross_node) * model.microseconds_per_copy_node +
                 cross_node * model.microseconds_per_copy_cross_node);
}

double HomeSavings(std::span<const DispatchTable> layers, const Routes& routes, std::span<const TaskHomes> homes,
                   const Topology& topology) {
  const std::vector<std::vector<double>> saved = CopiesSaved(layers, routes, topology);
  double sum = 0, weights = 0;
  for (size_t f = 0; f < routes.tasks.size(); ++f) {
    weights += routes.tasks[f].weight;
    const auto task =
        std::find_if(homes.begin(), homes.end(), [&](const TaskHomes& h) { return h.task == routes.tasks[f].name; });
    if (task == homes.end()) continue;
    double anywhere = 0, at_home = 0, parts = 0;
    for (const double s : saved[f]) anywhere += s / static_cast<double>(saved[f].size());
    for (const TaskHome& home : task->homes) {
      at_home += home.weight * saved[f][home.worker];
      parts += home.weight;
    }
    sum += routes.tasks[f].weight * (at_home / parts - anywhere);
  }
  return sum / weights;
}

v1::ReplicaReason ToProto(const ReplicaReason& reason, std::span<const std::string> workers) {
  v1::ReplicaReason out;
  out.set_layer(reason.expert.layer);
  out.set_expert(reason.expert.expert);
  out.set_worker(workers[reason.worker]);
  out.set_moved(reason.moved);
  out.set_hops_saved_per_token(reason.hops_saved);
  for (const auto& [expert, part] : reason.partners) {
    v1::PartnerExpert& partner = *out.add_partners();
    partner.set_expert(expert);
    partner.set_ratio(part);
  }
  for (const auto& [name, part] : reason.tasks) {
    v1::TaskPart& task = *out.add_tasks();
    task.set_task(name);
    task.set_ratio(part);
  }
  return out;
}

}  // namespace ballast
