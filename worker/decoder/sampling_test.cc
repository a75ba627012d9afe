#include "worker/decoder/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

namespace ballast {
namespace {

TEST(SamplingOptionsTest, ValidateNamesFieldValueAndLimit) {
  EXPECT_TRUE(Validate({}).ok());
  EXPECT_TRUE(Validate({.temperature = 1, .top_p = 0.5f}).ok());
  EXPECT_EQ(Validate({.temperature = -1}).message(), "temperature=-1 must lie in [0, 100]");
  EXPECT_EQ(Validate({.temperature = 101}).message(), "temperature=101 must lie in [0, 100]");
  EXPECT_FALSE(Validate({.temperature = std::nanf("")}).ok());
  EXPECT_EQ(Validate({.top_p = 0}).message(), "top_p=0 must lie in (0, 1]");
  EXPECT_EQ(Validate({.top_p = 1.5f}).message(), "top_p=1.5 must lie in (0, 1]");
}

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowestOfEqualOnes) {
  Sampler sampler;
  EXPECT_EQ(sampler.Sample(std::vector<float>{0, 2, 2, 1}, {}, 5), 1);
}

TEST(SamplerTest, FrequenciesFollowTheTemperedSoftmax) {
  Sampler sampler;
  const std::vector<float> logits = {0, 1, 2, -1};
  const float temperature = 0.7f;
  std::vector<double> expected;
  double sum = 0;
  for (float v : logits) sum += expected.emplace_back(std::exp(v / temperature));
  std::vector<int> seen(4);
  const int draws = 40000;
  for (int i = 0; i < draws; ++i) ++seen[sampler.Sample(logits, {.temperature = temperature, .seed = 3}, i)];
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(seen[i] / double{draws}, expected[i] / sum, 0.01) << i;
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesTheMass) {
  Sampler sampler;
  // Probabilities .5, .3, .15, .05 (shuffled): .6 needs two tokens.
  std::vector<float> logits = {std::log(.15f), std::log(.5f), std::log(.05f), std::log(.3f)};
  std::vector<int> seen(4);
  for (int i = 0; i < 2000; ++i) ++seen[sampler.Sample(logits, {.temperature = 1, .top_p = 0.6f, .seed = 1}, i)];
  EXPECT_EQ(seen[0], 0);
  EXPECT_EQ(seen[2], 0);
  EXPECT_NEAR(seen[1] / 2000.0, .5 / .8, 0.04);
  // A mass below the best token's leaves it alone.
  EXPECT_EQ(sampler.Sample(logits, {.temperature = 1, .top_p = 1e-6f, .seed = 1}, 9), 1);
}

TEST(SamplerTest, LogitsThatAreNotANumber_AreNeverDrawn) {
  std::vector<float> logits(10000, -100);
  for (size_t i = 1; i < logits.size(); i += 777) logits[i] = std::nanf("");
  logits[500] = logits[9000] = 3;
  for (const float top_p : {0.9f, 1.0f}) {
    Sampler sampler;
    int first = 0, second = 0;
    for (int i = 0; i < 100; ++i) {
      const int32_t token = sampler.Sample(logits, {.temperature = 1, .top_p = top_p, .seed = 5}, i);
      first += token == 500;
      second += token == 9000;
    }
    EXPECT_EQ(first + second, 100);
    EXPECT_GT(first, 0);
    EXPECT_GT(second, 0);
  }
}

TEST(SamplerTest, NothingFinite_GivesTheFirst) {
  Sampler sampler;
  const std::vector<float> logits(100, std::nanf(""));
  EXPECT_EQ(sampler.Sample(logits, {.temperature = 1, .top_p = 0.5f}, 1), 0);
}

TEST(SamplerTest, DependsOnSeedAndPositionAlone) {
  const std::vector<float> logits(1000, 0.5f);
  Sampler fresh, used;
  for (int i = 0; i < 10; ++i) used.Sample(std::vector<float>{1, 2, 3}, {.temperature = 1}, i);
  int differ = 0;
  for (int i = 0; i < 50; ++i) {
    const SamplingOptions options = {.temperature = 1, .top_p = 0.9f, .seed = 77};
    const int32_t token = fresh.Sample(logits, options, i);
    EXPECT_EQ(token, used.Sample(logits, options, i));
    SamplingOptions other = options;
    other.seed = 78;
    differ += token != used.Sample(logits, other, i);
  }
  EXPECT_GT(differ, 40);
}

TEST(SamplerTest, MaskedLogitsAreNeverDrawn) {
  Sampler sampler;
  const float inf = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 200; ++i) {
    const int32_t token = sampler.Sample(std::vector<float>{-inf, 1, -inf, 1}, {.temperature = 2}, i);
    EXPECT_TRUE(token == 1 || token == 3);
  }
}

// The same by double-precision sums over a sorted vocabulary.
int32_t SampleBySorting(std::span<const float> logits, const SamplingOptions& options, int64_t position) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<std::pair<double, int32_t>> candidates;
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates.push_back({-std::exp((logits[i] - top) / options.temperature), static_cast<int32_t>(i)});
    sum -= candidates.back().first;
  }
  double mass = sum;
  if (options.top_p < 1) {
    std::sort(candidates.begin(), candidates.end());
    mass = 0;
    size_t kept = 0;
    while (kept < candidates.size() && mass < options.top_p * sum) mass -= candidates[kept++].first;
    candidates.resize(kept);
  }
  double left = UniformAt(options.seed, static_cast<uint64_t>(position)) * mass;
  for (const auto& [probability, id] : candidates) {
    left += probability;
    if (left < 0) return id;
  }
  return -1;
}

// What of the draws differs does so by the rounding of sums: a draw that falls between two tokens' shares.
TEST(SamplerTest, DrawsWhatSortingTheVocabularyDraws) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  Sampler sampler;
  int draws = 0, differ = 0;
  for (const int size : {1, 2, 31, 33, 255, 256, 257, 1000, 20011}) {
    for (const float spread : {0.0f, 0.2f, 1.0f, 5.0f, 30.0f}) {
      std::vector<float> logits(size);
      for (float& v : logits) v = spread * normal(random);
      if (size > 40) logits[7] = logits[size - 3] = logits[17] = 2 * spread;  // equal ones
      for (const float top_p : {1e-6f, 0.3f, 0.9f, 0.99f, 0.9999f, 1.0f}) {
        for (int i = 0; i < 6; ++i, ++draws) {
          const SamplingOptions options = {.temperature = 0.5f + 0.2f * i, .top_p = top_p, .seed = 9};
          differ += sampler.Sample(logits, options, draws) != SampleBySorting(logits, options, draws);
        }
      }
    }
  }
  EXPECT_EQ(draws, 9 * 5 * 6 * 6);
  EXPECT_LE(differ, draws / 200);
}

// With top_p just below 1 every token is kept, and rounding may leave the sum of all of them short of the mass.
TEST(SamplerTest, TopPJustBelowOne_KeepsTheWholeLastBucket) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  Sampler sampler;
  int draws = 0, differ = 0;
  for (int size = 100; size < 400; ++size) {
    std::vector<float> logits(size);
    for (float& v : logits) v = 0.05f * normal(random);
    for (int i = 0; i < 40; ++i, ++draws) {
      const SamplingOptions options = {.temperature = 1, .top_p = std::nextafter(1.0f, 0.0f), .seed = 9};
      differ += sampler.Sample(logits, options, draws) != SampleBySorting(logits, options, draws);
    }
  }
  EXPECT_LE(differ, draws / 1000);
}

TEST(LogProbabilityTest, IsTheLogSoftmax) {
  const std::vector<float> logits = {1000, 1001, 999};
  double sum = 0;
  for (float v : logits) sum += std::exp(v - 1000.0);
  EXPECT_NEAR(LogProbability(logits, 1), 1 - std::log(sum), 1e-4);  // of f32 near 1000
  EXPECT_NEAR(LogProbability(std::vector<float>{0, 1, -1}, 1), 1 - std::log(sum), 1e-6);
  EXPECT_EQ(LogProbability(std::vector<float>{3}, 0), 0);
}

TEST(UniformAtTest, IsUniformAndFixed) {
  double sum = 0, squares = 0;
  for (int i = 0; i < 100000; ++i) {
    const double u = UniformAt(5, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / 1e5, 0.5, 0.005);
  EXPECT_NEAR(squares / 1e5, 1.0 / 3, 0.005);
  // Stored seeds must go on meaning the same texts.
  EXPECT_EQ(UniformAt(0, 0), UniformAt(0, 0));
  EXPECT_NE(UniformAt(0, 1), UniformAt(1, 0));
}

}  // namespace
}  // namespace ballast
