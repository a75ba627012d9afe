#include "controller/sim/step.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "controller/planner/score.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// Above this mean a rounded normal variable stands for a Poisson one: its skewness is below 0.04 there.
constexpr double kNormalAbove = 1000;

}  // namespace

StepRunner::StepRunner(const Placement& placement, const Topology& topology, const CostModel& model, StepSplit split)
    : topology_(topology), model_(model), split_(split), layers_(Onto(placement, topology)) {
  std::vector<uint32_t> speeds;
  bool alike = true;
  for (const TopologyWorker& w : topology_.workers) {
    speeds.push_back(w.speed);
    speed_ += w.speed;
    alike &= w.speed == topology_.workers[0].speed;
  }
  if (split_ != StepSplit::kSolved) return;
  if (alike) speeds.clear();
  for (const DispatchTable& layer : layers_) {
    solvers_.emplace_back(layer, static_cast<int32_t>(topology_.workers.size()), speeds);
  }
}

StepFigures StepRunner::Run(const LoadMatrix& pairs) {
  BALLAST_CHECK(pairs.layers == static_cast<int32_t>(layers_.size())) << pairs.layers << " layers";
  double microseconds = 0;
  double balancedness = 0;
  int32_t loaded = 0;
  for (int32_t l = 0; l < pairs.layers; ++l) {
    const DispatchTable& layer = layers_[l];
    const auto tokens = pairs.layer(l);
    pairs_.assign(layer.num_replicas(), 0);
    if (split_ == StepSplit::kSolved) {
      counts_.assign(tokens.begin(), tokens.end());
      flow_.assign(layer.num_replicas(), 0);
      solvers_[l].Solve(counts_, flow_);
      std::copy(flow_.begin(), flow_.end(), pairs_.begin());
    }
    double total = 0;
    for (int32_t e = 0; e < pairs.experts; ++e) {
      total += tokens[e];
      const int32_t first = layer.begin[e];
      const int32_t last = layer.begin[e + 1];
      BALLAST_CHECK(first < last || tokens[e] == 0) << "layer " << l << ", expert " << e << " has no replica";
      if (split_ == StepSplit::kSolved) continue;
      double sum = 0;
      for (int32_t r = first; r < last; ++r) sum += split_ == StepSplit::kEqual ? 1 : layer.weight[r];
      for (int32_t r = first; r < last; ++r) {
        pairs_[r] = tokens[e] * (split_ == StepSplit::kEqual ? 1 : layer.weight[r]) / sum;
      }
    }
    const std::vector<LayerWork> work = WorkByWorker(layer, pairs_, topology_);
    microseconds += SlowestMicroseconds(model_, work);
    if (total == 0) continue;
    double busiest = 0;
    for (const LayerWork& w : work) busiest = std::max(busiest, w.busiest_tokens);
    balancedness += total / speed_ / busiest;
    ++loaded;
  }
  return {.balancedness = loaded == 0 ? 1 : balancedness / loaded,
          .microseconds = StepMicroseconds(model_, microseconds)};
}

void SampleCounts(const LoadMatrix& parts, const SampleOptions& options, int64_t steps, std::mt19937_64& random,
                  LoadMatrix& counts) {
  const double pairs = static_cast<double>(options.tokens_per_step) * options.top_k * static_cast<double>(steps);
  // Of the sum of `steps` independent factors.
  const double deviation = options.burstiness / std::sqrt(static_cast<double>(steps));
  std::normal_distribution<double> normal;
  counts.layers = parts.layers;
  counts.experts = parts.experts;
  counts.tokens.resize(parts.tokens.size());
  for (size_t i = 0; i < parts.tokens.size(); ++i) {
    double mean = parts.tokens[i] * pairs;
    if (deviation > 0 && mean > 0) {
      const double shape = 1 / (deviation * deviation);
      mean = std::gamma_distribution<double>(shape, mean / shape)(random);
    }
    if (mean <= 0) {
      counts.tokens[i] = 0;
    } else if (mean > kNormalAbove) {
      counts.tokens[i] = std::max(0.0, std::round(mean + std::sqrt(mean) * normal(random)));
    } else {
      counts.tokens[i] = static_cast<double>(std::poisson_distribution<int64_t>(mean)(random));
    }
  }
}

}  // namespace ballast
