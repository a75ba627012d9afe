#include "proto/placement/resample.h"

#include <cmath>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Resample, InProportionToWeights) {
  EXPECT_THAT(Resample(std::vector<double>{1, 1, 1, 1}, 2, .25), ElementsAre(0, 2));
  EXPECT_THAT(Resample(std::vector<double>{1, 1, 1, 1}, 4, .5), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Resample(std::vector<double>{3, 0, 1}, 4, .5), ElementsAre(0, 0, 0, 2));
  EXPECT_THAT(Resample(std::vector<double>{1, 1, 6, 6, 6, 6}, 2, .5), ElementsAre(2, 4));
  EXPECT_THAT(Resample(std::vector<double>{5}, 3, .9), ElementsAre(0, 0, 0));
}

TEST(Resample, NothingOfNothing) {
  EXPECT_THAT(Resample({}, 3, .5), IsEmpty());
  EXPECT_THAT(Resample(std::vector<double>{0, 0}, 3, .5), IsEmpty());
  EXPECT_THAT(Resample(std::vector<double>{1}, 0, .5), IsEmpty());
}

TEST(Resample, EachIsThereItsShare_RoundedDownOrUp) {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    std::vector<double> weights(1 + random() % 40);
    double sum = 0;
    for (double& w : weights) sum += w = static_cast<double>(random() % 1000) / 7;
    if (sum == 0) continue;
    const auto count = static_cast<int32_t>(1 + random() % 60);
    const std::vector<int32_t> drawn = Resample(weights, count, SpreadOffset(i));
    ASSERT_EQ(drawn.size(), static_cast<size_t>(count));
    std::vector<int32_t> times(weights.size());
    for (const int32_t d : drawn) ++times[d];
    for (size_t w = 0; w < weights.size(); ++w) {
      const double share = count * weights[w] / sum;
      EXPECT_GE(times[w], std::floor(share - 1e-9));
      EXPECT_LE(times[w], std::ceil(share + 1e-9));
    }
  }
}

// A sample that is thinned out again and again stays one of everything: the late are in it like the early.
TEST(Resample, OverOffsetsEachIsThereItsShareOnAverage) {
  std::vector<int32_t> early_and_late(2);
  for (int run = 0; run < 50; ++run) {
    std::vector<int32_t> kept;
    std::vector<double> stands_for;
    for (int i = 0; i < 100; ++i) {
      kept.push_back(i);
      stands_for.push_back(1);
      if (kept.size() <= 8) continue;
      std::vector<int32_t> next;
      for (const int32_t k : Resample(stands_for, 8, SpreadOffset(100 * run + i))) next.push_back(kept[k]);
      kept = next;
      stands_for.assign(8, (i + 1) / 8.0);
    }
    for (const int32_t i : kept) ++early_and_late[i >= 50];
  }
  EXPECT_NEAR(early_and_late[0], 200, 60);
}

}  // namespace
}  // namespace ballast
