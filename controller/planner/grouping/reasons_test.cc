#include "controller/planner/grouping/reasons.h"

#include <algorithm>

#include "controller/planner/packs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

DispatchTable Table(const Packs& packs) {
  DispatchTable table = ToTable(packs, 6);
  std::fill(table.weight.begin(), table.weight.end(), 1);
  return table;
}

// Expert 0 is chosen by half of a's tokens, with 1, and by all of b's, with 2 or 3.
Routes TwoTasks() {
  Routes routes{1, 6, 2, {}};
  routes.tasks.push_back({"a", 1, {{0, 1, 4, 5}}});
  routes.tasks.push_back({"b", 1, {{0, 2, 0, 2, 2, 0, 3, 0}}});
  return routes;
}

TEST(Reasons, AMoveToThePartners) {
  const std::vector<DispatchTable> before = {Table({{0, 1, 4}, {2, 3, 5}})}, after = {Table({{5, 1, 4}, {2, 3, 0}})};
  const auto reasons = ReasonsOf({0, 0}, before, after, TwoTasks(), 2);
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_EQ(reasons[0].worker, 1);
  EXPECT_TRUE(reasons[0].moved);
  // A quarter of the mix are a's tokens with it, a half b's.
  EXPECT_THAT(reasons[0].tasks, ElementsAre(Pair("b", DoubleEq(2 / 3.0)), Pair("a", DoubleEq(1 / 3.0))));
  EXPECT_THAT(reasons[0].partners, ElementsAre(Pair(2, DoubleEq(.5)), Pair(3, DoubleEq(1 / 6.0))));
  // b's tokens visit one worker instead of two, a quarter of all the other way round.
  EXPECT_DOUBLE_EQ(reasons[0].hops_saved, .5 - .25);
  const auto moves = ReasonsForMoves(before, after, TwoTasks(), 2, 20);
  ASSERT_EQ(moves.size(), 2u);
  EXPECT_EQ(moves[0].expert, (ExpertId{0, 0}));
  EXPECT_EQ(moves[1].expert, (ExpertId{0, 5}));
  EXPECT_EQ(ReasonsForMoves(before, after, TwoTasks(), 2, 1).size(), 1u);
  EXPECT_THAT(ReasonsForMoves({}, after, TwoTasks(), 2, 9), IsEmpty());
  EXPECT_THAT(ReasonsForMoves(after, after, TwoTasks(), 2, 9), IsEmpty());
}

TEST(Reasons, WhatStays) {
  // On both workers: each saves the other's partners a hop.
  const std::vector<DispatchTable> twice = {Table({{0, 1, 4}, {0, 2, 3, 5}})};
  const auto both = ReasonsOf({0, 0}, twice, twice, TwoTasks(), 2);
  ASSERT_EQ(both.size(), 2u);
  EXPECT_FALSE(both[0].moved);
  EXPECT_DOUBLE_EQ(both[0].hops_saved, .25);
  EXPECT_DOUBLE_EQ(both[1].hops_saved, .5);
  EXPECT_THAT(both[0].partners, ElementsAre(Pair(1, DoubleEq(1 / 3.0))));
  // Alone: against the other workers.
  const std::vector<DispatchTable> once = {Table({{1, 4}, {0, 2, 3, 5}})};
  const auto only = ReasonsOf({0, 0}, {}, once, TwoTasks(), 2);
  ASSERT_EQ(only.size(), 1u);
  EXPECT_FALSE(only[0].moved);
  EXPECT_DOUBLE_EQ(only[0].hops_saved, .25);
}

}  // namespace
}  // namespace ballast
