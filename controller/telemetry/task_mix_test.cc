#include "controller/telemetry/task_mix.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

TEST(TaskMix, OfTheLastBuckets) {
  const std::vector<TaskBucket> buckets = {{{"a", 1000}}, {{"a", 30}, {"b", 10}}, {{"b", 40}}};
  EXPECT_THAT(MixOf(buckets, 2), ElementsAre(Pair("a", DoubleEq(.375)), Pair("b", DoubleEq(.625))));
  EXPECT_THAT(MixOf(buckets, 1), ElementsAre(Pair("b", DoubleEq(1))));
  EXPECT_EQ(MixOf(buckets, 9).size(), 2u);
  EXPECT_TRUE(MixOf({}, 3).empty());
}

TEST(TaskMix, DistanceIsTotalVariation) {
  EXPECT_DOUBLE_EQ(MixDistance({{"a", .5}, {"b", .5}}, {{"b", .5}, {"a", .5}}), 0);
  EXPECT_DOUBLE_EQ(MixDistance({{"a", .5}, {"b", .5}}, {{"a", 1}}), .5);
  EXPECT_DOUBLE_EQ(MixDistance({{"a", .75}, {"b", .25}}, {{"b", .5}, {"c", .5}}), .75);
  EXPECT_DOUBLE_EQ(MixDistance({{"a", 1}}, {{"b", 1}}), 1);
  EXPECT_DOUBLE_EQ(MixDistance({}, {{"b", 1}}), 1);
  EXPECT_DOUBLE_EQ(MixDistance({}, {}), 0);
}

// Requests of 200 tokens, 40 a bucket, of four tasks with these chances.
TaskBucket Draw(std::mt19937& random, std::vector<double> chances) {
  std::discrete_distribution<int> task(chances.begin(), chances.end());
  TaskBucket bucket;
  for (int i = 0; i < 40; ++i) bucket[std::string(1, static_cast<char>('a' + task(random)))] += 200;
  return bucket;
}

TEST(TaskMix, ChanceIsNotDrift) {
  std::mt19937 random(5);
  const TaskMix settled = {{"a", .25}, {"b", .25}, {"c", .25}, {"d", .25}};
  int drifted = 0;
  for (int i = 0; i < 300; ++i) {
    std::vector<TaskBucket> buckets;
    for (int b = 0; b < 30; ++b) buckets.push_back(Draw(random, {1, 1, 1, 1}));
    drifted += DetectMixDrift(settled, buckets, {.min_distance = .02}).drifted;
  }
  EXPECT_EQ(drifted, 0);
}

TEST(TaskMix, AShiftIsSeenWithinTheRecentBuckets) {
  std::mt19937 random(5);
  const TaskMix settled = {{"a", .5}, {"b", .5}};
  std::vector<TaskBucket> buckets;
  for (int b = 0; b < 24; ++b) buckets.push_back(Draw(random, {1, 1, 0, 0}));
  EXPECT_FALSE(DetectMixDrift(settled, buckets, {}).drifted);
  for (int b = 0; b < 6; ++b) buckets.push_back(Draw(random, {1, 0, 1, 0}));
  const MixDrift drift = DetectMixDrift(settled, buckets, {});
  EXPECT_TRUE(drift.drifted) << drift.reason;
  EXPECT_NEAR(drift.distance, .5, .1);
  EXPECT_LT(drift.noise, .25);
  EXPECT_THAT(drift.reason, HasSubstr("chance shows at most"));
  // Planned for it, it is settled.
  EXPECT_FALSE(DetectMixDrift(drift.mix, buckets, {}).drifted);
}

TEST(TaskMix, MovesUntilTheRecentBucketsAreAlike) {
  std::mt19937 random(6);
  std::vector<TaskBucket> buckets;
  for (int b = 0; b < 24; ++b) {
    buckets.push_back(Draw(random, {1, 1, 0, 0}));
    EXPECT_FALSE(MixIsMoving(buckets, {})) << b;
  }
  for (int b = 0; b < 12; ++b) {
    buckets.push_back(Draw(random, {1, 0, 1, 0}));
    if (b >= 1 && b < 4) {
      EXPECT_TRUE(MixIsMoving(buckets, {})) << b;
    } else if (b >= 5) {
      EXPECT_FALSE(MixIsMoving(buckets, {})) << b;
    }
  }
  EXPECT_FALSE(MixIsMoving({}, {}));
}

TEST(TaskMix, UnknownNoiseIsNoDrift_ButAnUngroupedPlacementIs) {
  const std::vector<TaskBucket> buckets = {{{"a", 10}}, {{"b", 10}}};
  EXPECT_FALSE(DetectMixDrift({{"c", 1}}, buckets, {}).drifted);
  EXPECT_TRUE(DetectMixDrift({}, buckets, {}).drifted);
  EXPECT_FALSE(DetectMixDrift({}, {}, {}).drifted);
}

}  // namespace
}  // namespace ballast
