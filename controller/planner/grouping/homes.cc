#include "controller/planner/grouping/homes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <utility>

#include "controller/planner/packs.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// `units` in parts of these weights: largest remainders, the first of equals.
std::vector<int32_t> Apportion(std::span<const double> weights, int32_t units) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int32_t> out;
  std::vector<std::pair<double, size_t>> rest;
  int32_t left = units;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double exact = weights[i] / sum * units;
    out.push_back(static_cast<int32_t>(exact));
    left -= out.back();
    rest.emplace_back(-(exact - out.back()), i);
  }
  std::sort(rest.begin(), rest.end());
  for (int32_t i = 0; i < left; ++i) ++out[rest[i].second];
  return out;
}

}  // namespace

std::vector<std::vector<double>> CopiesSaved(std::span<const DispatchTable> layers, const Routes& routes,
                                             const Topology& topology) {
  const size_t workers = topology.workers.size();
  std::vector<std::vector<double>> saved(routes.tasks.size(), std::vector<double>(workers));
  std::vector<int64_t> visits(workers), seen(workers, -1);
  int64_t token = 0;
  for (int32_t l = 0; l < routes.layers; ++l) {
    const DispatchTable& table = layers[l];
    for (size_t f = 0; f < routes.tasks.size(); ++f) {
      const std::vector<int32_t>& experts = routes.tasks[f].experts[l];
      std::fill(visits.begin(), visits.end(), 0);
      for (size_t at = 0; at < experts.size(); at += routes.top_k, ++token) {
        for (int32_t i = 0; i < routes.top_k; ++i) {
          const int32_t e = experts[at + i];
          for (int32_t r = e < 0 ? 0 : table.begin[e]; e >= 0 && r < table.begin[e + 1]; ++r) {
            const int32_t w = table.rank[r];
            visits[w] += std::exchange(seen[w], token) != token;
          }
        }
      }
      const auto tokens = static_cast<double>(experts.size() / routes.top_k);
      for (size_t w = 0; w < workers && tokens > 0; ++w) saved[f][w] += static_cast<double>(visits[w]) / tokens;
    }
  }
  return saved;
}

std::vector<TaskHomes> HomesOf(std::span<const DispatchTable> layers, const Routes& routes, const Topology& topology) {
  BALLAST_CHECK(static_cast<int32_t>(layers.size()) == routes.layers) << layers.size() << " of " << routes.layers;
  const auto workers = static_cast<int32_t>(topology.workers.size());
  const auto tasks = static_cast<int32_t>(routes.tasks.size());
  const std::vector<std::vector<double>> saved = CopiesSaved(layers, routes, topology);
  // The matching takes time with the cube of the units.
  const int32_t units = workers * std::max(1, std::min(8, 256 / std::max(1, workers)));
  std::vector<double> weights, speeds;
  for (const TaskRoutes& task : routes.tasks) weights.push_back(task.weight);
  for (const TopologyWorker& w : topology.workers) speeds.push_back(w.speed);
  const std::vector<int32_t> of_task = Apportion(weights, units), of_worker = Apportion(speeds, units);
  std::vector<int32_t> task_of, worker_of;
  for (int32_t f = 0; f < tasks; ++f) task_of.insert(task_of.end(), of_task[f], f);
  for (int32_t w = 0; w < workers; ++w) worker_of.insert(worker_of.end(), of_worker[w], w);
  std::vector<int64_t> value(static_cast<size_t>(units) * units);
  for (int32_t i = 0; i < units; ++i) {
    for (int32_t j = 0; j < units; ++j) {
      value[static_cast<size_t>(i) * units + j] = std::llround(std::ldexp(saved[task_of[i]][worker_of[j]], 20));
    }
  }
  std::vector<std::map<int32_t, uint32_t>> homes(tasks);
  const std::vector<int32_t> match = BestAssignment(value, units);
  for (int32_t i = 0; i < units; ++i) ++homes[task_of[i]][worker_of[match[i]]];
  std::vector<TaskHomes> out;
  for (int32_t f = 0; f < tasks; ++f) {
    if (homes[f].empty()) {
      const auto best = std::max_element(saved[f].begin(), saved[f].end());
      homes[f][static_cast<int32_t>(best - saved[f].begin())] = 1;
    }
    TaskHomes& task = out.emplace_back();
    task.task = routes.tasks[f].name;
    for (const auto& [worker, weight] : homes[f]) task.homes.push_back({worker, weight, saved[f][worker]});
    std::sort(task.homes.begin(), task.homes.end(), [](const TaskHome& a, const TaskHome& b) {
      return std::pair(-a.copies_saved_per_token, a.worker) < std::pair(-b.copies_saved_per_token, b.worker);
    });
  }
  std::sort(out.begin(), out.end(), [](const TaskHomes& a, const TaskHomes& b) { return a.task < b.task; });
  return out;
}

}  // namespace ballast
