#include "worker/moe/step_shares.h"

#include <algorithm>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/placement/table_test_util.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

// Two ranks; expert 0 on both, expert 1 on rank 0, expert 2 on rank 1.
class StepSharesTest : public ::testing::Test {
 protected:
  StepSharesTest() : shares_{{1, 3}, {1, 3}} {
    for (int rank = 0; rank < 2; ++rank) {
      shares_[rank].Enter(2, rank);
      shares_[rank].SetTables({EqualTable({{0, 1}, {0}, {1}})});
    }
  }
  // What both ranks bring, told to both or each to itself alone.
  void Bring(std::vector<int32_t> rank0, std::vector<int32_t> rank1, bool told = true) {
    own_[0] = rank0;
    own_[1] = rank1;
    for (StepShares& shares : shares_) {
      if (!told) continue;
      shares.Take(0, rank0);
      shares.Take(1, rank1);
      shares.Counted(0);
    }
  }
  std::vector<int32_t> Quotas(int rank, ShareForm form) {
    std::vector<int32_t> quotas(shares_[rank].table(0).num_replicas());
    shares_[rank].Quotas(0, form, own_[rank], 0, quotas);
    return quotas;
  }
  void EndStep() {
    for (StepShares& shares : shares_) shares.EndStep();
  }
  StepShares shares_[2];
  std::vector<int32_t> own_[2];
};

TEST_F(StepSharesTest, Current_LevelsThisStep) {
  // Rank 1 has six tokens to itself, so the shared ones go to rank 0.
  Bring({4, 0, 0}, {2, 0, 6});
  EXPECT_THAT(Quotas(0, ShareForm::kCurrent), ElementsAre(4, 0, 0, 0));
  EXPECT_THAT(Quotas(1, ShareForm::kCurrent), ElementsAre(2, 0, 0, 6));
  EXPECT_THAT(Quotas(0, ShareForm::kFixed), ElementsAre(2, 2, 0, 0));
}

TEST_F(StepSharesTest, FasterRankGetsMore) {
  const uint32_t speeds[] = {1, 3};
  for (int rank = 0; rank < 2; ++rank) {
    shares_[rank].Enter(2, rank, speeds);
    shares_[rank].SetTables({EqualTable({{0, 1}, {0}, {1}})});
  }
  Bring({8, 0, 0}, {0, 0, 0});
  EXPECT_THAT(Quotas(0, ShareForm::kCurrent), ElementsAre(2, 6, 0, 0));
  // 8 pairs: two on the slower rank take as long as six on the faster one, four as long as twelve.
  const std::optional<ShareComparison> seen = shares_[0].Compare(0);
  ASSERT_TRUE(seen.has_value());
  EXPECT_DOUBLE_EQ(seen->fixed, 12);
  EXPECT_DOUBLE_EQ(seen->current, 6);
  EXPECT_EQ(seen->busiest, 0);
  EXPECT_DOUBLE_EQ(seen->busiest_speed, 1.0 / 3);
  EndStep();
  Bring({8, 0, 0}, {0, 0, 0}, /*told=*/false);
  EXPECT_THAT(Quotas(0, ShareForm::kPrevious), ElementsAre(2, 6, 0, 0));
}

TEST_F(StepSharesTest, Previous_IsFixedUntilAStepWasCounted) {
  Bring({4, 0, 0}, {2, 0, 6});
  EXPECT_FALSE(shares_[0].has_previous(0));
  EXPECT_THAT(Quotas(0, ShareForm::kPrevious), ElementsAre(2, 2, 0, 0));
  EndStep();
  EXPECT_TRUE(shares_[0].has_previous(0));
  Bring({8, 0, 0}, {0, 0, 0}, /*told=*/false);
  EXPECT_THAT(Quotas(0, ShareForm::kPrevious), ElementsAre(8, 0, 0, 0));
  // That step was not counted, so there is no step before again.
  EndStep();
  EXPECT_FALSE(shares_[0].has_previous(0));
  Bring({8, 0, 0}, {0, 0, 0}, /*told=*/false);
  EXPECT_THAT(Quotas(0, ShareForm::kPrevious), ElementsAre(4, 4, 0, 0));
}

TEST_F(StepSharesTest, Previous_ExpertThatWasNotNeededKeepsItsWeights) {
  Bring({0, 3, 0}, {0, 0, 6});
  EndStep();
  Bring({8, 0, 0}, {0, 0, 0}, /*told=*/false);
  EXPECT_THAT(Quotas(0, ShareForm::kPrevious), ElementsAre(4, 4, 0, 0));
}

TEST_F(StepSharesTest, Flip_KeepsCountsAndUsesTheNewTable) {
  Bring({4, 1, 0}, {2, 0, 6});
  EndStep();
  for (StepShares& shares : shares_) shares.SetTables({EqualTable({{0}, {0, 1}, {1}})});
  EXPECT_TRUE(shares_[0].has_previous(0));
  Bring({0, 8, 0}, {0, 0, 0}, /*told=*/false);
  // Expert 1's one token went to rank 0 or 1, loads being 6 and 6 without it: one place, all of it.
  const auto quotas = Quotas(0, ShareForm::kPrevious);
  EXPECT_EQ(quotas[1] + quotas[2], 8);
  // A new view knows nothing.
  for (int rank = 0; rank < 2; ++rank) shares_[rank].Enter(2, rank);
  EXPECT_FALSE(shares_[0].has_previous(0));
}

TEST_F(StepSharesTest, NothingShared_EveryFormIsFixed) {
  for (StepShares& shares : shares_) shares.SetTables({EqualTable({{0}, {1}, {1}})});
  EXPECT_FALSE(shares_[0].shared(0));
  Bring({4, 1, 2}, {0, 0, 0});
  for (const ShareForm form : {ShareForm::kFixed, ShareForm::kPrevious, ShareForm::kCurrent}) {
    EXPECT_THAT(Quotas(0, form), ElementsAre(4, 1, 2));
  }
  EXPECT_FALSE(shares_[0].Compare(0).has_value());
}

// A form that could not be solved would end the view, and the next one.
TEST(StepShares, ALayerThatCannotBeSolved_HasFixedSharesInEveryForm) {
  StepShares shares(2, 3, [](const DispatchTable& table, int num_ranks) {
    EXPECT_EQ(num_ranks, 2);
    return table.num_replicas() < 5;
  });
  shares.Enter(2, 0);
  shares.SetTables({EqualTable({{0, 1}, {0}, {1}}), EqualTable({{0, 1}, {0, 1}, {1}})});
  EXPECT_TRUE(shares.shared(0));
  EXPECT_FALSE(shares.shared(1));
  const std::vector<int32_t> counts = {8, 0, 2};
  for (int rank = 0; rank < 2; ++rank) shares.Take(rank, counts);
  shares.Counted(1);
  EXPECT_FALSE(shares.Compare(1).has_value());
  std::vector<int32_t> fixed(5), current(5);
  shares.Quotas(1, ShareForm::kFixed, counts, 0, fixed);
  shares.Quotas(1, ShareForm::kCurrent, counts, 0, current);
  EXPECT_EQ(current, fixed);
}

TEST_F(StepSharesTest, Compare_SaysWhatEachFormMakesOfTheBusiestRank) {
  EXPECT_FALSE(shares_[0].Compare(0).has_value());
  Bring({4, 0, 0}, {2, 0, 6});
  auto c = shares_[0].Compare(0);
  ASSERT_TRUE(c.has_value());
  EXPECT_EQ(c->fixed, 9);  // 6 and half of 6
  EXPECT_EQ(c->busiest, 1);
  EXPECT_FALSE(c->previous_known);
  EXPECT_EQ(c->previous, 9);
  EXPECT_EQ(c->current, 6);
  EndStep();
  // Now the other way round: what leveled the step before is wrong for this one.
  Bring({4, 6, 0}, {2, 0, 1});
  c = shares_[0].Compare(0);
  EXPECT_EQ(c->fixed, 9);
  EXPECT_EQ(c->busiest, 0);
  EXPECT_TRUE(c->previous_known);
  EXPECT_EQ(c->previous, 12);
  EXPECT_EQ(c->current, 7);
}

// Whatever the steps: every rank computes the same split, and together they meet the counts.
TEST(StepShares, RanksAgree) {
  std::mt19937 random(1);
  constexpr int kRanks = 4;
  constexpr int kExperts = 12;
  std::vector<std::unique_ptr<StepShares>> ranks;
  for (int r = 0; r < kRanks; ++r) {
    ranks.push_back(std::make_unique<StepShares>(2, kExperts));
    ranks.back()->Enter(kRanks, r);
  }
  int64_t busiest_current = 0;
  int64_t busiest_fixed = 0;
  for (int step = 0; step < 200; ++step) {
    if (step % 20 == 0) {
      std::vector<std::vector<int32_t>> replicas(kExperts);
      for (auto& of_expert : replicas) {
        for (int32_t r = 0; r < kRanks; ++r) {
          if (random() % 2 == 0) of_expert.push_back(r);
        }
        if (of_expert.empty()) of_expert.push_back(0);
      }
      for (auto& shares : ranks) shares->SetTables({EqualTable(replicas), EqualTable(replicas)});
    }
    const auto form = static_cast<ShareForm>(random() % kShareForms);
    for (int layer = 0; layer < 2; ++layer) {
      const DispatchTable& table = ranks[0]->table(layer);
      int32_t brought[kRanks][kExperts];
      for (auto& row : brought) {
        for (int32_t& count : row) count = random() % 9;
      }
      const bool told = form == ShareForm::kCurrent || random() % 4 != 0;
      std::vector<int64_t> load(kRanks);
      for (int r = 0; r < kRanks; ++r) {
        for (int from = 0; told && from < kRanks; ++from) ranks[r]->Take(from, brought[from]);
        if (told) ranks[r]->Counted(layer);
        ASSERT_EQ(ranks[r]->has_previous(layer), ranks[0]->has_previous(layer));
        std::vector<int32_t> quotas(table.num_replicas());
        ranks[r]->Quotas(layer, form, brought[r], r, quotas);
        for (int32_t e = 0; e < kExperts; ++e) {
          int32_t sum = 0;
          for (int32_t i = table.begin[e]; i < table.begin[e + 1]; ++i) {
            sum += quotas[i];
            load[table.rank[i]] += quotas[i];
          }
          ASSERT_EQ(sum, brought[r][e]);
        }
      }
      if (told) {
        const auto c = ranks[step % kRanks]->Compare(layer);
        if (c.has_value() && form == ShareForm::kCurrent) {
          ASSERT_EQ(*std::max_element(load.begin(), load.end()), c->current);
          ASSERT_LE(c->current, c->fixed + 1);
          busiest_current += c->current;
          busiest_fixed += c->fixed;
        }
      }
    }
    for (auto& shares : ranks) shares->EndStep();
  }
  EXPECT_LT(busiest_current, busiest_fixed);
}

}  // namespace
}  // namespace ballast
