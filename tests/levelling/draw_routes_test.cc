#include "tests/levelling/draw_routes.h"

#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(DrawRoutes, ExpertsComeAsOftenAsInTheLoad) {
  // One expert is in every token's; one is in none.
  const std::vector<double> load = {100, 6, 4, 4, 2, 2, 2, 0};
  constexpr int kTokens = 20000, kTopK = 3;
  std::mt19937_64 random(3);
  std::vector<int32_t> ids(kTokens * kTopK, -1);
  DrawRoutes(load, kTopK, random, ids);
  std::vector<double> counts(load.size());
  for (int t = 0; t < kTokens; ++t) {
    const std::set<int32_t> of_token(ids.begin() + t * kTopK, ids.begin() + (t + 1) * kTopK);
    EXPECT_EQ(of_token.size(), static_cast<size_t>(kTopK)) << t;
    for (const int32_t e : of_token) ++counts.at(e);
  }
  EXPECT_EQ(counts[0], kTokens);
  EXPECT_EQ(counts[7], 0);
  for (int e = 1; e < 7; ++e) EXPECT_NEAR(counts[e] / kTokens, 2 * load[e] / 20, 0.015) << e;
}

}  // namespace
}  // namespace ballast
