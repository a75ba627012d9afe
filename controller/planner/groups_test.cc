#include "controller/planner/groups.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "gtest/gtest.h"

namespace ballast {
namespace {

std::vector<double> Skewed(std::mt19937& random, int32_t experts) {
  std::lognormal_distribution<double> skew(5, 1);
  std::vector<double> tokens(experts);
  for (double& t : tokens) t = skew(random);
  return tokens;
}

double Busiest(const std::vector<ExpertGroup>& groups, std::span<const double> tokens) {
  double most = 0;
  for (const ExpertGroup& group : groups) {
    double load = 0;
    for (const int32_t e : group.experts) load += tokens[e];
    most = std::max(most, load / group.workers);
  }
  return most;
}

TEST(GroupExperts, GroupsAreFullAndHoldEverybodyOnce) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 500; ++trial) {
    const int32_t workers = 1 + random() % 9;
    const int32_t slots = 1 + random() % 4;
    const int32_t large = static_cast<int32_t>(random() % workers);
    const int32_t experts = workers * slots + large - static_cast<int32_t>(random() % workers);
    std::vector<double> tokens = Skewed(random, experts);
    if (trial % 5 == 0) tokens[0] = 1e9;
    if (trial % 7 == 0) std::fill(tokens.begin(), tokens.end(), 0);
    const auto groups = GroupExperts(tokens, workers, slots, large, 3000);
    std::set<int32_t> all;
    int32_t workers_used = 0;
    int32_t large_used = 0;
    for (const ExpertGroup& group : groups) {
      ASSERT_GE(group.workers, 1);
      ASSERT_GE(group.large, 0);
      ASSERT_LE(group.large, group.workers);
      ASSERT_EQ(std::ssize(group.experts), group.workers * (slots - 1) + group.large + 1) << trial;
      all.insert(group.experts.begin(), group.experts.end());
      workers_used += group.workers;
      large_used += group.large;
    }
    ASSERT_EQ(std::ssize(all), experts);
    ASSERT_EQ(workers_used, workers);
    ASSERT_EQ(large_used, large);
  }
}

TEST(GroupExperts, MoreTriesAreNoWorseThanNone) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 20; ++trial) {
    const std::vector<double> tokens = Skewed(random, 64);
    const double start = Busiest(GroupExperts(tokens, 36, 2, 0, 0), tokens);
    const double found = Busiest(GroupExperts(tokens, 36, 2, 0, 100'000), tokens);
    EXPECT_LE(found, start);
    EXPECT_EQ(found, Busiest(GroupExperts(tokens, 36, 2, 0, 100'000), tokens));
  }
}

TEST(GroupExperts, GroupsOfUnequalSizesAreLevel) {
  std::mt19937 random(3);
  for (const auto& [workers, slots] : {std::pair(48, 6), std::pair(60, 5), std::pair(40, 7)}) {
    const std::vector<double> tokens = Skewed(random, 256);
    const double mean = std::accumulate(tokens.begin(), tokens.end(), 0.0) / workers;
    EXPECT_LT(Busiest(GroupExperts(tokens, workers, slots, 0, 384'000), tokens), 1.001 * mean) << workers;
  }
}

}  // namespace
}  // namespace ballast
