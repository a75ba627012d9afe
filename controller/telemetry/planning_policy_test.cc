#include "controller/telemetry/planning_policy.h"

#include <string>

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(DecidePlanning, Table) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  const PlanningLimits limits{.interval = absl::Seconds(10), .min_tokens = 100, .plan_below = 0.9, .hysteresis = 0.05};
  const PlanningFacts ripe{
      .group_complete = true, .last_planned = now - absl::Seconds(10), .window_tokens = 100, .balancedness = 0.7};
  const auto decide = [&](auto change) {
    PlanningFacts facts = ripe;
    change(facts);
    const PlanningDecision decision = DecidePlanning(facts, limits, now);
    EXPECT_FALSE(decision.reason.empty());
    return decision.plan;
  };
  EXPECT_TRUE(decide([](auto& f) {}));
  EXPECT_FALSE(decide([](auto& f) { f.paused = true; }));
  EXPECT_FALSE(decide([](auto& f) { f.rollout_active = true; }));
  EXPECT_FALSE(decide([](auto& f) { f.proposal_open = true; }));
  EXPECT_FALSE(decide([](auto& f) { f.planning = true; }));
  EXPECT_FALSE(decide([](auto& f) { f.group_complete = false; }));
  EXPECT_FALSE(decide([&](auto& f) { f.last_planned = now - absl::Seconds(9); }));
  EXPECT_FALSE(decide([&](auto& f) { f.hold_off_until = now + absl::Seconds(1); }));
  EXPECT_TRUE(decide([&](auto& f) { f.hold_off_until = now; }));
  EXPECT_FALSE(decide([](auto& f) { f.window_tokens = 99; }));
  EXPECT_FALSE(decide([](auto& f) { f.balancedness = 0.9; }));
  // Hysteresis: what the last rollout reached is no reason for the next.
  EXPECT_FALSE(decide([](auto& f) { f.settled_balancedness = 0.72; }));
  EXPECT_TRUE(decide([](auto& f) { f.settled_balancedness = 0.76; }));
  EXPECT_FALSE(decide([](auto& f) { f.balancedness = 0.92, f.settled_balancedness = 0.99; }));
}

}  // namespace
}  // namespace ballast
