#include "kernels/cuda/quota_limits.h"

#include <gtest/gtest.h>

#include <vector>

namespace ballast {
namespace {

struct Layer {
  std::vector<int32_t> begin = {0}, rank;
};

// `copies` of each expert, on consecutive ranks.
Layer Spread(int experts, int copies, int ranks) {
  Layer layer;
  for (int e = 0; e < experts; ++e) {
    for (int c = 0; c < copies; ++c) layer.rank.push_back((e + c) % ranks);
    layer.begin.push_back(static_cast<int32_t>(layer.rank.size()));
  }
  return layer;
}

TEST(QuotaTableWordsTest, CountsEachPartOfTheTable) {
  // Expert 0 on rank 0 alone, 1 on both, 2 nowhere, 3 on both.
  const Layer layer = {.begin = {0, 1, 3, 3, 5}, .rank = {0, 0, 1, 1, 0}};
  // begin 5, rank 5, speed 2; one single: 1 + 1, by rank 3 + 1; two levels: 3 + 2; replicas of shared ones: 3 + 4 and
  // 3 + 4; edges 3 + 4.
  EXPECT_EQ(QuotaTableWords(layer.begin, layer.rank, 2), 5 + 5 + 2 + 2 + 4 + 5 + 7 + 7 + 7);
}

TEST(QuotasFitTest, Table) {
  const struct {
    int experts, copies, ranks;
    bool fit;
  } cases[] = {
      {8, 1, 4, true},      {128, 1, 16, true},  {128, 2, 16, true},   {256, 4, 32, true},
      {128, 8, 16, true},    // 29 KB of edges
      {128, 16, 16, false},  // every expert everywhere: 123 KB of edges, 49 KB of the rest
      {64, 16, 16, true},   {1024, 1, 32, true}, {1025, 1, 32, false}, {1024, 4, 32, true},
      {1024, 5, 32, false}, {128, 1, 33, false}, {1, 33, 32, false},
  };
  for (const auto& c : cases) {
    const Layer layer = Spread(c.experts, c.copies, c.ranks);
    EXPECT_EQ(QuotasFit(layer.begin, layer.rank, c.ranks), c.fit)
        << c.experts << " experts, " << c.copies << " copies, " << c.ranks << " ranks";
  }
}

}  // namespace
}  // namespace ballast
