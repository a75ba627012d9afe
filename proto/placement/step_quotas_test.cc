#include "proto/placement/step_quotas.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <queue>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/placement/table_test_util.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> RandomCounts(std::mt19937& random, int sources, int experts, int below) {
  std::vector<int32_t> counts(sources * experts);
  for (int32_t& c : counts) c = random() % 3 == 0 ? 0 : static_cast<int32_t>(random() % below);
  return counts;
}

std::vector<int64_t> Totals(const DispatchTable& table, std::span<const int32_t> counts) {
  std::vector<int64_t> totals(table.num_experts());
  for (size_t i = 0; i < counts.size(); ++i) totals[i % totals.size()] += counts[i];
  return totals;
}

// Whether all tokens fit when rank r takes at most capacity[r]: augmenting paths, by the book.
bool Fits(const DispatchTable& table, std::span<const int64_t> totals, std::span<const int64_t> capacity) {
  const int experts = table.num_experts();
  const int ranks = static_cast<int>(capacity.size());
  const int nodes = experts + ranks + 2;
  const int source = nodes - 2;
  const int sink = nodes - 1;
  std::vector<std::vector<int64_t>> room(nodes, std::vector<int64_t>(nodes));
  int64_t wanted = 0;
  for (int e = 0; e < experts; ++e) {
    if (table.begin[e] == table.begin[e + 1]) continue;
    room[source][e] = totals[e];
    wanted += totals[e];
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) room[e][experts + table.rank[r]] = wanted + totals[e];
  }
  for (int d = 0; d < ranks; ++d) room[experts + d][sink] = capacity[d];
  int64_t flow = 0;
  while (true) {
    std::vector<int> from(nodes, -1);
    std::queue<int> reached({source});
    from[source] = source;
    while (!reached.empty() && from[sink] < 0) {
      const int at = reached.front();
      reached.pop();
      for (int to = 0; to < nodes; ++to) {
        if (from[to] >= 0 || room[at][to] == 0) continue;
        from[to] = at;
        reached.push(to);
      }
    }
    if (from[sink] < 0) return flow == wanted;
    int64_t amount = std::numeric_limits<int64_t>::max();
    for (int at = sink; at != source; at = from[at]) amount = std::min(amount, room[from[at]][at]);
    for (int at = sink; at != source; at = from[at]) {
      room[from[at]][at] -= amount;
      room[at][from[at]] += amount;
    }
    flow += amount;
  }
}

// The least z such that all tokens fit with z * speed / fastest tokens a rank.
int64_t LeastBound(const DispatchTable& table, std::span<const int64_t> totals, int ranks,
                   std::span<const uint32_t> speed) {
  const int64_t fastest = speed.empty() ? 1 : *std::max_element(speed.begin(), speed.end());
  const auto fits = [&](int64_t z) {
    std::vector<int64_t> capacity(ranks, z);
    for (int d = 0; d < ranks && !speed.empty(); ++d) capacity[d] = z * speed[d] / fastest;
    return Fits(table, totals, capacity);
  };
  int64_t low = 0;
  int64_t high = 1;
  while (!fits(high)) high *= 2;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (fits(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Everything that the header promises of a solution.
void CheckQuotas(const DispatchTable& table, const StepQuotaSolver& solver, std::span<const int32_t> counts,
                 int32_t sources, std::span<const int32_t> quotas) {
  const int experts = table.num_experts();
  const int replicas = table.num_replicas();
  const std::vector<int64_t> totals = Totals(table, counts);
  std::vector<int64_t> rank_loads(solver.rank_loads().size());
  for (int e = 0; e < experts; ++e) {
    int64_t of_expert = 0;
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      int64_t of_replica = 0;
      for (int s = 0; s < sources; ++s) {
        const int32_t quota = quotas[s * replicas + r];
        ASSERT_GE(quota, 0);
        of_replica += quota;
        // |quota - count * flow / total| <= 1, in integers.
        const int64_t count = counts[s * experts + e];
        ASSERT_LE(std::abs(quota * totals[e] - count * solver.flow()[r]), totals[e]) << "source " << s;
      }
      ASSERT_EQ(of_replica, solver.flow()[r]);
      rank_loads[table.rank[r]] += of_replica;
      of_expert += of_replica;
    }
    for (int s = 0; s < sources && table.begin[e] < table.begin[e + 1]; ++s) {
      int64_t of_source = 0;
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) of_source += quotas[s * replicas + r];
      ASSERT_EQ(of_source, counts[s * experts + e]);
    }
    if (table.begin[e] < table.begin[e + 1]) {
      ASSERT_EQ(of_expert, totals[e]);
    }
  }
  ASSERT_TRUE(std::equal(rank_loads.begin(), rank_loads.end(), solver.rank_loads().begin()));
}

TEST(StepQuotas, LevelsWhatOneSourceBrings) {
  // Expert 0 on rank 0, expert 1 on both, expert 2 on rank 1.
  const DispatchTable table = EqualTable({{0}, {0, 1}, {1}});
  StepQuotaSolver solver(table, 2);
  std::vector<int32_t> quotas(2 * 4, -1);
  const int32_t counts[] = {5, 6, 0,  //
                            1, 2, 2};
  EXPECT_EQ(SolveStepQuotas(solver, counts, 2, quotas), 8);
  EXPECT_THAT(solver.flow(), ElementsAre(6, 2, 6, 2));
  EXPECT_THAT(solver.rank_loads(), ElementsAre(8, 8));
  // Of six tokens to a quarter and two to a quarter: 1.5 and 0.5, of which one is rounded up, its own source's.
  EXPECT_THAT(quotas, ElementsAre(5, 2, 4, 0,  //
                                  1, 0, 2, 2));
}

TEST(StepQuotas, SourceKeepsItsTokenWhereThatIsAsGood) {
  const DispatchTable table = EqualTable({{0, 1}});
  StepQuotaSolver solver(table, 2);
  std::vector<int32_t> quotas(4);
  for (const bool swapped : {false, true}) {
    const DispatchTable other = EqualTable({swapped ? std::vector{1, 0} : std::vector{0, 1}});
    StepQuotaSolver of_other(other, 2);
    const int32_t counts[] = {1, 1};
    EXPECT_EQ(SolveStepQuotas(of_other, counts, 2, quotas), 1);
    EXPECT_EQ(quotas[swapped ? 1 : 0], 1);
    EXPECT_EQ(quotas[swapped ? 2 : 3], 1);
  }
}

TEST(StepQuotas, NoTokens) {
  const DispatchTable table = EqualTable({{0, 1}, {}, {1}});
  StepQuotaSolver solver(table, 2);
  std::vector<int32_t> quotas(2 * 3, -1);
  const std::vector<int32_t> counts(2 * 3);
  EXPECT_EQ(SolveStepQuotas(solver, counts, 2, quotas), 0);
  EXPECT_THAT(quotas, ElementsAre(0, 0, 0, 0, 0, 0));
}

TEST(StepQuotas, ExactAgainstMaxFlow_SumsExact_WithinOneToken) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 4000; ++trial) {
    const int ranks = 1 + random() % 7;
    const int experts = 1 + random() % 10;
    const DispatchTable table = RandomEqualTable(random, experts, ranks, 5, /*holes=*/true);
    const int sources = 1 + random() % ranks;
    const auto counts = RandomCounts(random, sources, experts, trial % 3 == 0 ? 4 : 1000);
    std::vector<uint32_t> speed;
    if (trial % 2 == 0) {
      for (int d = 0; d < ranks; ++d) speed.push_back(1 + random() % (trial % 4 == 0 ? 4 : 1024));
    }
    StepQuotaSolver solver(table, ranks, speed);
    std::vector<int32_t> quotas(sources * table.num_replicas());
    const int64_t bound = SolveStepQuotas(solver, counts, sources, quotas);
    ASSERT_EQ(bound, LeastBound(table, Totals(table, counts), ranks, speed)) << "trial " << trial;
    const int64_t fastest = speed.empty() ? 1 : *std::max_element(speed.begin(), speed.end());
    for (int d = 0; d < ranks; ++d) {
      ASSERT_LE(solver.rank_loads()[d] * fastest, bound * (speed.empty() ? 1 : speed[d]));
    }
    ASSERT_NO_FATAL_FAILURE(CheckQuotas(table, solver, counts, sources, quotas)) << "trial " << trial;
  }
}

TEST(StepQuotas, SameBitsFromAnySolverAndForOneSourceAlone) {
  std::mt19937 random(4);
  for (int trial = 0; trial < 20; ++trial) {
    const DispatchTable table = RandomEqualTable(random, 64, 8, 4, /*holes=*/true);
    StepQuotaSolver used(table, 8);
    for (int step = 0; step < 20; ++step) {
      const auto counts = RandomCounts(random, 8, 64, 1 << (1 + step % 14));
      std::vector<int32_t> quotas(8 * table.num_replicas());
      SolveStepQuotas(used, counts, 8, quotas);
      StepQuotaSolver fresh(table, 8);
      std::vector<int32_t> again(quotas.size());
      SolveStepQuotas(fresh, counts, 8, again);
      ASSERT_EQ(quotas, again);
      for (int s = 0; s < 8; ++s) {
        std::vector<int32_t> row(table.num_replicas());
        for (int32_t e = 0; e < 64; ++e) {
          for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) row[r] = -1;
        }
        used.SplitOne(counts, 8, s, row);
        ASSERT_TRUE(std::equal(row.begin(), row.end(), quotas.begin() + s * row.size()));
      }
    }
  }
}

TEST(StepQuotas, FullSize) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 20; ++trial) {
    const DispatchTable table = RandomEqualTable(random, 256, 32, 3, /*holes=*/true);
    const auto counts = RandomCounts(random, 32, 256, 1 << (1 + trial % 10));
    StepQuotaSolver solver(table, 32);
    std::vector<int32_t> quotas(32 * table.num_replicas());
    SolveStepQuotas(solver, counts, 32, quotas);
    ASSERT_NO_FATAL_FAILURE(CheckQuotas(table, solver, counts, 32, quotas));
  }
}

TEST(StepQuotas, HoldsAtTheLimitsOfItsTypes) {
  const DispatchTable table = EqualTable({{0, 1, 2}, {1}});
  StepQuotaSolver solver(table, 3);
  const int32_t most = std::numeric_limits<int32_t>::max();
  const std::vector<int32_t> counts = {most - 7, 0, 3, most, 4, 0};
  std::vector<int32_t> quotas(3 * 4);
  EXPECT_EQ(SolveStepQuotas(solver, counts, 3, quotas), most);
  ASSERT_NO_FATAL_FAILURE(CheckQuotas(table, solver, counts, 3, quotas));
}

}  // namespace
}  // namespace ballast
