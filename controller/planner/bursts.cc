#include "controller/planner/bursts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "proto/base/check.h"

namespace ballast {
namespace {

// A worker's deviation over its mean is taken to be at least this: t stays finite.
constexpr double kLeastDeviation = 0.02;

// Calls visit(worker, tokens over speed) for each replica.
template <typename Visit>
void ForEachPart(const DispatchTable& layer, std::span<const double> tokens, std::span<const double> speed, bool equal,
                 Visit visit) {
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    double sum = 0;
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) sum += equal ? 1 : layer.weight[r];
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) {
      const int32_t w = layer.rank[r];
      visit(w, tokens[e] * (equal ? 1 : layer.weight[r]) / sum / speed[w]);
    }
  }
}

}  // namespace

StepLoad::StepLoad(double burstiness, double squares, double level, int32_t workers) {
  const double deviation = std::max(std::sqrt(burstiness * squares / std::max(1, workers)), kLeastDeviation * level);
  t_ = deviation == 0 ? 1 : std::sqrt(2 * std::log(std::max(2, workers))) / deviation;
  per_square_ = t_ / 2 * burstiness;
}

double StepLoad::Busiest(std::span<const double> loads) const {
  const double most = *std::max_element(loads.begin(), loads.end());
  double sum = 0;
  for (const double load : loads) sum += std::exp(t_ * (load - most));
  return most + std::log(sum) / t_;
}

double SumOfSquares(const DispatchTable& layer, std::span<const double> tokens, std::span<const double> speed,
                    bool equal) {
  double sum = 0;
  ForEachPart(layer, tokens, speed, equal, [&](int32_t, double part) { sum += part * part; });
  return sum;
}

double BusiestInStep(const DispatchTable& layer, std::span<const double> tokens, std::span<const double> speed,
                     double burstiness) {
  const double level =
      std::accumulate(tokens.begin(), tokens.end(), 0.0) / std::accumulate(speed.begin(), speed.end(), 0.0);
  if (level == 0) return 0;
  const StepLoad step(burstiness, SumOfSquares(layer, tokens, speed, /*equal=*/false), level,
                      static_cast<int32_t>(speed.size()));
  std::vector<double> loads(speed.size());
  ForEachPart(layer, tokens, speed, /*equal=*/false, [&](int32_t w, double part) { loads[w] += step.Load(part); });
  return step.Busiest(loads);
}

void BurstMeter::Add(const LoadMatrix& step) {
  layers_.resize(step.layers);
  if (steps_.size() == 2) {
    const LoadMatrix& first = steps_.front();
    const LoadMatrix& second = steps_.back();
    BALLAST_CHECK(first.tokens.size() == step.tokens.size()) << step.layers << " layers of " << step.experts;
    for (int32_t l = 0; l < step.layers; ++l) {
      const auto a = first.layer(l);
      const auto b = second.layer(l);
      const auto c = step.layer(l);
      const double all_a = std::accumulate(a.begin(), a.end(), 0.0);
      const double all_b = std::accumulate(b.begin(), b.end(), 0.0);
      const double all_c = std::accumulate(c.begin(), c.end(), 0.0);
      if (all_a == 0 || all_b == 0 || all_c == 0) continue;
      const double least = std::min({all_a, all_b, all_c});
      double excess = 0;
      double parts = 0;
      double noise = 0;
      for (int32_t e = 0; e < step.experts; ++e) {
        const double at_a = a[e] / all_a;
        const double at_b = b[e] / all_b;
        const double at_c = c[e] / all_c;
        const double part = (a[e] + b[e] + c[e]) / (all_a + all_b + all_c);
        const double variance = part * (1 - part);
        excess += (at_b - at_a) * (at_b - at_c) - variance / all_b;
        parts += at_a * at_c;
        // Of normal variables of one variance: 5 times its square, and what neighbours have in common 2 times.
        noise += 7 * (variance / least) * (variance / least);
      }
      Layer& layer = layers_[l];
      const double keep = 1 - 1 / options_.memory_steps;
      layer.excess = keep * layer.excess + excess;
      layer.squares = keep * layer.squares + excess * excess;
      layer.parts = keep * layer.parts + parts;
      layer.noise = keep * layer.noise + noise;
    }
    steps_.pop_front();
  }
  steps_.push_back(step);
}

std::vector<double> BurstMeter::Burstiness() const {
  std::vector<double> out;
  for (const Layer& layer : layers_) {
    const double least = std::max(options_.least_by_sampling * std::sqrt(layer.noise),
                                  options_.least_by_steps * std::sqrt(layer.squares));
    out.push_back(layer.excess > least && layer.parts > 0 ? layer.excess / layer.parts : 0);
  }
  return out;
}

}  // namespace ballast
