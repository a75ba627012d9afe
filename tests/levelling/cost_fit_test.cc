#include "tests/levelling/cost_fit.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"

namespace ballast {
namespace {

// Layers of two workers that take what a model says, up to `noise` more or less.
std::vector<MeasuredLayer> Layers(const CostModel& model, double noise, uint32_t seed) {
  std::minstd_rand random(seed);
  std::uniform_real_distribution<double> off(1 - noise, 1 + noise);
  std::vector<MeasuredLayer> layers;
  for (int i = 0; i < 200; ++i) {
    MeasuredLayer layer;
    for (int w = 0; w < 2; ++w) {
      const double pairs = std::pow(2.0, static_cast<double>(random() % 1600) / 100);
      layer.work.push_back({.busiest_tokens = pairs, .experts = std::min(128.0, pairs)});
    }
    layer.microseconds = SlowestMicroseconds(model, layer.work) * off(random);
    layers.push_back(layer);
  }
  return layers;
}

TEST(CostFit, FindsTheConstants) {
  const CostModel truth{.microseconds_per_token = 0.14,
                        .microseconds_per_expert = 19,
                        .microseconds_per_layer = 120,
                        .microseconds_per_copy_node = 0,
                        .microseconds_per_copy_cross_node = 0};
  const CostModel exact = FitCostModel(Layers(truth, 0, 1));
  EXPECT_NEAR(exact.microseconds_per_token, 0.14, 1e-4);
  EXPECT_NEAR(exact.microseconds_per_expert, 19, 1e-2);
  EXPECT_NEAR(exact.microseconds_per_layer, 120, 0.1);
  // Judged on layers that it has not seen.
  const CostModel noisy = FitCostModel(Layers(truth, 0.2, 1));
  const FitQuality quality = JudgeCostModel(noisy, Layers(truth, 0.2, 2));
  EXPECT_GT(quality.r_squared, 0.95);
  EXPECT_NEAR(quality.median_error, 0.1, 0.03);
  EXPECT_LT(quality.max_error, 0.35);
  EXPECT_NEAR(quality.within_tenth, 0.5, 0.15);
  const FitQuality perfect = JudgeCostModel(exact, Layers(truth, 0, 2));
  EXPECT_NEAR(perfect.r_squared, 1, 1e-6);
  EXPECT_EQ(perfect.within_tenth, 1);
}

}  // namespace
}  // namespace ballast
