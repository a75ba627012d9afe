#include "controller/planner/alias.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "controller/planner/load_test_util.h"
#include "controller/planner/score.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

double Sum(std::span<const double> tokens) { return std::accumulate(tokens.begin(), tokens.end(), 0.0); }

void CheckPacks(const Packs& packs, int32_t experts, std::span<const int32_t> slots) {
  std::set<int32_t> all;
  for (size_t w = 0; w < packs.size(); ++w) {
    ASSERT_EQ(static_cast<int32_t>(packs[w].size()), std::min(slots[w], experts));
    ASSERT_EQ(std::set<int32_t>(packs[w].begin(), packs[w].end()).size(), packs[w].size());
    all.insert(packs[w].begin(), packs[w].end());
  }
  ASSERT_EQ(static_cast<int32_t>(all.size()), experts);
}

// The lowest level that shares reach on any placement: every way to give each expert a set of workers, within slots.
double LeastLevel(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  const auto experts = static_cast<int32_t>(tokens.size());
  Packs packs(slots.size());
  double least = std::numeric_limits<double>::infinity();
  const std::function<void(int32_t)> place = [&](int32_t e) {
    if (e == experts) {
      least = std::min(least, SolvedLevel(packs, tokens, speed));
      return;
    }
    for (uint32_t set = 1; set < (1u << slots.size()); ++set) {
      bool fits = true;
      for (size_t w = 0; w < slots.size(); ++w) {
        if ((set >> w) & 1) fits &= std::ssize(packs[w]) < slots[w];
      }
      if (!fits) continue;
      for (size_t w = 0; w < slots.size(); ++w) {
        if ((set >> w) & 1) packs[w].push_back(e);
      }
      place(e + 1);
      for (size_t w = 0; w < slots.size(); ++w) {
        if ((set >> w) & 1) packs[w].pop_back();
      }
    }
  };
  place(0);
  return least;
}

TEST(PlaceLevel, IsExactlyLevelWhereverOneSlotAWorkerIsSpare) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 5000; ++trial) {
    const int32_t workers = 1 + random() % 8;
    std::vector<int32_t> slots(workers, 1 + random() % 5);
    if (trial % 2 == 1) slots[random() % workers] += 1;
    const int32_t most = std::accumulate(slots.begin(), slots.end(), 0) - workers + 1;
    // As many as there can be, every other time.
    const int32_t experts = trial % 4 < 2 ? most : 1 + static_cast<int32_t>(random() % most);
    const std::vector<double> tokens = RandomTokens(random, experts);
    const Packs packs = PlaceLevel(tokens, slots);
    CheckPacks(packs, experts, slots);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
    const double mean = Sum(tokens) / workers;
    ASSERT_LE(SolvedLevel(packs, tokens), mean * (1 + 1e-6)) << trial;
  }
}

TEST(LevelTable, ItsWeightsAreLevel) {
  std::mt19937 random(6);
  int level = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const int32_t workers = 1 + random() % 12;
    std::vector<int32_t> slots(workers, 1 + random() % 5);
    if (trial % 2 == 1) slots[random() % workers] += 1;
    const int32_t all = std::accumulate(slots.begin(), slots.end(), 0);
    const int32_t experts = 1 + static_cast<int32_t>(random() % all);
    const std::vector<double> tokens = RandomTokens(random, experts);
    const DispatchTable table = LevelTable(tokens, slots);
    const DispatchTable packs = ToTable(PlaceLevel(tokens, slots), experts);
    ASSERT_EQ(table.rank, packs.rank) << trial;
    ASSERT_EQ(table.begin, packs.begin) << trial;
    ASSERT_EQ(table.weight[0] > 0, experts <= all - workers + 1) << trial;
    if (table.weight[0] == 0) continue;
    ++level;
    std::vector<double> load(workers);
    for (int32_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        ASSERT_GE(table.weight[r], 1u);
        sum += table.weight[r];
      }
      ASSERT_LT(sum, 4294967296.0);
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        load[table.rank[r]] += tokens[e] * table.weight[r] / sum;
      }
    }
    ASSERT_LE(*std::max_element(load.begin(), load.end()), Sum(tokens) / workers * (1 + 1e-7)) << trial;
  }
  EXPECT_GT(level, 1000);
}

TEST(PlaceLevel, WithFewSlotsIsTheBestThereIs) {
  std::mt19937 random(2);
  int best = 0;
  int trials = 0;
  while (trials < 120) {
    const int32_t workers = 2 + random() % 2;
    std::vector<int32_t> slots(workers, 1 + random() % 2);
    if (random() % 2 == 1) slots[random() % workers] += 1;
    const int32_t all = std::accumulate(slots.begin(), slots.end(), 0);
    const int32_t experts = all - static_cast<int32_t>(random() % workers);
    const std::vector<double> tokens = RandomTokens(random, experts);
    const Packs packs = PlaceLevel(tokens, slots);
    CheckPacks(packs, experts, slots);
    if (HasFatalFailure()) FAIL() << "trial " << trials;
    const double least = LeastLevel(tokens, slots, {});
    ASSERT_GE(SolvedLevel(packs, tokens), least * (1 - 1e-6));
    best += SolvedLevel(packs, tokens) <= least * (1 + 1e-6);
    if (Sum(tokens) > 0) {
      ASSERT_GE(least, Sum(tokens) / workers / UpperBound(tokens, slots) * (1 - 1e-6)) << trials;
    }
    ++trials;
  }
  EXPECT_GE(best, trials - 2);
}

TEST(PlaceLevel, WithFewSlotsIsSoundAndNearTheBound) {
  std::mt19937 random(3);
  double ours = 0;
  double bound = 0;
  for (int trial = 0; trial < 400; ++trial) {
    const int32_t workers = 1 + random() % 8;
    const std::vector<int32_t> slots(workers, 1 + random() % 4);
    const int32_t experts = workers * (slots[0] - 1) + 1 + static_cast<int32_t>(random() % workers);
    const std::vector<double> tokens = RandomTokens(random, experts);
    const Packs packs = PlaceLevel(tokens, slots);
    CheckPacks(packs, experts, slots);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
    if (Sum(tokens) == 0) continue;
    ours += Sum(tokens) / workers / SolvedLevel(packs, tokens);
    bound += UpperBound(tokens, slots);
  }
  EXPECT_GT(ours, .96 * bound);
}

TEST(PlaceLevel, UnequalWorkersAreUsedByWhatTheyAre) {
  std::mt19937 random(4);
  double ours = 0;
  double bests = 0;
  for (int trial = 0; trial < 200; ++trial) {
    const int32_t workers = 2 + random() % 2;
    std::vector<int32_t> slots(workers);
    std::vector<uint32_t> speed(workers);
    for (int32_t w = 0; w < workers; ++w) {
      slots[w] = static_cast<int32_t>(random() % 4);
      speed[w] = 1 + random() % 3;
    }
    const int32_t all = std::accumulate(slots.begin(), slots.end(), 0);
    if (all == 0 || all > 7) continue;
    const int32_t experts = 1 + static_cast<int32_t>(random() % std::min(all, 5));
    const std::vector<double> tokens = RandomTokens(random, experts);
    const Packs packs = PlaceLevel(tokens, slots, speed);
    CheckPacks(packs, experts, slots);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
    if (Sum(tokens) == 0) continue;
    const double least = LeastLevel(tokens, slots, speed);
    const double level = SolvedLevel(packs, tokens, speed);
    ASSERT_GE(level, least * (1 - 1e-6)) << trial;
    const double mean = Sum(tokens) / std::accumulate(speed.begin(), speed.end(), 0.0);
    ASSERT_LE(mean / least, UpperBound(tokens, slots, speed) + 1e-6) << trial;
    ours += mean / level;
    bests += mean / least;
  }
  EXPECT_GT(ours, .97 * bests);
}

TEST(PlaceLevel, OneExpertWithAllTheLoadOnManyWorkers) {
  // What is left of it is rounded once for each worker.
  std::mt19937 random(6);
  for (int trial = 0; trial < 20; ++trial) {
    const std::vector<int32_t> slots(10000, 2);
    std::vector<double> tokens(trial % 2 == 0 ? 1 : 64);
    tokens[0] = std::uniform_real_distribution<>(1, 1e9)(random);
    CheckPacks(PlaceLevel(tokens, slots), static_cast<int32_t>(tokens.size()), slots);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
  }
}

TEST(PlaceLevel, WithoutLoadExpertsTakeTurns) {
  const std::vector<int32_t> slots(8, 3);
  const std::vector<double> tokens(16);
  std::vector<int> count(16);
  for (const std::vector<int32_t>& pack : PlaceLevel(tokens, slots)) {
    for (const int32_t e : pack) ++count[e];
  }
  const auto [least, most] = std::minmax_element(count.begin(), count.end());
  EXPECT_GE(*least, 1);
  EXPECT_LE(*most, 2);
}

TEST(PlaceLevel, TheSameLoadGivesTheSamePacks) {
  std::mt19937 random(5);
  for (const auto& slots :
       std::vector<std::vector<int32_t>>{{9, 9, 9, 9}, {3, 3, 3, 3, 3, 3, 3, 3, 3, 3}, {2, 9, 16, 6}}) {
    const std::vector<double> tokens = RandomTokens(random, 28);
    EXPECT_EQ(PlaceLevel(tokens, slots), PlaceLevel(tokens, slots));
  }
}

}  // namespace
}  // namespace ballast
