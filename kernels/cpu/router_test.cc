#include "kernels/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/cpu/test_data.h"

namespace ballast {
namespace {

using internal::Dot;
using internal::RandomBf16;
using internal::RandomFloats;

struct Routes {
  std::vector<float> logits, weights;
  std::vector<int32_t> ids;
};

Routes Route(const RouterRule& rule, const std::vector<float>& hidden, const std::vector<uint16_t>& weights, int tokens,
             int width, int threads = 1) {
  ThreadPool pool(threads);
  Routes out;
  out.logits.resize(static_cast<size_t>(tokens) * rule.num_experts);
  out.ids.resize(static_cast<size_t>(tokens) * rule.top_k);
  out.weights.resize(out.ids.size());
  RouteTokens(rule, hidden.data(), weights.data(), tokens, width, out.logits.data(), out.ids.data(), out.weights.data(),
              pool);
  return out;
}

TEST(RouteTokensTest, MatchesReferenceOfEachArchitecture) {
  struct Case {
    const char* name;
    RouterRule rule;
  };
  for (const Case& c : {Case{"olmoe", {32, 4, false}},
                        {"qwen3_moe", {64, 8, true}},
                        {"mixtral", {8, 2, true}},
                        {"one", {1, 1, true}},
                        {"odd", {17, 3, false}}}) {
    for (int tokens : {1, 3, 17, 70}) {
      const int width = 50;
      const std::vector<float> hidden = RandomFloats(tokens * width, tokens);
      const std::vector<uint16_t> weights = RandomBf16(c.rule.num_experts * width, 9, 0.3f);
      const Routes got = Route(c.rule, hidden, weights, tokens, width);
      for (int t = 0; t < tokens; ++t) {
        const std::vector<double> row(hidden.begin() + t * width, hidden.begin() + (t + 1) * width);
        std::vector<double> p(c.rule.num_experts);
        for (int e = 0; e < c.rule.num_experts; ++e) {
          p[e] = Dot(row.data(), weights.data() + e * width, width);
          ASSERT_NEAR(got.logits[t * c.rule.num_experts + e], p[e], 1e-5);
        }
        const double top = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double& v : p) sum += v = std::exp(v - top);
        std::vector<int> order(c.rule.num_experts);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return p[a] > p[b]; });
        double chosen = 0;
        for (int j = 0; j < c.rule.top_k; ++j) chosen += p[order[j]];
        for (int j = 0; j < c.rule.top_k; ++j) {
          ASSERT_EQ(got.ids[t * c.rule.top_k + j], order[j]) << c.name;
          ASSERT_NEAR(got.weights[t * c.rule.top_k + j], p[order[j]] / (c.rule.renormalize ? chosen : sum), 1e-5)
              << c.name;
        }
      }
    }
  }
}

TEST(RouteTokensTest, TiesGoToTheLowerId) {
  // All experts have equal rows, so all probabilities are equal.
  const int width = 32;
  std::vector<uint16_t> weights(8 * width, internal::ToBf16(0.5f));
  const Routes got = Route({8, 3, true}, RandomFloats(width, 1), weights, 1, width);
  EXPECT_EQ(got.ids, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_FLOAT_EQ(got.weights[0], 1.0f / 3);
}

TEST(RouteTokensTest, TokensBitsDependOnTheTokenAlone) {
  const RouterRule rule = {32, 4, false};
  const int width = 192;
  const std::vector<uint16_t> weights = RandomBf16(32 * width, 1, 0.1f);
  const std::vector<float> row = RandomFloats(width, 2);
  const Routes alone = Route(rule, row, weights, 1, width);
  for (int threads : {1, 3}) {
    for (int tokens = 1; tokens <= 70; ++tokens) {
      for (int at : {0, tokens / 2, tokens - 1}) {
        std::vector<float> hidden = RandomFloats(static_cast<size_t>(tokens) * width, tokens);
        std::copy(row.begin(), row.end(), hidden.begin() + at * width);
        const Routes got = Route(rule, hidden, weights, tokens, width, threads);
        ASSERT_EQ(std::memcmp(alone.logits.data(), got.logits.data() + at * 32, 32 * sizeof(float)), 0);
        ASSERT_EQ(std::memcmp(alone.weights.data(), got.weights.data() + at * 4, 4 * sizeof(float)), 0);
        ASSERT_TRUE(std::equal(alone.ids.begin(), alone.ids.end(), got.ids.begin() + at * 4));
      }
    }
  }
}

TEST(RouteTokensTest, ManyTokensOnManyThreadsAreAsOnOne) {
  const RouterRule rule = {64, 8, true};
  const std::vector<uint16_t> weights = RandomBf16(64 * 256, 1, 0.1f);
  const std::vector<float> hidden = RandomFloats(517 * 256, 2);
  const Routes one = Route(rule, hidden, weights, 517, 256, 1), four = Route(rule, hidden, weights, 517, 256, 4);
  EXPECT_EQ(one.logits, four.logits);
  EXPECT_EQ(one.ids, four.ids);
  EXPECT_EQ(one.weights, four.weights);
}

}  // namespace
}  // namespace ballast
