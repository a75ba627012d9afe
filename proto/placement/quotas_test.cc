#include "proto/placement/quotas.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

DispatchTable Table(const std::vector<std::vector<std::pair<int32_t, uint32_t>>>& experts) {
  DispatchTable table;
  table.begin = {0};
  for (const auto& replicas : experts) {
    for (const auto& [rank, weight] : replicas) {
      table.rank.push_back(rank);
      table.weight.push_back(weight);
    }
    table.begin.push_back(static_cast<int32_t>(table.rank.size()));
  }
  return table;
}

// Random experts over `ranks`, each with 1 to 3 replicas, now and then none.
DispatchTable RandomTable(std::mt19937& random, int experts, int ranks, bool holes) {
  std::vector<std::vector<std::pair<int32_t, uint32_t>>> out(experts);
  std::vector<int32_t> order(ranks);
  std::iota(order.begin(), order.end(), 0);
  for (auto& replicas : out) {
    std::shuffle(order.begin(), order.end(), random);
    const int n = holes && random() % 8 == 0 ? 0 : 1 + static_cast<int>(random() % std::min(3, ranks));
    for (int i = 0; i < n; ++i) replicas.push_back({order[i], 1 + static_cast<uint32_t>(random() % 1000)});
    std::sort(replicas.begin(), replicas.end());
  }
  return Table(out);
}

std::vector<int32_t> Counts(const DispatchTable& table, std::span<const int32_t> experts) {
  std::vector<int32_t> counts(table.num_experts());
  for (const int32_t e : experts) {
    if (e >= 0) ++counts[e];
  }
  return counts;
}

TEST(MakeDispatchTable, LeavesOutWorkersThatAreNotInTheView) {
  Placement p;
  p.num_layers = 1;
  p.num_experts = 2;
  p.workers = {"a", "b", "c"};
  p.replicas = {{{0, 0}, 0, 0, 7}, {{0, 0}, 2, 0, 3}, {{0, 1}, 0, 1, 1}};
  const LayerReplicas layer = ByLayer(p)[0];
  const int32_t ranks[] = {-1, 0, 1};
  const DispatchTable table = MakeDispatchTable(layer, ranks);
  EXPECT_THAT(table.begin, ElementsAre(0, 1, 1));
  EXPECT_THAT(table.rank, ElementsAre(1));
  EXPECT_THAT(table.weight, ElementsAre(3));
}

TEST(SolveQuotas, SplitsByWeight) {
  const DispatchTable table = Table({{{0, 3}, {1, 1}}, {{1, 1}}, {}});
  std::vector<int32_t> quotas(3, -1);
  const int32_t counts[] = {8, 5, 4};
  SolveQuotas(table, counts, 0, quotas);
  EXPECT_THAT(quotas, ElementsAre(6, 2, 5));
}

TEST(SolveQuotas, MeetsSharesWithinOneTokenAndSumsExactly) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 20000; ++trial) {
    const DispatchTable table = RandomTable(random, 1 + random() % 6, 1 + random() % 5, true);
    std::vector<int32_t> counts(table.num_experts());
    for (int32_t& c : counts) c = static_cast<int32_t>(random() % (trial % 2 == 0 ? 4 : 1000));
    std::vector<int32_t> quotas(table.num_replicas());
    SolveQuotas(table, counts, random(), quotas);
    for (int32_t e = 0; e < table.num_experts(); ++e) {
      double sum = 0;
      int64_t given = 0;
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) sum += table.weight[r];
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        given += quotas[r];
        ASSERT_LT(std::abs(quotas[r] - counts[e] * table.weight[r] / sum), 1.0);
        ASSERT_GE(quotas[r], 0);
      }
      if (sum > 0) {
        ASSERT_EQ(given, counts[e]);
      }
    }
  }
}

TEST(SolveQuotas, HoldsAtTheLimitsOfItsTypes) {
  const DispatchTable table = Table({{{0, 2147483647u}, {1, 2147483647u}, {2, 1u}}});
  std::vector<int32_t> quotas(3);
  const int32_t counts[] = {std::numeric_limits<int32_t>::max()};
  for (uint32_t rotation = 0; rotation < 100; ++rotation) {
    SolveQuotas(table, counts, rotation, quotas);
    EXPECT_NEAR(quotas[0], counts[0] / 2, 1);
    EXPECT_EQ(int64_t{quotas[0]} + quotas[1] + quotas[2], counts[0]);
  }
}

TEST(SolveQuotas, ManySmallSourcesTogetherMeetTheShares) {
  const DispatchTable table = Table({{{0, 60}, {1, 30}, {2, 10}}, {{0, 1}, {1, 1}}});
  for (const int sources : {16, 32, 100}) {
    std::vector<int32_t> total(5);
    for (int s = 0; s < sources; ++s) {
      std::vector<int32_t> quotas(5);
      const int32_t counts[] = {1, 1};
      SolveQuotas(table, counts, s, quotas);
      for (int r = 0; r < 5; ++r) total[r] += quotas[r];
    }
    EXPECT_NEAR(total[0], .6 * sources, 2) << sources;
    EXPECT_NEAR(total[1], .3 * sources, 2) << sources;
    EXPECT_NEAR(total[2], .1 * sources, 2) << sources;
    EXPECT_NEAR(total[3], .5 * sources, 2) << sources;
  }
}

TEST(SolveQuotas, OneSourceDoesNotRoundAllExpertsTheSameWay) {
  std::vector<std::vector<std::pair<int32_t, uint32_t>>> experts(64, {{0, 1}, {1, 1}});
  const DispatchTable table = Table(experts);
  const std::vector<int32_t> counts(64, 1);
  for (uint32_t rotation = 0; rotation < 8; ++rotation) {
    std::vector<int32_t> quotas(128);
    SolveQuotas(table, counts, rotation, quotas);
    int low = 0;
    for (int e = 0; e < 64; ++e) low += quotas[2 * e];
    EXPECT_NEAR(low, 32, 4);
  }
}

// Remote copies of tokens: distinct ranks other than the source's, token by token.
int Copies(const DispatchTable& table, int32_t self, std::span<const int32_t> replica_of_pair, int top_k) {
  int copies = 0;
  for (size_t row = 0; row < replica_of_pair.size(); row += top_k) {
    std::set<int32_t> ranks;
    for (int i = 0; i < top_k; ++i) {
      const int32_t r = replica_of_pair[row + i];
      if (r >= 0 && table.rank[r] != self) ranks.insert(table.rank[r]);
    }
    copies += static_cast<int>(ranks.size());
  }
  return copies;
}

int FewestCopies(const DispatchTable& table, int32_t self, std::span<const int32_t> experts, int top_k, size_t pair,
                 std::vector<int32_t>& quotas, std::vector<int32_t>& chosen) {
  if (pair == experts.size()) return Copies(table, self, chosen, top_k);
  chosen[pair] = -1;
  const int32_t e = experts[pair];
  if (e < 0 || table.begin[e] == table.begin[e + 1]) {
    return FewestCopies(table, self, experts, top_k, pair + 1, quotas, chosen);
  }
  int best = std::numeric_limits<int>::max();
  for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
    if (quotas[r] == 0) continue;
    --quotas[r];
    chosen[pair] = r;
    best = std::min(best, FewestCopies(table, self, experts, top_k, pair + 1, quotas, chosen));
    ++quotas[r];
  }
  chosen[pair] = -1;
  return best;
}

// `tokens` rows of `top_k` distinct experts, with a few pairs missing.
std::vector<int32_t> RandomRoutes(std::mt19937& random, int experts, int tokens, int top_k) {
  std::vector<int32_t> routes;
  std::vector<int32_t> all(experts);
  std::iota(all.begin(), all.end(), 0);
  for (int t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    for (int i = 0; i < top_k; ++i) routes.push_back(random() % 16 == 0 ? -1 : all[i]);
  }
  return routes;
}

TEST(AssignReplicas, PrefersVisitedThenSelfThenNode) {
  // Expert 0 only on rank 1; expert 1 on ranks 0, 1; expert 2 on 0, 3; expert 3 on 2, 3.
  const DispatchTable table = Table({{{1, 1}}, {{0, 1}, {1, 1}}, {{0, 1}, {3, 1}}, {{2, 1}, {3, 1}}});
  const int32_t nodes[] = {0, 1, 1, 0};
  const int32_t experts[] = {0, 1, 2, 3};
  std::vector<int32_t> chosen(4);
  // Quotas leave a choice only through their totals: two for each expert, one pair each, so some stay unused.
  std::vector<int32_t> quotas(table.num_replicas(), 1);
  AssignReplicas(table, {0, nodes}, experts, 4, quotas, chosen);
  EXPECT_THAT(chosen, ElementsAre(0, 2, 3, 6));
  EXPECT_EQ(table.rank[chosen[1]], 1);  // visited for expert 0
  EXPECT_EQ(table.rank[chosen[2]], 0);  // itself
  EXPECT_EQ(table.rank[chosen[3]], 3);  // its node
}

TEST(AssignReplicas, PrefersHomesOfTheTaskAfterTheNode) {
  // Expert 0 on ranks 1 (the source's node) and 2 (a home of group 1); expert 1 on ranks 2 and 3.
  const DispatchTable table = Table({{{1, 1}, {2, 1}}, {{2, 1}, {3, 1}}});
  const int32_t nodes[] = {0, 0, 1, 1};
  const uint8_t is_home[] = {0, 0, 0, 1, 0, 0, 1, 0};  // group 0: rank 3; group 1: rank 2
  const auto choose = [&](std::vector<int32_t> experts, std::vector<int32_t> groups, std::vector<int32_t> quotas) {
    std::vector<int32_t> chosen(experts.size());
    AssignReplicas(table, {.rank = 0, .node_of_rank = nodes, .home_group = groups, .is_home = is_home, .num_ranks = 4},
                   experts, 1, quotas, chosen);
    return chosen;
  };
  // The node comes first; between far ranks the task's home does, whatever the quotas say beyond being met.
  EXPECT_THAT(choose({0}, {1}, {1, 5, 0, 0}), ElementsAre(0));
  EXPECT_THAT(choose({1}, {0}, {0, 0, 5, 1}), ElementsAre(3));
  EXPECT_THAT(choose({1}, {1}, {0, 0, 1, 5}), ElementsAre(2));
  EXPECT_THAT(choose({1}, {-1}, {0, 0, 1, 5}), ElementsAre(3));
  // Two tokens of two tasks, a place at each replica: each goes to its own home, in either order.
  EXPECT_THAT(choose({1, 1}, {0, 1}, {0, 0, 1, 1}), ElementsAre(3, 2));
  EXPECT_THAT(choose({1, 1}, {1, 0}, {0, 0, 1, 1}), ElementsAre(2, 3));
}

// Against every assignment that meets the quotas: they are met exactly with homes too, no more copies are made than
// without, on the whole, and far copies go to homes.
TEST(AssignReplicas, HomesKeepQuotasAndCopies) {
  std::mt19937 random(17);
  int64_t copies = 0, copies_without = 0, fewest = 0, at_home = 0, at_home_without = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const int ranks = 3 + random() % 2;
    const int experts = 3 + random() % 4;
    const DispatchTable table = RandomTable(random, experts, ranks, true);
    const int top_k = 1 + random() % 3;
    const int tokens = 1 + random() % 4;
    const auto routes = RandomRoutes(random, experts, tokens, top_k);
    std::vector<uint8_t> is_home(2 * ranks);
    for (uint8_t& h : is_home) h = random() % 2;
    std::vector<int32_t> groups(tokens);
    for (int32_t& g : groups) g = static_cast<int32_t>(random() % 3) - 1;
    std::vector<int32_t> quotas(table.num_replicas());
    SolveQuotas(table, Counts(table, routes), trial, quotas);
    const int32_t self = static_cast<int32_t>(random() % ranks);
    std::vector<int32_t> chosen(routes.size());
    // Nodes of their own, so that every other rank is far.
    std::vector<int32_t> nodes(ranks);
    std::iota(nodes.begin(), nodes.end(), 0);
    const auto home_pairs = [&] {
      int64_t n = 0;
      for (size_t i = 0; i < routes.size(); ++i) {
        const int32_t group = groups[i / top_k];
        n += chosen[i] >= 0 && group >= 0 && table.rank[chosen[i]] != self &&
             is_home[group * ranks + table.rank[chosen[i]]] != 0;
      }
      return n;
    };
    std::vector<int32_t> left = quotas;
    AssignReplicas(table, {self, nodes}, routes, top_k, left, chosen);
    copies_without += Copies(table, self, chosen, top_k);
    at_home_without += home_pairs();
    left = quotas;
    AssignReplicas(table, {self, nodes, groups, is_home, ranks}, routes, top_k, left, chosen);
    ASSERT_THAT(left, Each(0));
    for (size_t i = 0; i < routes.size(); ++i) {
      const bool none = routes[i] < 0 || table.begin[routes[i]] == table.begin[routes[i] + 1];
      ASSERT_EQ(chosen[i] < 0, none);
      if (none) continue;
      ASSERT_TRUE(table.begin[routes[i]] <= chosen[i] && chosen[i] < table.begin[routes[i] + 1]);
    }
    copies += Copies(table, self, chosen, top_k);
    at_home += home_pairs();
    std::vector<int32_t> scratch(routes.size());
    fewest += FewestCopies(table, self, routes, top_k, 0, quotas, scratch);
  }
  EXPECT_GE(copies, fewest);
  EXPECT_LE(copies, 1.03 * fewest);
  EXPECT_LE(copies, 1.005 * copies_without);
  EXPECT_GT(at_home, at_home_without);
}

TEST(AssignReplicas, ExpertWithoutLiveReplicaIsReported) {
  const DispatchTable table = Table({{}, {{0, 1}, {1, 1}}});
  const int32_t experts[] = {0, 1, -1, 1};
  std::vector<int32_t> quotas = {1, 1};
  std::vector<int32_t> chosen(4);
  AssignReplicas(table, {0, {}}, experts, 2, quotas, chosen);
  EXPECT_EQ(chosen[0], -1);
  EXPECT_EQ(chosen[2], -1);
  EXPECT_THAT(quotas, Each(0));
}

TEST(AssignReplicas, MeetsQuotasExactlyWithNearlyTheFewestCopies) {
  std::mt19937 random(11);
  int64_t copies = 0;
  int64_t fewest = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const int ranks = 2 + random() % 3;
    const int experts = 3 + random() % 4;
    const DispatchTable table = RandomTable(random, experts, ranks, true);
    const int top_k = 1 + random() % 3;
    const auto routes = RandomRoutes(random, experts, 1 + random() % 4, top_k);
    std::vector<int32_t> quotas(table.num_replicas());
    SolveQuotas(table, Counts(table, routes), trial, quotas);
    std::vector<int32_t> left = quotas;
    std::vector<int32_t> chosen(routes.size());
    const int32_t self = static_cast<int32_t>(random() % ranks);
    AssignReplicas(table, {self, {}}, routes, top_k, left, chosen);
    ASSERT_THAT(left, Each(0));
    for (size_t i = 0; i < routes.size(); ++i) {
      if (chosen[i] < 0) {
        ASSERT_TRUE(routes[i] < 0 || table.begin[routes[i]] == table.begin[routes[i] + 1]);
      } else {
        ASSERT_TRUE(table.begin[routes[i]] <= chosen[i] && chosen[i] < table.begin[routes[i] + 1]);
      }
    }
    copies += Copies(table, self, chosen, top_k);
    std::vector<int32_t> scratch(routes.size());
    fewest += FewestCopies(table, self, routes, top_k, 0, quotas, scratch);
  }
  EXPECT_GE(copies, fewest);
  EXPECT_LE(copies, 1.03 * fewest);
}

TEST(AssignReplicas, LargeStepsMeetQuotas) {
  std::mt19937 random(13);
  for (int trial = 0; trial < 20; ++trial) {
    const DispatchTable table = RandomTable(random, 256, 32, false);
    const auto routes = RandomRoutes(random, 256, 512, 8);
    std::vector<int32_t> quotas(table.num_replicas());
    SolveQuotas(table, Counts(table, routes), trial, quotas);
    std::vector<int32_t> chosen(routes.size());
    AssignReplicas(table, {trial, {}}, routes, 8, quotas, chosen);
    ASSERT_THAT(quotas, Each(0));
  }
}

}  // namespace
}  // namespace ballast
