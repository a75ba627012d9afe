#include "controller/planner/score.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "controller/planner/bursts.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// What each worker has of `tokens`, over its speed: with the table's weights or, where `equal`, split equally.
void Loads(const DispatchTable& layer, std::span<const double> tokens, std::span<const double> speed, bool equal,
           std::vector<double>& loads) {
  BALLAST_CHECK(static_cast<int32_t>(tokens.size()) == layer.num_experts()) << tokens.size() << " experts";
  loads.assign(speed.size(), 0);
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    const int32_t first = layer.begin[e];
    const int32_t last = layer.begin[e + 1];
    if (last - first == 1) {
      loads[layer.rank[first]] += tokens[e];
      continue;
    }
    if (tokens[e] == 0) continue;
    double sum = last - first;
    if (!equal) {
      sum = 0;
      for (int32_t r = first; r < last; ++r) sum += layer.weight[r];
    }
    const double part = tokens[e] / sum;
    for (int32_t r = first; r < last; ++r) loads[layer.rank[r]] += equal ? part : part * layer.weight[r];
  }
  for (size_t w = 0; w < loads.size(); ++w) loads[w] /= speed[w];
}

std::vector<double> SpeedsOf(const Topology& topology) {
  std::vector<double> speed;
  speed.reserve(topology.workers.size());
  for (const TopologyWorker& w : topology.workers) speed.push_back(w.speed);
  return speed;
}

double Mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

std::vector<double> WorkerLoads(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology) {
  std::vector<double> loads;
  Loads(layer, tokens, SpeedsOf(topology), /*equal=*/false, loads);
  return loads;
}

std::vector<double> WorkerLoadsEqualSplit(const DispatchTable& layer, std::span<const double> tokens,
                                          const Topology& topology) {
  std::vector<double> loads;
  Loads(layer, tokens, SpeedsOf(topology), /*equal=*/true, loads);
  return loads;
}

bool SplitsEqually(const DispatchTable& layer) {
  return std::all_of(layer.weight.begin(), layer.weight.end(), [](uint32_t w) { return w == 1; });
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
  if (!speed.empty()) std::sort(speeds.begin(), speeds.end(), std::greater<>());
  std::partial_sum(speeds.begin(), speeds.end(), fastest.begin() + 1);
  struct Expert {
    double level;
    int32_t count;
    double tokens;
    bool operator<(const Expert& other) const { return level < other.level; }
  };
  const int64_t replicas = std::accumulate(slots.begin(), slots.end(), int64_t{0});
  const double mean = total / fastest[workers];
  // Those that are at the mean or below need no more.
  std::vector<Expert> hottest;
  for (const double t : tokens) {
    if (t > mean * fastest[1]) hottest.push_back({t / fastest[1], 1, t});
  }
  std::make_heap(hottest.begin(), hottest.end());
  for (int64_t spare = replicas - experts; spare > 0 && !hottest.empty(); --spare) {
    if (hottest[0].count == workers || hottest[0].level <= mean) break;
    std::pop_heap(hottest.begin(), hottest.end());
    Expert& top = hottest.back();
    ++top.count;
    top.level = top.tokens / fastest[top.count];
    std::push_heap(hottest.begin(), hottest.end());
  }
  double busiest = hottest.empty() ? mean : std::max(mean, hottest[0].level);
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

LayerSolver::LayerSolver(int32_t workers, std::span<const uint32_t> speed)
    : workers_(workers),
      speed_(speed.begin(), speed.end()),
      sum_of_speeds_(speed.empty() ? workers : std::accumulate(speed.begin(), speed.end(), 0.0)) {}

double LayerSolver::Solve(const DispatchTable& layer, std::span<const double> tokens) {
  if (solver_) {
    solver_->Reset(layer);
  } else {
    solver_.emplace(layer, workers_, speed_);
  }
  ToIntegers(tokens, tokens_);
  flow_.assign(layer.num_replicas(), 0);
  const auto busiest = static_cast<double>(solver_->Solve(tokens_, flow_));
  const auto total = static_cast<double>(std::accumulate(tokens_.begin(), tokens_.end(), int64_t{0}));
  return busiest == 0 ? 1 : total / sum_of_speeds_ / busiest;
}

double LayerSolver::SolveWeights(std::span<const double> tokens, DispatchTable& layer) {
  const double balancedness = Solve(layer, tokens);
  FlowToWeights(flow_, layer);
  return balancedness;
}

LayerScorer::LayerScorer(const Topology& topology)
    : speed_(SpeedsOf(topology)),
      speeds_(Speeds(topology)),
      sum_of_speeds_(std::accumulate(speed_.begin(), speed_.end(), 0.0)),
      nodes_(topology),
      solver_(static_cast<int32_t>(speed_.size()), speeds_),
      slots_(speed_.size()) {}

LayerScore LayerScorer::ScoreUnsolved(const DispatchTable& layer, std::span<const double> tokens, double burstiness) {
  LayerScore score;
  Loads(layer, tokens, speed_, /*equal=*/false, loads_);
  score.busiest = *std::max_element(loads_.begin(), loads_.end());
  score.mean = Mean(loads_);
  score.busiest_in_step = burstiness > 0 ? BusiestInStep(layer, tokens, speed_, burstiness) : score.busiest;
  if (score.busiest == 0) return score;
  // A busiest worker cannot have less than the total over all speeds, whatever it holds.
  const double level = std::accumulate(tokens.begin(), tokens.end(), 0.0) / sum_of_speeds_;
  const auto level_over = [&](double busiest) { return busiest == 0 ? 1 : std::min(1.0, level / busiest); };
  score.balancedness = level_over(score.busiest);
  double squares = 0;
  for (const double load : loads_) squares += load * load;
  const auto workers = static_cast<double>(loads_.size());
  score.jain = score.mean * score.mean * workers / squares;
  score.maxvio = score.busiest / score.mean - 1;
  if (!SplitsEqually(layer)) Loads(layer, tokens, speed_, /*equal=*/true, loads_);
  score.busiest_equal_split = *std::max_element(loads_.begin(), loads_.end());
  score.balancedness_equal_split = level_over(score.busiest_equal_split);

  std::fill(slots_.begin(), slots_.end(), 0);
  for (const int32_t w : layer.rank) ++slots_[w];
  score.upper_bound = UpperBound(tokens, slots_, speeds_);
  score.balancedness_solved = std::max(score.balancedness, score.balancedness_equal_split);
  score.busiest_solved = level / score.balancedness_solved;
  score.busiest_bound = level / score.upper_bound;
  score.cross_node_part = nodes_.Part(layer, tokens);
  return score;
}

LayerScore LayerScorer::Score(const DispatchTable& layer, std::span<const double> tokens, double solved,
                              double burstiness) {
  LayerScore score = ScoreUnsolved(layer, tokens, burstiness);
  // Solving is what takes most of the time, and for nothing where the shares at hand are as good as proven.
  constexpr double kNear = 1e-4;
  if (score.busiest == 0 || score.balancedness_solved >= score.upper_bound * (1 - kNear)) return score;
  if (solved == 0) solved = solver_.Solve(layer, tokens);
  score.busiest_solved *= score.balancedness_solved / solved;
  score.balancedness_solved = solved;
  return score;
}

double LayerScorer::Busiest(const DispatchTable& layer, std::span<const double> tokens, double burstiness) {
  if (burstiness > 0) return BusiestInStep(layer, tokens, speed_, burstiness);
  Loads(layer, tokens, speed_, /*equal=*/false, loads_);
  return *std::max_element(loads_.begin(), loads_.end());
}

LayerScore ScoreLayer(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology) {
  return LayerScorer(topology).Score(layer, tokens);
}

std::vector<DispatchTable> Onto(const Placement& placement, const Topology& topology) {
  const std::vector<int32_t> worker_of = WorkersOf(placement, topology);
  std::vector<DispatchTable> layers(placement.num_layers);
  const std::span<const Replica> all = placement.replicas;
  for (size_t first = 0, last = 0; first < all.size(); first = last) {
    while (last < all.size() && all[last].expert.layer == all[first].expert.layer) ++last;
    DispatchTable& table = layers[all[first].expert.layer];
    table.begin.resize(placement.num_experts + 1);
    table.rank.resize(last - first);
    table.weight.resize(last - first);
    int32_t experts = 0;  // that have begun
    int32_t replicas = 0;
    for (const Replica& r : all.subspan(first, last - first)) {
      while (experts <= r.expert.expert) table.begin[experts++] = replicas;
      if (worker_of[r.worker] < 0) continue;
      table.rank[replicas] = worker_of[r.worker];
      table.weight[replicas++] = r.weight;
    }
    std::fill(table.begin.begin() + experts, table.begin.end(), replicas);
    table.rank.resize(replicas);
    table.weight.resize(replicas);
  }
  for (DispatchTable& table : layers) table.begin.resize(placement.num_experts + 1);
  return layers;
}

LoadScore ScoreLoad(const Placement& placement, const Scenario& scenario, const Topology& topology) {
  return ScoreLoad(Onto(placement, topology), scenario, topology);
}

LoadScore ScoreLoad(std::span<const DispatchTable> layers, const Scenario& scenario, const Topology& topology) {
  const LoadMatrix& load = scenario.load;
  BALLAST_CHECK(std::ssize(layers) == load.layers) << layers.size() << " layers placed, " << load.layers << " loaded";
  LayerScorer scorer(topology);
  std::vector<LayerScore> scores;
  scores.reserve(layers.size());
  for (int32_t l = 0; l < load.layers; ++l) {
    scores.push_back(scorer.Score(layers[l], load.layer(l), 0, BurstinessOf(scenario, l)));
  }
  return SumUp(std::move(scores), scenario);
}

LoadScore SumUp(std::vector<LayerScore> layers, const Scenario& scenario) {
  LoadScore score;
  score.scenario = scenario.name;
  score.layers = std::move(layers);
  LayerScore sum{0, 0, 0, 0, 0, 0, 0, 0};
  int32_t loaded = 0;
  double pairs = 0;
  for (int32_t l = 0; l < scenario.load.layers; ++l) {
    const LayerScore& layer = score.layers[l];
    score.busiest += layer.busiest;
    score.busiest_equal_split += layer.busiest_equal_split;
    score.busiest_solved += layer.busiest_solved;
    score.busiest_bound += layer.busiest_bound;
    score.busiest_in_step += layer.busiest_in_step;
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
