#include "controller/planner/search.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "gtest/gtest.h"

namespace ballast {
namespace {

// Tokens of the busiest worker over the mean, equal split.
double Worst(const Packs& packs, std::span<const double> tokens) {
  std::vector<double> count(tokens.size());
  for (const auto& pack : packs) {
    for (const int32_t e : pack) ++count[e];
  }
  double most = 0;
  for (const auto& pack : packs) {
    double load = 0;
    for (const int32_t e : pack) load += tokens[e] / count[e];
    most = std::max(most, load);
  }
  return most * static_cast<double>(packs.size()) / std::accumulate(tokens.begin(), tokens.end(), 0.0);
}

void CheckPacks(const Packs& packs, std::span<const int32_t> slots, size_t experts) {
  std::set<int32_t> all;
  for (size_t w = 0; w < packs.size(); ++w) {
    ASSERT_LE(static_cast<int32_t>(packs[w].size()), slots[w]);
    ASSERT_EQ(std::set<int32_t>(packs[w].begin(), packs[w].end()).size(), packs[w].size());
    all.insert(packs[w].begin(), packs[w].end());
  }
  ASSERT_EQ(all.size(), experts);
}

std::vector<double> Skewed(std::mt19937& random, int32_t experts) {
  std::lognormal_distribution<double> skew(5, 1);
  std::vector<double> tokens(experts);
  for (double& t : tokens) t = skew(random);
  return tokens;
}

TEST(PackGreedily, FillsSlotsWithDistinctExperts) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 3000; ++trial) {
    const int32_t workers = 1 + random() % 6;
    const int32_t experts = 1 + random() % 12;
    const int32_t each = (experts + workers - 1) / workers + random() % 2;
    std::vector<int32_t> slots(workers, each);
    for (int32_t& s : slots) s += random() % 2;
    std::vector<double> tokens = Skewed(random, experts);
    if (trial % 3 == 0) std::fill(tokens.begin(), tokens.end(), 0);
    if (trial % 5 == 0) tokens[0] = 1e9;
    CheckPacks(PackGreedily(tokens, slots), slots, experts);
    if (HasFatalFailure()) FAIL() << trial;
  }
}

TEST(ImprovePacks, KeepsInvariantsAndIsNoWorse) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 300; ++trial) {
    const int32_t workers = 2 + random() % 5;
    const int32_t experts = 4 + random() % 12;
    const std::vector<int32_t> slots(workers, (experts + workers - 1) / workers + random() % 2);
    const std::vector<std::vector<double>> loads = {Skewed(random, experts), Skewed(random, experts),
                                                    std::vector<double>(experts, 0)};
    Packs packs = PackGreedily(loads[0], slots);
    Packs again = packs;
    const SearchOptions options{.proposals = 2000, .recount = trial % 2 == 0};
    ImprovePacks(loads, options, packs);
    CheckPacks(packs, slots, experts);
    if (HasFatalFailure()) FAIL() << trial;
    ImprovePacks(loads, options, again);
    ASSERT_EQ(packs, again);
  }
}

TEST(ImprovePacks, FindsNearlyLevelPacks) {
  std::mt19937 random(3);
  const std::vector<double> tokens = Skewed(random, 64);
  const std::vector<int32_t> slots(8, 9);
  Packs packs = PackGreedily(tokens, slots);
  const double greedy = Worst(packs, tokens);
  ImprovePacks(std::vector<std::vector<double>>{tokens}, {.proposals = 100'000}, packs);
  EXPECT_LT(Worst(packs, tokens), greedy);
  EXPECT_LT(Worst(packs, tokens), 1.003);
}

TEST(ImprovePacks, ServesTheWorstOfSeveralLoads) {
  std::mt19937 random(4);
  const std::vector<std::vector<double>> loads = {Skewed(random, 64), Skewed(random, 64)};
  const std::vector<int32_t> slots(8, 9);
  std::vector<double> sum(64);
  for (int e = 0; e < 64; ++e) sum[e] = loads[0][e] + loads[1][e];
  Packs packs = PackGreedily(sum, slots);
  ImprovePacks(loads, {.proposals = 200'000}, packs);
  EXPECT_LT(std::max(Worst(packs, loads[0]), Worst(packs, loads[1])), 1.05);
}

}  // namespace
}  // namespace ballast
