#include "worker/moe/device_table.h"

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/placement/quotas.h"
#include "proto/placement/table_test_util.h"
#include "worker/moe/choice_reference.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

TEST(DeviceTableTest, GroupsAreARanksReplicasByExpert) {
  // Expert 0 on ranks 0 and 2, expert 1 nowhere, expert 2 on rank 2, expert 3 on ranks 2 and 1.
  const DispatchTable table = EqualTable({{0, 2}, {}, {2}, {2, 1}});
  constexpr int kRanks = 3, kExperts = 4;
  const DeviceTableLayout at = LayOutDeviceTable(kExperts, kRanks);
  std::vector<int32_t> words(at.words, -7);
  FillDeviceTable(table, kRanks, 2, words);
  const auto part = [&](int begin, int size) {
    return std::vector<int32_t>(words.begin() + begin, words.begin() + begin + size);
  };
  EXPECT_THAT(part(at.begin, 5), ElementsAre(0, 2, 2, 3, 5));
  EXPECT_THAT(part(at.rank, 5), ElementsAre(0, 2, 2, 2, 1));
  EXPECT_THAT(part(at.number, 5), ElementsAre(0, 8, 9, 10, 4));
  EXPECT_THAT(part(at.weight, 5), ElementsAre(1, 1, 1, 1, 1));
  EXPECT_THAT(part(at.group_of, 4), ElementsAre(0, -1, 1, 2));
}

TEST(DeviceTableTest, PartsDoNotOverlap) {
  const DeviceTableLayout table = LayOutDeviceTable(5, 3);
  EXPECT_EQ(table.number, 6);
  EXPECT_EQ(table.rank, 21);
  EXPECT_EQ(table.weight, 36);
  EXPECT_EQ(table.group_of, 51);
  EXPECT_EQ(table.words, 56);
  const DeviceNotesLayout notes = LayOutDeviceNotes(5, 3);
  EXPECT_EQ(notes.pairs, 5);
  EXPECT_EQ(notes.rows, 8);
  EXPECT_EQ(notes.flags, 11);
  EXPECT_EQ(notes.words, 14);
}

TEST(ChoiceReferenceTest, PairsRideAlongThenStayThenGoWhereQuotaIs) {
  // Expert 0 on rank 1 alone; expert 1 on ranks 0 and 1.
  const DispatchTable table = EqualTable({{1}, {0, 1}});
  const std::vector<int32_t> failed = {-1, -1, -1, 3};
  // Row 1 visits rank 1 for expert 0 and takes expert 1's only quota there; the others keep to rank 0.
  EXPECT_THAT(
      ReferenceChoice(table, 0, 0, {}, std::vector<int32_t>{1, 1, 0, 1}, 1, std::vector<int32_t>(4, -1), {1, 2, 1}),
      ElementsAre(1, 1, 0, 2));
  EXPECT_THAT(ReferenceChoice(table, 0, 0, {}, std::vector<int32_t>{1, 0, 0, 1, 1, 0, 1, 0}, 2, failed, {3, 2, 1}),
              ElementsAre(2, 0, 0, 1, 1, 0, -1, -1));
}

TEST(ChoiceReferenceTest, NearRanksThenHomesComeBeforeTheRest) {
  // One expert on four ranks. Own rank 0, near rank 1; rows 2 and 4 have their home on rank 3.
  const DispatchTable table = EqualTable({{0, 1, 2, 3}});
  const std::vector<uint32_t> homes = {0, 0, 8, 0, 8};
  EXPECT_THAT(
      ReferenceChoice(table, 0, 2, homes, std::vector<int32_t>(5, 0), 1, std::vector<int32_t>(5, -1), {1, 1, 2, 1}),
      ElementsAre(0, 1, 3, 2, 2));
}

// The pairs that go to the own rank, to another of its node, to a home of the row's task, to any other.
std::array<int, 4> ByNearness(const DispatchTable& table, std::span<const int32_t> chosen, int own, uint32_t near,
                              std::span<const uint32_t> homes) {
  std::array<int, 4> pairs = {};
  for (size_t row = 0; row < chosen.size(); ++row) {
    const uint32_t bit = 1u << table.rank[chosen[row]];
    ++pairs[bit == 1u << own ? 0 : (bit & near) != 0 ? 1 : (bit & homes[row]) != 0 ? 2 : 3];
  }
  return pairs;
}

TEST(ChoiceReferenceTest, IsNoWorseThanTheCpusRule) {
  // One expert a row, so that no pair rides along with another.
  std::mt19937 random(5);
  int at_home = 0, more = 0;
  for (int round = 0; round < 200; ++round) {
    const int ranks = 4 + static_cast<int>(random() % 5), experts = 6, rows = 60;
    const DispatchTable table = RandomEqualTable(random, experts, ranks, ranks, /*holes=*/false);
    const int own = static_cast<int>(random() % ranks);
    // The first half of the ranks is a node. In some rounds all rows are of one task.
    std::vector<int32_t> node_of_rank(ranks), ids(rows), group(rows), counts(experts, 0);
    for (int r = 0; r < ranks; ++r) node_of_rank[r] = r * 2 / ranks;
    const int groups = round % 2 == 0 ? 1 : 3;
    std::vector<uint8_t> is_home(static_cast<size_t>(groups) * ranks);
    for (uint8_t& home : is_home) home = random() % 3 == 0;
    std::vector<uint32_t> homes(rows, 0);
    uint32_t near = 0;
    for (int r = 0; r < ranks; ++r) near |= r != own && node_of_rank[r] == node_of_rank[own] ? 1u << r : 0;
    for (int row = 0; row < rows; ++row) {
      ids[row] = static_cast<int32_t>(random() % experts);
      group[row] = static_cast<int32_t>(random() % groups);
      ++counts[ids[row]];
      for (int r = 0; r < ranks; ++r) homes[row] |= is_home[group[row] * ranks + r] != 0 ? 1u << r : 0;
    }
    std::vector<int32_t> quotas(table.num_replicas()), chosen(rows);
    SolveQuotas(table, counts, round, quotas);
    const std::vector<int32_t> gpu =
        ReferenceChoice(table, own, near, homes, ids, 1, std::vector<int32_t>(rows, -1), quotas);
    AssignReplicas(
        table, {.rank = own, .node_of_rank = node_of_rank, .home_group = group, .is_home = is_home, .num_ranks = ranks},
        ids, 1, quotas, chosen);
    const auto ours = ByNearness(table, gpu, own, near, homes), cpus = ByNearness(table, chosen, own, near, homes);
    EXPECT_EQ(ours[0], cpus[0]) << "round " << round;
    if (groups == 1) {
      EXPECT_EQ(ours, cpus) << "round " << round;
    }
    at_home += ours[2];
    more += ours[2] - cpus[2];
  }
  EXPECT_GT(at_home, 100);
  // Rows that have a home there come before those that have none, which the CPU's takes in their order.
  EXPECT_GE(more, 0);
}

// Each expert on one rank or more, with random weights.
DispatchTable WeightedTable(int experts, int ranks, std::mt19937& random) {
  DispatchTable table = RandomEqualTable(random, experts, ranks, ranks, /*holes=*/false);
  for (uint32_t& weight : table.weight) weight = 1 + static_cast<uint32_t>(random() % 9);
  return table;
}

TEST(ChoiceReferenceTest, QuotasAreMetExactly) {
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 5), experts = 8, top_k = 3, rows = 40;
    const DispatchTable table = WeightedTable(experts, ranks, random);
    std::vector<int32_t> ids, counts(experts, 0);
    for (int row = 0; row < rows; ++row) {
      std::vector<int32_t> all(experts);
      for (int e = 0; e < experts; ++e) all[e] = e;
      std::shuffle(all.begin(), all.end(), random);
      for (int k = 0; k < top_k; ++k) ids.push_back(all[k]);
    }
    for (const int32_t e : ids) ++counts[e];
    std::vector<int32_t> quotas(table.num_replicas());
    SolveQuotas(table, counts, round, quotas);
    const std::vector<int32_t> chosen =
        ReferenceChoice(table, 0, 0, {}, ids, top_k, std::vector<int32_t>(rows, -1), quotas);
    std::vector<int32_t> met(quotas.size(), 0);
    for (size_t pair = 0; pair < ids.size(); ++pair) {
      ASSERT_GE(chosen[pair], table.begin[ids[pair]]);
      ASSERT_LT(chosen[pair], table.begin[ids[pair] + 1]);
      ++met[chosen[pair]];
    }
    EXPECT_EQ(met, quotas) << "round " << round;
  }
}

}  // namespace
}  // namespace ballast
