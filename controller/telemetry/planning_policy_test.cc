#include "controller/telemetry/planning_policy.h"

#include <string>

#include "gtest/gtest.h"

namespace ballast {
namespace {

using Kind = PlanningDecision::Kind;

TEST(DecidePlanning, Table) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  const PlanningLimits limits{
      .interval = absl::Seconds(10), .min_tokens = 100, .plan_below = 0.9, .heal_after = absl::Seconds(60)};
  const PlanningFacts ripe{.group_complete = true,
                           .view_works = true,
                           .last_planned = now - absl::Seconds(10),
                           .window_tokens = 100,
                           .drift = {.scenarios = {{.name = "decode", .excess = 0.5, .gain = 0.3}},
                                     .gain = 0.3,
                                     .worst = 0,
                                     .drifted = true,
                                     .reason = "decode drifted"}};
  const auto decide = [&](auto change) {
    PlanningFacts facts = ripe;
    change(facts);
    const PlanningDecision decision = DecidePlanning(facts, limits, now);
    EXPECT_FALSE(decision.reason.empty());
    return decision.kind;
  };
  EXPECT_EQ(decide([](auto& f) {}), Kind::kPlan);
  EXPECT_EQ(decide([](auto& f) { f.paused = true; }), Kind::kNothing);
  EXPECT_EQ(decide([](auto& f) { f.rollout_active = true; }), Kind::kNothing);
  EXPECT_EQ(decide([](auto& f) { f.proposal_open = true; }), Kind::kNothing);
  EXPECT_EQ(decide([](auto& f) { f.planning = true; }), Kind::kNothing);
  EXPECT_EQ(decide([](auto& f) { f.view_works = false; }), Kind::kNothing);
  EXPECT_EQ(decide([&](auto& f) { f.last_planned = now - absl::Seconds(9); }), Kind::kNothing);
  EXPECT_EQ(decide([&](auto& f) { f.hold_off_until = now + absl::Seconds(1); }), Kind::kNothing);
  EXPECT_EQ(decide([&](auto& f) { f.hold_off_until = now; }), Kind::kPlan);
  EXPECT_EQ(decide([](auto& f) { f.window_tokens = 99; }), Kind::kNothing);
  EXPECT_EQ(decide([](auto& f) { f.drift.scenarios[0].excess = 0.1; }), Kind::kNothing);
  // Another scenario is far from level, but with nothing to gain beyond chance and what the plan in force leaves.
  EXPECT_EQ(decide([](auto& f) { f.drift.drifted = false; }), Kind::kNothing);

  // Another mix of tasks calls for a plan of what is level.
  const auto mix = [&](double beyond, auto change) {
    return decide([&](PlanningFacts& f) {
      f.drift = {};
      f.mix = {.beyond = beyond, .drifted = true, .reason = "the mix drifted"};
      change(f);
    });
  };
  EXPECT_EQ(mix(.2, [](auto& f) {}), Kind::kPlan);
  EXPECT_EQ(mix(.2, [](auto& f) { f.mix.drifted = false; }), Kind::kNothing);
  EXPECT_EQ(mix(.2, [](auto& f) { f.window_tokens = 99; }), Kind::kNothing);
  EXPECT_EQ(mix(.2, [](auto& f) { f.fruitless = 1, f.fruitless_gain = .2; }), Kind::kNothing);
  EXPECT_EQ(mix(.5, [](auto& f) { f.fruitless = 1, f.fruitless_gain = .2; }), Kind::kPlan);

  // A budget cut the plan in force short, or it was worth it: the rest is planned at the next interval. Plans that were
  // not worth their moves: 2, 4 ... 32 intervals later, or once more is to gain than then.
  const auto fruitless = [&](int plans, absl::Duration ago, double gained) {
    return decide([&](PlanningFacts& f) {
      f.fruitless = plans;
      f.last_planned = now - ago;
      f.fruitless_gain = gained;
    });
  };
  const struct {
    int plans;
    int seconds;
    double gain;
    Kind want;
  } kFruitless[] = {
      {0, 10, 0.3, Kind::kPlan},     {1, 10, 0.3, Kind::kNothing},    {1, 19, 0.3, Kind::kNothing},
      {1, 20, 0.3, Kind::kPlan},     {2, 39, 0.3, Kind::kNothing},    {2, 40, 0.3, Kind::kPlan},
      {5, 319, 0.3, Kind::kNothing}, {5, 320, 0.3, Kind::kPlan},      {40, 319, 0.3, Kind::kNothing},
      {40, 320, 0.3, Kind::kPlan},   {40, 10, 0.295, Kind::kNothing}, {40, 10, 0.27, Kind::kPlan},
      {40, 9, 0.1, Kind::kNothing},
  };
  for (const auto& c : kFruitless) {
    EXPECT_EQ(fruitless(c.plans, absl::Seconds(c.seconds), c.gain), c.want)
        << c.plans << " plans, " << c.seconds << " s ago, for a gain of " << c.gain;
  }

  const auto gone = [&](absl::Duration ago, auto change) {
    return decide([&](PlanningFacts& f) {
      f.group_complete = false;
      f.incomplete_since = now - ago;
      change(f);
    });
  };
  EXPECT_EQ(gone(absl::Seconds(59), [](auto& f) {}), Kind::kNothing);
  EXPECT_EQ(gone(absl::Seconds(60), [](auto& f) {}), Kind::kHeal);
  EXPECT_EQ(gone(absl::Seconds(60), [](auto& f) { f.view_works = false; }), Kind::kNothing);
  EXPECT_EQ(gone(absl::Seconds(60), [](auto& f) { f.paused = true; }), Kind::kNothing);
  EXPECT_EQ(gone(absl::Seconds(60), [](auto& f) { f.rollout_active = true; }), Kind::kNothing);
  EXPECT_EQ(gone(absl::Seconds(600), [&](auto& f) { f.last_healed = now - absl::Seconds(59); }), Kind::kNothing);
  EXPECT_EQ(gone(absl::Seconds(600), [&](auto& f) { f.last_healed = now - absl::Seconds(60); }), Kind::kHeal);
  // Load has no say in it.
  EXPECT_EQ(gone(absl::Seconds(60), [&](auto& f) { f.hold_off_until = now + absl::Hours(1), f.window_tokens = 0; }),
            Kind::kHeal);
}

}  // namespace
}  // namespace ballast
