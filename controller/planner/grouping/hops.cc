#include "controller/planner/grouping/hops.h"

#include <algorithm>
#include <numeric>

#include "proto/base/check.h"

namespace ballast {
namespace {

double MaxVio(std::span<const double> load) {
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  if (sum <= 0) return 0;
  return *std::max_element(load.begin(), load.end()) * static_cast<double>(load.size()) / sum - 1;
}

double Jain(std::span<const double> load) {
  double sum = 0, squares = 0;
  for (const double x : load) {
    sum += x;
    squares += x * x;
  }
  return squares > 0 ? sum * sum / (static_cast<double>(load.size()) * squares) : 1;
}

BalanceScore Balance(const std::vector<std::vector<double>>& layers) {
  BalanceScore out;
  out.jain_layer = 0;
  std::vector<double> all(layers[0].size());
  for (const std::vector<double>& load : layers) {
    const double maxvio = MaxVio(load);
    out.maxvio_layer += maxvio / static_cast<double>(layers.size());
    out.jain_layer += Jain(load) / static_cast<double>(layers.size());
    out.maxvio_worst_layer = std::max(out.maxvio_worst_layer, maxvio);
    for (size_t w = 0; w < load.size(); ++w) all[w] += load[w];
  }
  out.maxvio_all = MaxVio(all);
  out.jain_all = Jain(all);
  return out;
}

}  // namespace

HopCounter::HopCounter(const Routes& routes, const Topology& topology)
    : routes_(routes),
      topology_(topology),
      sum_(routes.layers * routes.tasks.size()),
      pairs_(sum_.size() * topology.workers.size()),
      seen_(topology.workers.size(), -1) {}

void HopCounter::Add(int32_t layer, int32_t task, int32_t source, std::span<const int32_t> ranks) {
  const size_t row = layer * routes_.tasks.size() + task;
  Sum& sum = sum_[row];
  int64_t* pairs = pairs_.data() + row * topology_.workers.size();
  int32_t workers = 0;
  for (const int32_t w : ranks) {
    if (w < 0) continue;
    ++pairs[w];
    if (seen_[w] == token_) continue;
    seen_[w] = token_;
    ++workers;
    sum.copies += w != source;
    sum.cross_node += topology_.workers[w].node != topology_.workers[source].node;
  }
  ++token_;
  ++sum.tokens;
  sum.hops += std::max(0, workers - 1);
}

std::vector<HopScore> HopCounter::Scores() const {
  const size_t tasks = routes_.tasks.size();
  const size_t workers = topology_.workers.size();
  std::vector<HopScore> out(tasks + 1);
  // [mix, then tasks][layers][workers]
  std::vector<std::vector<std::vector<double>>> loads(
      tasks + 1, std::vector<std::vector<double>>(routes_.layers, std::vector<double>(workers)));
  for (size_t f = 0; f < tasks; ++f) out[f + 1].task = routes_.tasks[f].name;
  for (int32_t l = 0; l < routes_.layers; ++l) {
    const LayerRoutes layer = LayerOf(routes_, l);
    for (size_t f = 0; f < tasks; ++f) {
      const size_t row = l * tasks + f;
      const Sum& sum = sum_[row];
      if (sum.tokens == 0) continue;
      const auto tokens = static_cast<double>(sum.tokens);
      const std::span<const int64_t> pairs = std::span(pairs_).subspan(row * workers, workers);
      const auto all = static_cast<double>(std::accumulate(pairs.begin(), pairs.end(), int64_t{0}));
      for (const auto& [to, part] : {std::pair<size_t, double>{0, layer.tasks[f].weight}, {f + 1, 1.0}}) {
        out[to].hops += part * static_cast<double>(sum.hops) / tokens;
        out[to].copies += part * static_cast<double>(sum.copies) / tokens;
        out[to].cross_node += part * static_cast<double>(sum.cross_node) / tokens;
        for (size_t w = 0; w < workers && all > 0; ++w) {
          loads[to][l][w] += part * static_cast<double>(pairs[w]) / (all * topology_.workers[w].speed);
        }
      }
    }
  }
  for (size_t i = 0; i < out.size(); ++i) out[i].balance = Balance(loads[i]);
  return out;
}

std::vector<HopScore> ScoreHops(std::span<const DispatchTable> layers, const Routes& routes, const Topology& topology,
                                int32_t step_tokens) {
  BALLAST_CHECK(static_cast<int32_t>(layers.size()) == routes.layers) << layers.size() << " of " << routes.layers;
  const auto workers = static_cast<int32_t>(topology.workers.size());
  std::vector<int32_t> nodes;
  for (const TopologyWorker& w : topology.workers) nodes.push_back(w.node);
  HopCounter counter(routes, topology);
  // One worker's part of a step: its tokens' experts, and the task of each token.
  struct Batch {
    std::vector<int32_t> experts;
    std::vector<int32_t> task;
  };
  std::vector<Batch> batches(workers);
  std::vector<int32_t> counts(routes.experts), quotas, chosen;
  for (int32_t l = 0; l < routes.layers; ++l) {
    const DispatchTable& table = layers[l];
    uint32_t step = 0;
    const auto dispatch = [&](int32_t source) {
      Batch& batch = batches[source];
      std::fill(counts.begin(), counts.end(), 0);
      for (const int32_t e : batch.experts) {
        if (e >= 0) ++counts[e];
      }
      quotas.resize(table.num_replicas());
      chosen.resize(batch.experts.size());
      SolveQuotas(table, counts, step + static_cast<uint32_t>(source), quotas);
      AssignReplicas(table, {source, nodes}, batch.experts, routes.top_k, quotas, chosen);
      for (int32_t& replica : chosen) {
        if (replica >= 0) replica = table.rank[replica];
      }
      for (size_t t = 0; t < batch.task.size(); ++t) {
        counter.Add(l, batch.task[t], source, std::span(chosen).subspan(t * routes.top_k, routes.top_k));
      }
      batch.experts.clear();
      batch.task.clear();
      ++step;
    };
    int64_t most = 0;
    const LayerRoutes layer = LayerOf(routes, l);
    for (const LayerRoutes::Task& task : layer.tasks) most = std::max(most, task.tokens);
    for (int64_t t = 0; t < most; ++t) {
      const auto source = static_cast<int32_t>(t % workers);
      for (size_t f = 0; f < layer.tasks.size(); ++f) {
        if (t >= layer.tasks[f].tokens) continue;
        const auto token = layer.tasks[f].experts.subspan(t * routes.top_k, routes.top_k);
        Batch& batch = batches[source];
        batch.experts.insert(batch.experts.end(), token.begin(), token.end());
        batch.task.push_back(static_cast<int32_t>(f));
        if (step_tokens > 0 && static_cast<int32_t>(batch.task.size()) == step_tokens) dispatch(source);
      }
    }
    for (int32_t source = 0; source < workers; ++source) dispatch(source);
  }
  return counter.Scores();
}

double RandomPlacementHops(std::span<const int32_t> sizes, int32_t top_k) {
  const int32_t experts = std::accumulate(sizes.begin(), sizes.end(), 0);
  BALLAST_CHECK(top_k >= 0 && top_k <= experts) << top_k << " of " << experts;
  double hops = -1;
  for (const int32_t size : sizes) {
    // C(experts - size, k) / C(experts, k): that none of the k is here.
    double none = 1;
    for (int32_t i = 0; i < top_k; ++i) none *= std::max(0, experts - size - i) / static_cast<double>(experts - i);
    hops += 1 - none;
  }
  return hops;
}

}  // namespace ballast
