#include "worker/moe/dispatch_plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "gtest/gtest.h"
#include "proto/placement/table_test_util.h"

namespace ballast {
namespace {

void Plan(const DispatchTable& table, const DispatchSource& source, int ranks, uint32_t rotation,
          std::span<const int32_t> experts, std::span<const float> weights, std::span<uint8_t> failed,
          DispatchPlan& plan) {
  plan.Count(table, experts, weights, failed);
  std::vector<int32_t> quotas(table.num_replicas());
  SolveQuotas(table, plan.counts(), rotation, quotas);
  plan.Assign(table, source, ranks, quotas);
}

TEST(DispatchPlan, PairsByExpert_NumberedAtEachRank) {
  DispatchPlan plan(/*num_experts=*/4, /*top_k=*/2, /*capacity=*/8);
  const int32_t experts[] = {3, 0, 1, 2, 2, 3};
  const float weights[] = {.7f, .3f, .6f, .4f, .9f, .1f};
  uint8_t failed[3] = {};
  Plan(EqualTable({{0}, {0}, {1}, {1}}), {.rank = 0}, 2, 0, experts, weights, failed, plan);
  ASSERT_EQ(plan.pairs().size(), 6u);
  EXPECT_EQ(plan.row(0)[0].expert, 0);
  EXPECT_EQ(plan.row(0)[0].weight, .3f);
  EXPECT_EQ(plan.row(0)[0].rank, 0);
  EXPECT_EQ(plan.row(0)[1].rank, 1);
  EXPECT_EQ(plan.row(2)[0].rank, 1);
  EXPECT_EQ(plan.row(2)[1].rank, 1);
  // Row 2 goes once to rank 1, as its third row, with its third and fourth pair there.
  EXPECT_EQ(plan.row(2)[0].token_at_rank, 2);
  EXPECT_EQ(plan.row(2)[1].token_at_rank, 2);
  EXPECT_EQ(plan.row(2)[0].pair_at_rank, 2);
  EXPECT_EQ(plan.row(2)[1].pair_at_rank, 3);
  EXPECT_EQ(plan.tokens_to()[0], 2);
  EXPECT_EQ(plan.tokens_to()[1], 3);
  EXPECT_EQ(plan.pairs_to()[1], 4);
  EXPECT_TRUE(plan.newly_failed().empty());
}

TEST(DispatchPlan, ExpertWithoutReplica_FailsItsRowsAndNoOthers) {
  DispatchPlan plan(3, 2, 8);
  const int32_t experts[] = {0, 1, 1, 2, 2, 0, 0, 1};
  const float weights[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  uint8_t failed[4] = {0, 0, 0, 1};
  Plan(EqualTable({{0}, {1}, {}}), {.rank = 0}, 2, 0, experts, weights, failed, plan);
  EXPECT_EQ(std::vector<uint8_t>(failed, failed + 4), (std::vector<uint8_t>{0, 1, 1, 1}));
  ASSERT_EQ(plan.newly_failed().size(), 2u);
  EXPECT_EQ(plan.newly_failed()[0].row, 1);
  EXPECT_EQ(plan.newly_failed()[0].expert, 2);
  EXPECT_EQ(plan.newly_failed()[1].row, 2);
  EXPECT_EQ(plan.tokens_to()[0], 1);
  EXPECT_EQ(plan.tokens_to()[1], 1);
  for (int row = 1; row < 4; ++row) {
    for (const PlannedPair& pair : plan.row(row)) EXPECT_EQ(pair.rank, -1);
  }
}

TEST(DispatchPlan, WeightsThatAreNotFinite_FailTheirRowsAndNoOthers) {
  DispatchPlan plan(2, 2, 8);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int32_t experts[] = {0, 1, 0, 1, 0, 1};
  const float weights[] = {1, nan, 1, 1, std::numeric_limits<float>::infinity(), 1};
  uint8_t failed[3] = {};
  Plan(EqualTable({{0}, {1}}), {.rank = 0}, 2, 0, experts, weights, failed, plan);
  EXPECT_EQ(std::vector<uint8_t>(failed, failed + 3), (std::vector<uint8_t>{1, 0, 1}));
  ASSERT_EQ(plan.newly_failed().size(), 2u);
  EXPECT_EQ(plan.newly_failed()[0].expert, 1);
  EXPECT_TRUE(plan.newly_failed()[0].not_finite);
  EXPECT_EQ(plan.newly_failed()[1].row, 2);
  EXPECT_EQ(plan.tokens_to()[0], 1);
  EXPECT_EQ(plan.tokens_to()[1], 1);
}

TEST(DispatchPlan, RandomPlans_EveryPairOnAReplicaAndNumbersDense) {
  std::mt19937 random(1);
  DispatchPlan plan(16, 4, 64);
  for (int round = 0; round < 200; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 4);
    std::vector<std::vector<int32_t>> replicas(16);
    for (auto& of_expert : replicas) {
      for (int32_t r = 0; r < ranks; ++r) {
        if (random() % 3 != 0) of_expert.push_back(r);
      }
    }
    const int rows = static_cast<int>(random() % 65);
    std::vector<int32_t> experts;
    std::vector<int32_t> all(16);
    for (int i = 0; i < 16; ++i) all[i] = i;
    for (int row = 0; row < rows; ++row) {
      std::shuffle(all.begin(), all.end(), random);
      experts.insert(experts.end(), all.begin(), all.begin() + 4);
    }
    const std::vector<float> weights(experts.size(), 0.25f);
    std::vector<uint8_t> failed(rows, 0);
    const int me = static_cast<int>(random() % ranks);
    Plan(EqualTable(replicas), {.rank = me}, ranks, random(), experts, weights, failed, plan);
    std::map<int, int> pairs_seen;
    std::map<int, std::set<int>> rows_seen;
    for (int row = 0; row < rows; ++row) {
      bool missing = false;
      for (int k = 0; k < 4; ++k) missing |= replicas[experts[row * 4 + k]].empty();
      ASSERT_EQ(failed[row] != 0, missing);
      if (missing) continue;
      int32_t last = -1;
      for (const PlannedPair& pair : plan.row(row)) {
        ASSERT_GT(pair.expert, last);
        last = pair.expert;
        ASSERT_TRUE(std::count(replicas[pair.expert].begin(), replicas[pair.expert].end(), pair.rank));
        ASSERT_EQ(pair.pair_at_rank, pairs_seen[pair.rank]++);
        rows_seen[pair.rank].insert(row);
        ASSERT_EQ(pair.token_at_rank, static_cast<int>(rows_seen[pair.rank].size()) - 1);
      }
    }
    for (int r = 0; r < ranks; ++r) {
      ASSERT_EQ(plan.pairs_to()[r], pairs_seen[r]);
      ASSERT_EQ(plan.tokens_to()[r], static_cast<int>(rows_seen[r].size()));
    }
  }
}

}  // namespace
}  // namespace ballast
