#include "tests/levelling/cost_fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr int kTerms = 3;
// Times a worker that is slowest under one solution is looked for under the next, and sweeps of each.
constexpr int kRounds = 10;
constexpr int kSweeps = 5000;

std::array<double, kTerms> Terms(const LayerWork& work) { return {1, work.experts, work.busiest_tokens}; }

CostModel ModelOf(const std::array<double, kTerms>& constants) {
  return {.microseconds_per_token = constants[2],
          .microseconds_per_expert = constants[1],
          .microseconds_per_layer = constants[0],
          .microseconds_per_copy_node = 0,
          .microseconds_per_copy_cross_node = 0};
}

}  // namespace

CostModel FitCostModel(std::span<const MeasuredLayer> layers) {
  BALLAST_CHECK(layers.size() >= kTerms) << layers.size() << " layers";
  std::array<double, kTerms> constants = {1, 1, 1};
  for (int round = 0; round < kRounds; ++round) {
    const CostModel model = ModelOf(constants);
    // Normal equations of the terms over the measured times, which are to sum to 1.
    std::array<std::array<double, kTerms>, kTerms> product = {};
    std::array<double, kTerms> wanted = {};
    for (const MeasuredLayer& layer : layers) {
      const LayerWork& slowest = *std::ranges::max_element(
          layer.work, {}, [&](const LayerWork& work) { return LayerMicroseconds(model, work); });
      std::array<double, kTerms> terms = Terms(slowest);
      for (double& term : terms) term /= layer.microseconds;
      for (int i = 0; i < kTerms; ++i) {
        wanted[i] += terms[i];
        for (int j = 0; j < kTerms; ++j) product[i][j] += terms[i] * terms[j];
      }
    }
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      for (int i = 0; i < kTerms; ++i) {
        if (product[i][i] == 0) continue;
        double rest = wanted[i];
        for (int j = 0; j < kTerms; ++j) rest -= product[i][j] * constants[j];
        constants[i] = std::max(0.0, constants[i] + rest / product[i][i]);
      }
    }
  }
  return ModelOf(constants);
}

FitQuality JudgeCostModel(const CostModel& model, std::span<const MeasuredLayer> layers) {
  BALLAST_CHECK(!layers.empty());
  const auto count = static_cast<double>(layers.size());
  const double mean = std::accumulate(layers.begin(), layers.end(), 0.0,
                                      [](double sum, const MeasuredLayer& l) { return sum + l.microseconds; }) /
                      count;
  double residual = 0, total = 0;
  std::vector<double> errors;
  for (const MeasuredLayer& layer : layers) {
    const double predicted = SlowestMicroseconds(model, layer.work);
    residual += (predicted - layer.microseconds) * (predicted - layer.microseconds);
    total += (layer.microseconds - mean) * (layer.microseconds - mean);
    errors.push_back(std::abs(predicted / layer.microseconds - 1));
  }
  std::ranges::sort(errors);
  const auto at = [&](double part) { return errors[static_cast<size_t>(part * (count - 1))]; };
  return {.r_squared = total > 0 ? 1 - residual / total : 0,
          .median_error = at(0.5),
          .p90_error = at(0.9),
          .max_error = errors.back(),
          .within_tenth = static_cast<double>(std::ranges::upper_bound(errors, 0.1) - errors.begin()) / count};
}

}  // namespace ballast
