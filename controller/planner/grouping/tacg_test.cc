#include "controller/planner/grouping/tacg.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "controller/planner/grouping/grouping_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Sizes(const Packs& packs) {
  std::vector<int32_t> sizes;
  for (const auto& pack : packs) sizes.push_back(static_cast<int32_t>(pack.size()));
  return sizes;
}

int32_t Distinct(const Packs& packs) {
  std::set<int32_t> seen;
  for (const auto& pack : packs) seen.insert(pack.begin(), pack.end());
  return static_cast<int32_t>(seen.size());
}

TEST(Statistics, ByHand) {
  const Routes routes{1, 4, 3, {{"a", 1, {{0, 1, 2, 0, 1, -1}}}}};
  const auto tasks = Statistics(LayerOf(routes, 0));
  EXPECT_THAT(tasks[0].use, ElementsAre(.4, .4, .2, 0));
  EXPECT_DOUBLE_EQ(tasks[0].together(0, 1), 1);
  EXPECT_DOUBLE_EQ(tasks[0].together(2, 0), .5);
  EXPECT_DOUBLE_EQ(tasks[0].together(0, 0), 0);
}

TEST(TaskPreference, ByHand) {
  // Two tasks, three experts: the first uses 0 and 1 together, the second 1 and 2.
  const Routes routes{1, 3, 2, {{"a", 1, {{0, 1}}}, {"b", 1, {{1, 2}}}}};
  const TacgOptions options{.alpha = .25, .temperature = 1, .epsilon = 0};
  const auto tasks = Statistics(LayerOf(routes, 0));
  // The differences of use are (.5, 0, -.5), of degree (1, 0, -1): both (sqrt 1.5, 0, -sqrt 1.5) over their deviation.
  const double s = 2 * std::sqrt(1.5);
  const double p = std::exp(s) / (std::exp(s) + std::exp(-s));
  const auto preference = TaskPreference(tasks, options);
  EXPECT_NEAR(preference[0][0], p, 1e-12);
  EXPECT_NEAR(preference[0][1], .5, 1e-12);
  EXPECT_NEAR(preference[0][2], 1 - p, 1e-12);
  EXPECT_NEAR(preference[1][2], p, 1e-12);
  // Pooled, 0 and 1 are together in half of the tokens, the most there is, so 1 after scaling.
  const Affinity affinity = TaskAffinity(tasks, options);
  EXPECT_NEAR(affinity(0, 1), .75 + .25 * (p * .5 + (1 - p) * .5), 1e-12);
  EXPECT_EQ(affinity(0, 2), 0);
}

TEST(TaskAffinity, PooledAtAlphaZeroAndWhereTasksAreAlike) {
  Routes routes = RandomRoutes({.experts = 12, .tasks = 3, .together = .5}, 1);
  const auto tasks = Statistics(LayerOf(routes, 0));
  const Affinity pooled = Pool(tasks), zero = TaskAffinity(tasks, {.alpha = 0});
  const double max = *std::max_element(pooled.values.begin(), pooled.values.end());
  for (size_t i = 0; i < pooled.values.size(); ++i) EXPECT_NEAR(zero.values[i], pooled.values[i] / max, 1e-12);
  for (TaskRoutes& task : routes.tasks) task.experts = routes.tasks[0].experts;
  for (const auto& row : TaskPreference(Statistics(LayerOf(routes, 0)), {})) {
    for (const double p : row) EXPECT_NEAR(p, 1. / 3, 1e-12);
  }
}

TEST(SpectralClusters, FindsBlocks) {
  // Four blocks of four in a shuffled order, noise between.
  std::mt19937 random(2);
  std::vector<int32_t> block(16);
  for (int32_t e = 0; e < 16; ++e) block[e] = e % 4;
  std::shuffle(block.begin(), block.end(), random);
  Affinity affinity(16);
  for (int32_t a = 0; a < 16; ++a) {
    for (int32_t b = 0; b < a; ++b) {
      affinity(a, b) = affinity(b, a) = (block[a] == block[b] ? 1 : 0) + static_cast<double>(random() % 100) / 500;
    }
  }
  const std::vector<int32_t> cluster = SpectralClusters(affinity, 4);
  for (int32_t a = 0; a < 16; ++a) {
    for (int32_t b = 0; b < 16; ++b) EXPECT_EQ(cluster[a] == cluster[b], block[a] == block[b]);
  }
  EXPECT_EQ(cluster, SpectralClusters(affinity, 4));
  // Without any affinity there is nothing to go by, but an answer.
  EXPECT_EQ(SpectralClusters(Affinity(6), 3).size(), 6);
}

TEST(RepairSizes, ExactWhateverTheClusters) {
  std::mt19937 random(3);
  for (int32_t round = 0; round < 50; ++round) {
    const int32_t workers = 1 + static_cast<int32_t>(random() % 6);
    std::vector<int32_t> sizes(workers);
    for (int32_t& size : sizes) size = static_cast<int32_t>(random() % 5);
    sizes[0] += 1;
    const int32_t experts = std::accumulate(sizes.begin(), sizes.end(), 0);
    Affinity affinity(experts);
    for (int32_t a = 0; a < experts; ++a) {
      for (int32_t b = 0; b < a; ++b) affinity(a, b) = affinity(b, a) = static_cast<double>(random() % 100);
    }
    std::vector<int32_t> cluster(experts);
    for (int32_t& c : cluster) c = static_cast<int32_t>(random() % workers);
    Packs packs = RepairSizes(affinity, cluster, sizes);
    EXPECT_EQ(Sizes(packs), sizes);
    EXPECT_EQ(Distinct(packs), experts);
    const double before = WithinAffinity(affinity, packs);
    SwapPacks(affinity, packs);
    EXPECT_EQ(Sizes(packs), sizes);
    EXPECT_EQ(Distinct(packs), experts);
    EXPECT_GE(WithinAffinity(affinity, packs), before);
  }
}

TEST(PlaceTacg, CommunitiesStayTogetherAndNearTheirTask) {
  const Routes routes = RandomRoutes(
      {.layers = 2, .experts = 16, .top_k = 3, .tasks = 2, .tokens = 3000, .community = 4, .together = .95}, 4);
  const std::vector<int32_t> sizes(4, 4);
  std::vector<Packs> layers;
  std::vector<DispatchTable> tables;
  for (int32_t l = 0; l < 2; ++l) {
    const auto tasks = Statistics(LayerOf(routes, l));
    layers.push_back(PlaceTacg(tasks, sizes, {}));
    EXPECT_EQ(Sizes(layers[l]), sizes);
    EXPECT_EQ(Distinct(layers[l]), 16);
    tables.push_back(ToTable(layers[l], 16));
    std::fill(tables[l].weight.begin(), tables[l].weight.end(), 1);
    // Workers 0 and 1 are the first task's.
    double own = 0;
    for (const int32_t w : {0, 1}) {
      for (const int32_t e : layers[l][w]) own += tasks[0].use[e];
    }
    EXPECT_GT(own, .6);
  }
  const Topology topology = UniformTopology(4, 1, 64);
  const auto scores = ScoreHops(tables, routes, topology);
  EXPECT_LT(scores[0].hops, .3 * 2 * RandomPlacementHops(sizes, 3));
  // Without replicas there is nothing to select: serving with the guard is the same.
  const auto guarded = ScoreGuarded(layers, routes, topology, {});
  for (size_t i = 0; i < scores.size(); ++i) {
    EXPECT_DOUBLE_EQ(scores[i].hops, guarded[i].hops);
    EXPECT_DOUBLE_EQ(scores[i].balance.maxvio_layer, guarded[i].balance.maxvio_layer);
  }
}

TEST(PlaceTacg, UnevenSizesAreKeptByWorker) {
  const Routes routes = RandomRoutes({.experts = 15, .tasks = 2, .together = .5}, 5);
  const std::vector<int32_t> sizes = {4, 3, 4, 4};
  EXPECT_EQ(Sizes(PlaceTacg(Statistics(LayerOf(routes, 0)), sizes, {.swaps = true})), sizes);
}

TEST(Gesr, ReplicatesTheMostGeneric) {
  const Routes routes = RandomRoutes({.experts = 64, .top_k = 6, .tasks = 4, .together = .5}, 6);
  const auto tasks = Statistics(LayerOf(routes, 0));
  const std::vector<int32_t> sizes(16, 4);
  const TacgOptions options;
  const Affinity affinity = TaskAffinity(tasks, options);
  const Packs homes = PlaceTacg(tasks, sizes, options);
  Packs packs = homes;
  ReplicateGeneric(tasks, affinity, {}, {}, packs);
  // 8 experts, 2 more copies each: 25 % of 64.
  std::vector<int32_t> copies(64);
  int32_t all = 0;
  for (const auto& pack : packs) {
    EXPECT_EQ(std::set<int32_t>(pack.begin(), pack.end()).size(), pack.size());
    for (const int32_t e : pack) ++copies[e], ++all;
  }
  EXPECT_EQ(all, 80);
  const std::vector<double> score = GenericScore(tasks, {});
  double least = 1e9, rest = 0;
  for (int32_t e = 0; e < 64; ++e) {
    EXPECT_TRUE(copies[e] == 1 || copies[e] == 3);
    if (copies[e] == 3) {
      least = std::min(least, score[e]);
    } else {
      rest = std::max(rest, score[e]);
    }
  }
  EXPECT_GE(least, rest);
  // With a slot each, no worker gets more.
  packs = homes;
  ReplicateGeneric(tasks, affinity, {}, std::vector<int32_t>(16, 1), packs);
  EXPECT_EQ(Sizes(packs), std::vector<int32_t>(16, 5));
}

TEST(Gesr, SpecificityCountsAgainst) {
  // Expert 0 is with 1 in both tasks, 2 with 3 in the one alone, twice as often.
  const Routes routes{1, 4, 2, {{"a", 1, {{0, 1, 2, 3, 2, 3}}}, {"b", 1, {{0, 1, 0, 1, 0, 1}}}}};
  const auto tasks = Statistics(LayerOf(routes, 0));
  const auto plain = GenericScore(tasks, {}), strict = GenericScore(tasks, {.consistency = 1, .specificity = 1});
  EXPECT_NEAR(plain[0], 2. / 3, 1e-12);
  EXPECT_NEAR(plain[2], 1. / 3, 1e-12);
  // cos 1 both times for expert 0, and a third apart; expert 2 has no profile in the second task.
  EXPECT_NEAR(strict[0] - plain[0], 1 - 1. / 3, 1e-12);
  EXPECT_NEAR(strict[2] - plain[2], .5 - 1. / 3, 1e-12);
}

TEST(ScoreGuarded, TheGuardTradesHopsForBalance) {
  // Every token chooses 0, which is on worker 0 alone, and 1, which is on both.
  Routes routes{1, 2, 2, {{"a", 1, {{}}}}};
  for (int32_t t = 0; t < 1000; ++t) routes.tasks[0].experts[0].insert(routes.tasks[0].experts[0].end(), {1, 0});
  const std::vector<Packs> layers = {{{0, 1}, {1}}};
  const Topology topology = UniformTopology(2, 1, 8);
  const auto loose = ScoreGuarded(layers, routes, topology, {.theta = 1e9});
  EXPECT_EQ(loose[0].hops, 0);
  EXPECT_EQ(loose[0].balance.maxvio_layer, 1);
  const auto tight = ScoreGuarded(layers, routes, topology, {.theta = .15});
  EXPECT_GT(tight[0].hops, .5);
  EXPECT_LT(tight[0].balance.maxvio_layer, .2);
}

}  // namespace
}  // namespace ballast
