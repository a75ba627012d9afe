#include "controller/rollout/plan_effect.h"

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(MakePlanEffect, SaysGainCostAndBound) {
  Plan plan;
  plan.current.resize(1);
  plan.gain = 0.25;
  plan.moves = 5;
  plan.transfer.node = {.moves = 3, .bytes = 300, .seconds = 1.5};
  plan.transfer.checkpoint = {.moves = 2, .bytes = 200, .seconds = 1e15};
  plan.transfer.seconds = 2.25;
  CostModel model;
  model.microseconds_per_token = 2;
  const v1::PlanEffect effect = MakePlanEffect(plan, {.before = 100, .after = 75, .bound = 70}, model);
  EXPECT_EQ(effect.gain_ratio(), 0.25);
  EXPECT_EQ(effect.gain_microseconds(), 50);
  EXPECT_EQ(effect.busiest_tokens_before(), 100);
  EXPECT_EQ(effect.busiest_tokens_after(), 75);
  EXPECT_EQ(effect.busiest_tokens_bound(), 70);
  EXPECT_EQ(effect.node().moves(), 3);
  EXPECT_EQ(effect.node().bytes(), 300);
  EXPECT_EQ(effect.node().time().seconds(), 1);
  EXPECT_EQ(effect.node().time().nanos(), 500'000'000);
  EXPECT_FALSE(effect.has_cross_node());
  EXPECT_EQ(effect.checkpoint().time().seconds(), 315'576'000'000) << "the most that a Duration holds";
  EXPECT_EQ(effect.checkpoint().time().nanos(), 0);
  EXPECT_EQ(effect.transfer_time().seconds(), 2);
}

TEST(MakePlanEffect, AFirstPlacementGainsAndMovesNothing) {
  const v1::PlanEffect effect = MakePlanEffect(Plan(), {.after = 75, .bound = 70}, CostModel());
  EXPECT_EQ(effect.gain_ratio(), 0);
  EXPECT_EQ(effect.gain_microseconds(), 0);
  EXPECT_EQ(effect.busiest_tokens_before(), 0);
  EXPECT_EQ(effect.busiest_tokens_after(), 75);
  EXPECT_FALSE(effect.has_transfer_time());
}

}  // namespace
}  // namespace ballast
