#include "proto/placement/shares.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/placement/table_test_util.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

// Hall's condition: some set of ranks must take all tokens of the experts that live nowhere else.
int64_t LeastBusiest(const DispatchTable& table, std::span<const int64_t> loads, int ranks) {
  int64_t z = 0;
  for (uint32_t set = 1; set < (1u << ranks); ++set) {
    int64_t held = 0;
    for (int32_t e = 0; e < table.num_experts(); ++e) {
      bool inside = true;
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) inside &= (set >> table.rank[r]) & 1;
      if (inside) held += loads[e];
    }
    z = std::max(z, (held + std::popcount(set) - 1) / std::popcount(set));
  }
  return z;
}

void CheckFlow(const DispatchTable& table, std::span<const int64_t> loads, std::span<const int64_t> flow,
               std::span<const int64_t> rank_loads) {
  std::vector<int64_t> held(rank_loads.size());
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    int64_t sum = 0;
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      ASSERT_GE(flow[r], 0);
      sum += flow[r];
      held[table.rank[r]] += flow[r];
    }
    ASSERT_EQ(sum, loads[e]);
  }
  ASSERT_TRUE(std::equal(held.begin(), held.end(), rank_loads.begin()));
}

TEST(ShareSolver, LevelsAChain) {
  // Expert 0 on rank 0 alone, the others shared between neighbours.
  const DispatchTable table = EqualTable({{0}, {0, 1}, {1, 2}, {2}});
  ShareSolver solver(table, 3);
  const int64_t loads[] = {8, 6, 4, 0};
  std::vector<int64_t> flow(6);
  EXPECT_EQ(solver.Solve(loads, flow), 8);
  const int64_t even[] = {0, 9, 9, 0};
  EXPECT_EQ(solver.Solve(even, flow), 6);
  EXPECT_THAT(solver.rank_loads(), ElementsAre(6, 6, 6));
  EXPECT_THAT(flow, ElementsAre(0, 6, 3, 3, 6, 0));
}

TEST(ShareSolver, IsExact) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 20000; ++trial) {
    const int ranks = 1 + random() % 6;
    const int experts = 1 + random() % 9;
    const DispatchTable table = RandomEqualTable(random, experts, ranks, 3, /*holes=*/false);
    std::vector<int64_t> loads(experts);
    for (int64_t& load : loads) load = random() % 4 == 0 ? 0 : random() % (trial % 3 == 0 ? 5 : 100000);
    ShareSolver solver(table, ranks);
    std::vector<int64_t> flow(table.num_replicas());
    const int64_t z = solver.Solve(loads, flow);
    CheckFlow(table, loads, flow, solver.rank_loads());
    ASSERT_EQ(z, LeastBusiest(table, loads, ranks)) << trial;
    for (const int64_t load : solver.rank_loads()) ASSERT_LE(load, z);
    // A solver used before gives the same bits as a fresh one.
    std::vector<int64_t> again(flow.size());
    solver.Solve(loads, again);
    ASSERT_EQ(flow, again);
    // So does one that may stop where the busiest has more than that; where it has to, it says no more than there is.
    ASSERT_EQ(solver.Solve(loads, again, z), z);
    ASSERT_EQ(flow, again);
    ASSERT_EQ(solver.Solve(loads, again, z - 1), z) << trial;
    // For all ranks together, from the start or after some of the chains.
    ShareSolver together(table, ranks, {}, 1, /*most_searched=*/random() % 3 * 10);
    ASSERT_EQ(together.Solve(loads, again), z) << trial;
    CheckFlow(table, loads, again, together.rank_loads());
    for (const int64_t load : together.rank_loads()) ASSERT_LE(load, z);
  }
}

// Every rank that is as busy as the busiest passes tokens on only to ranks that are: nothing can be taken from all of
// them together.
void CheckLeast(const DispatchTable& table, std::span<const int64_t> flow, std::span<const int64_t> rank_loads,
                int64_t z) {
  std::vector<std::vector<int32_t>> experts_of(rank_loads.size());
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      if (flow[r] > 0) experts_of[table.rank[r]].push_back(e);
    }
  }
  // From one of them; more than z - 1 on average in what it reaches shows that z - 1 is too little.
  for (size_t start = 0; start < rank_loads.size(); ++start) {
    if (rank_loads[start] < z) continue;
    std::vector<bool> reached(rank_loads.size());
    std::vector<bool> seen(table.num_experts());
    std::vector<int32_t> order = {static_cast<int32_t>(start)};
    reached[start] = true;
    int64_t held = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      held += rank_loads[order[i]];
      for (const int32_t e : experts_of[order[i]]) {
        if (seen[e]) continue;
        seen[e] = true;
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          if (!reached[table.rank[r]]) order.push_back(table.rank[r]);
          reached[table.rank[r]] = true;
        }
      }
    }
    if (held > (z - 1) * std::ssize(order)) return;
  }
  ADD_FAILURE() << "no set of ranks shows that " << z << " is the least";
}

TEST(ShareSolver, IsExactOnThousandsOfRanks) {
  std::mt19937 random(7);
  constexpr int kRanks = 5000;
  for (const int experts : {3, 64, 1000, 6000}) {
    // Of some experts hundreds of replicas, of others one; chains through them are long.
    DispatchTable table;
    table.begin = {0};
    std::vector<int64_t> loads;
    for (int32_t e = 0; e < experts; ++e) {
      const int32_t count = e % 7 == 0 ? 1 + 3 * kRanks / experts : 1 + static_cast<int32_t>(random() % 3);
      std::set<int32_t> at;
      const auto from = static_cast<int32_t>(random() % kRanks);
      while (static_cast<int32_t>(at.size()) < std::min(count, kRanks)) {
        at.insert((from + static_cast<int32_t>(random() % (2 * count))) % kRanks);
      }
      table.rank.insert(table.rank.end(), at.begin(), at.end());
      table.begin.push_back(static_cast<int32_t>(table.rank.size()));
      loads.push_back(static_cast<int64_t>(at.size()) * static_cast<int64_t>(random() % 1000'000));
    }
    table.weight.assign(table.rank.size(), 1);
    ShareSolver solver(table, kRanks);
    std::vector<int64_t> flow(table.num_replicas());
    const int64_t z = solver.Solve(loads, flow);
    CheckFlow(table, loads, flow, solver.rank_loads());
    ASSERT_EQ(*std::max_element(solver.rank_loads().begin(), solver.rank_loads().end()), z);
    CheckLeast(table, flow, solver.rank_loads(), z);
  }
}

TEST(ShareSolver, FollowsSpeeds) {
  const DispatchTable table = EqualTable({{0, 1}, {0, 1}, {1}});
  const uint32_t speed[] = {1, 3};
  ShareSolver solver(table, 2, speed);
  const int64_t loads[] = {20, 10, 10};
  std::vector<int64_t> flow(5);
  EXPECT_EQ(solver.Solve(loads, flow), 10);
  EXPECT_THAT(solver.rank_loads(), ElementsAre(10, 30));
}

TEST(ShareSolver, SpeedsAreMetWithinRounding) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 5000; ++trial) {
    const int ranks = 1 + random() % 6;
    const int experts = 1 + random() % 9;
    const DispatchTable table = RandomEqualTable(random, experts, ranks, 3, /*holes=*/false);
    std::vector<int64_t> loads(experts);
    for (int64_t& load : loads) load = static_cast<int64_t>(random() % 1000) << 30;
    std::vector<uint32_t> speed(ranks);
    for (uint32_t& s : speed) s = 1 + random() % 8;
    ShareSolver solver(table, ranks, speed);
    std::vector<int64_t> flow(table.num_replicas());
    const int64_t z = solver.Solve(loads, flow);
    CheckFlow(table, loads, flow, solver.rank_loads());
    for (int d = 0; d < ranks; ++d) ASSERT_LE(solver.rank_loads()[d], z * speed[d]);
  }
}

TEST(FlowToWeights, AreProportionalAndAtLeastOne) {
  DispatchTable table = EqualTable({{0, 1}, {0}, {0, 1, 2}, {1, 2}});
  const int64_t flow[] = {0, 7, 5, 1, 1, 2, 0, 0};
  FlowToWeights(flow, table);
  EXPECT_THAT(table.weight, ElementsAre(1, 1048576, 1, 262144, 262144, 524288, 1, 1));
}

}  // namespace
}  // namespace ballast
