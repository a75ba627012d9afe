#include "controller/planner/score.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <queue>

#include "controller/planner/nodes.h"
#include "proto/base/check.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

template <typename PartOf>
std::vector<double> Loads(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology,
                          PartOf part) {
  BALLAST_CHECK(static_cast<int32_t>(tokens.size()) == layer.num_experts()) << tokens.size() << " experts";
  std::vector<double> loads(topology.workers.size());
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    if (tokens[e] == 0) continue;
    double sum = 0;
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) sum += part(r);
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) loads[layer.rank[r]] += tokens[e] * part(r) / sum;
  }
  for (size_t w = 0; w < loads.size(); ++w) loads[w] /= topology.workers[w].speed;
  return loads;
}

double Mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Mean over max where a busiest worker cannot have less than the total over all speeds, whatever it holds.
double LevelOver(std::span<const double> tokens, const Topology& topology, double busiest) {
  double speeds = 0;
  for (const TopologyWorker& w : topology.workers) speeds += w.speed;
  const double level = std::accumulate(tokens.begin(), tokens.end(), 0.0) / speeds;
  return busiest == 0 ? 1 : std::min(1.0, level / busiest);
}

}  // namespace

std::vector<double> WorkerLoads(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology) {
  return Loads(layer, tokens, topology, [&](int32_t r) { return static_cast<double>(layer.weight[r]); });
}

std::vector<double> WorkerLoadsEqualSplit(const DispatchTable& layer, std::span<const double> tokens,
                                          const Topology& topology) {
  return Loads(layer, tokens, topology, [](int32_t) { return 1.0; });
}

double Balancedness(std::span<const double> loads) {
  const double most = *std::max_element(loads.begin(), loads.end());
  return most == 0 ? 1 : Mean(loads) / most;
}

double UpperBound(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  const auto experts = static_cast<int32_t>(tokens.size());
  const auto workers = static_cast<int32_t>(slots.size());
  const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  if (total == 0) return 1;
  // fastest[c]: speeds of the c fastest workers.
  std::vector<double> fastest(workers + 1);
  std::vector<double> speeds(speed.begin(), speed.end());
  speeds.resize(workers, 1);
  std::sort(speeds.begin(), speeds.end(), std::greater<>());
  std::partial_sum(speeds.begin(), speeds.end(), fastest.begin() + 1);
  struct Expert {
    double level;
    int32_t count;
    double tokens;
    bool operator<(const Expert& other) const { return level < other.level; }
  };
  std::vector<Expert> needs;
  for (const double t : tokens) needs.push_back({t / fastest[1], 1, t});
  std::priority_queue<Expert> hottest(std::less<Expert>(), std::move(needs));
  const int64_t replicas = std::accumulate(slots.begin(), slots.end(), int64_t{0});
  const double mean = total / fastest[workers];
  for (int64_t spare = replicas - experts; spare > 0; --spare) {
    Expert top = hottest.top();
    if (top.count == workers || top.level <= mean) break;
    hottest.pop();
    ++top.count;
    top.level = top.tokens / fastest[top.count];
    hottest.push(top);
  }
  double busiest = std::max(mean, hottest.top().level);
  const bool alike = std::adjacent_find(speed.begin(), speed.end(), std::not_equal_to<>()) == speed.end();
  const bool two_each = std::all_of(slots.begin(), slots.end(), [](int32_t s) { return s == 2; });
  if (alike && two_each && experts <= replicas) {
    const double scale = speed.empty() ? 1 : 1 / static_cast<double>(speed[0]);
    std::vector<double> sorted(tokens.begin(), tokens.end());
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const auto spare = static_cast<int32_t>(replicas - experts);
    double low = 0;
    for (int32_t i = 0; i < spare && i < experts; ++i) low += sorted[experts - 1 - i];
    double top = 0;
    const double valid_to = busiest / scale / 2;
    for (int32_t m = 1; m + spare <= experts; ++m) {
      top += sorted[m - 1];
      const double light = sorted[experts - m - spare];
      low += light;
      if (light > valid_to) break;
      busiest = std::max(busiest, scale * (top + low) / (m + spare));
    }
  }
  return mean / busiest;
}

double UpperBound(std::span<const double> tokens, int32_t replicas, int32_t workers) {
  std::vector<int32_t> slots(workers, replicas / workers);
  for (int32_t w = 0; w < replicas % workers; ++w) ++slots[w];
  return UpperBound(tokens, slots);
}

LayerScore ScoreLayer(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology) {
  LayerScore score;
  const std::vector<double> loads = WorkerLoads(layer, tokens, topology);
  score.busiest = *std::max_element(loads.begin(), loads.end());
  score.mean = Mean(loads);
  if (score.busiest == 0) return score;
  score.balancedness = LevelOver(tokens, topology, score.busiest);
  const std::vector<double> equal = WorkerLoadsEqualSplit(layer, tokens, topology);
  score.busiest_equal_split = *std::max_element(equal.begin(), equal.end());
  score.balancedness_equal_split = LevelOver(tokens, topology, score.busiest_equal_split);
  double squares = 0;
  for (const double load : loads) squares += load * load;
  const auto workers = static_cast<double>(loads.size());
  score.jain = score.mean * score.mean * workers / squares;
  score.maxvio = score.busiest / score.mean - 1;

  const std::vector<uint32_t> speeds = Speeds(topology);
  std::vector<int32_t> slots(loads.size());
  for (const int32_t w : layer.rank) ++slots[w];
  score.upper_bound = UpperBound(tokens, slots, speeds);
  // Solving is what takes most of the time, and for nothing where the shares at hand are as good as proven.
  constexpr double kNear = 1e-4;
  score.balancedness_solved = std::max(score.balancedness, score.balancedness_equal_split);
  if (score.balancedness_solved < score.upper_bound * (1 - kNear)) {
    ShareSolver solver(layer, static_cast<int32_t>(loads.size()), speeds);
    const std::vector<int64_t> whole = ToIntegers(tokens);
    std::vector<int64_t> flow(layer.num_replicas());
    const auto busiest = static_cast<double>(solver.Solve(whole, flow));
    const auto total = static_cast<double>(std::accumulate(whole.begin(), whole.end(), int64_t{0}));
    const double speed = speeds.empty() ? workers : std::accumulate(speeds.begin(), speeds.end(), 0.0);
    score.balancedness_solved = total / speed / busiest;
  }
  double sum_of_speeds = 0;
  for (const TopologyWorker& w : topology.workers) sum_of_speeds += w.speed;
  const double level = std::accumulate(tokens.begin(), tokens.end(), 0.0) / sum_of_speeds;
  score.busiest_solved = level / score.balancedness_solved;
  score.busiest_bound = level / score.upper_bound;
  score.cross_node_part = CrossNodePart(layer, tokens, topology);
  return score;
}

std::vector<DispatchTable> Onto(const Placement& placement, const Topology& topology) {
  std::map<std::string, int32_t> index;
  for (size_t w = 0; w < topology.workers.size(); ++w) index[topology.workers[w].name] = static_cast<int32_t>(w);
  std::vector<int32_t> worker_of;
  for (const std::string& name : placement.workers) {
    const auto found = index.find(name);
    worker_of.push_back(found == index.end() ? -1 : found->second);
  }
  std::vector<DispatchTable> layers;
  for (const LayerReplicas& layer : ByLayer(placement)) layers.push_back(MakeDispatchTable(layer, worker_of));
  return layers;
}

LoadScore ScoreLoad(const Placement& placement, const Scenario& scenario, const Topology& topology) {
  BALLAST_CHECK(placement.num_layers == scenario.load.layers && placement.num_experts == scenario.load.experts)
      << placement.num_layers << " x " << placement.num_experts << " placed, " << scenario.load.layers << " x "
      << scenario.load.experts << " loaded";
  LoadScore score;
  score.scenario = scenario.name;
  const std::vector<DispatchTable> layers = Onto(placement, topology);
  LayerScore sum{0, 0, 0, 0, 0, 0, 0, 0};
  int32_t loaded = 0;
  double pairs = 0;
  for (int32_t l = 0; l < placement.num_layers; ++l) {
    const LayerScore layer = ScoreLayer(layers[l], scenario.load.layer(l), topology);
    score.layers.push_back(layer);
    score.busiest += layer.busiest;
    score.busiest_equal_split += layer.busiest_equal_split;
    score.busiest_solved += layer.busiest_solved;
    score.busiest_bound += layer.busiest_bound;
    if (layer.busiest == 0) continue;
    ++loaded;
    sum.balancedness += layer.balancedness;
    sum.balancedness_equal_split += layer.balancedness_equal_split;
    sum.balancedness_solved += layer.balancedness_solved;
    sum.upper_bound += layer.upper_bound;
    sum.jain += layer.jain;
    sum.maxvio += layer.maxvio;
    const auto tokens = scenario.load.layer(l);
    const double layer_pairs = std::accumulate(tokens.begin(), tokens.end(), 0.0);
    pairs += layer_pairs;
    sum.cross_node_part += layer_pairs * layer.cross_node_part;
    if (layer.balancedness < score.worst) {
      score.worst = layer.balancedness;
      score.worst_layer = l;
    }
  }
  if (loaded == 0) return score;
  score.balancedness = sum.balancedness / loaded;
  score.balancedness_equal_split = sum.balancedness_equal_split / loaded;
  score.balancedness_solved = sum.balancedness_solved / loaded;
  score.upper_bound = sum.upper_bound / loaded;
  score.jain = sum.jain / loaded;
  score.maxvio = sum.maxvio / loaded;
  score.cross_node_part = sum.cross_node_part / pairs;
  return score;
}

}  // namespace ballast
