#include "worker/moe/device_table.h"

#include <algorithm>
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
  EXPECT_THAT(ReferenceChoice(table, 0, std::vector<int32_t>{1, 1, 0, 1}, 1, std::vector<int32_t>(4, -1), {1, 2, 1}),
              ElementsAre(1, 1, 0, 2));
  EXPECT_THAT(ReferenceChoice(table, 0, std::vector<int32_t>{1, 0, 0, 1, 1, 0, 1, 0}, 2, failed, {3, 2, 1}),
              ElementsAre(2, 0, 0, 1, 1, 0, -1, -1));
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
    const std::vector<int32_t> chosen = ReferenceChoice(table, 0, ids, top_k, std::vector<int32_t>(rows, -1), quotas);
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
