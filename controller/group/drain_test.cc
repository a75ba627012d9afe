#include "controller/group/drain.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(DrainStateOf, Table) {
  struct Case {
    std::string name;
    DrainFacts facts;
    v1::DrainState state;
  };
  const std::vector<Case> cases = {
      {"not to go", {.alive = true, .member = true, .holds = true}, v1::DRAIN_STATE_UNSPECIFIED},
      {"stops", {.alive = true, .leaving = true, .member = true, .holds = true}, v1::DRAIN_STATE_MOVING},
      {"drained by an operator",
       {.alive = true, .cordoned = true, .member = true, .holds = true},
       v1::DRAIN_STATE_MOVING},
      {"drained by an operator, dead", {.cordoned = true, .holds = true}, v1::DRAIN_STATE_MOVING},
      {"stopped and died", {.leaving = true, .member = true, .holds = true}, v1::DRAIN_STATE_UNSPECIFIED},
      {"no room",
       {.alive = true, .leaving = true, .member = true, .holds = true, .no_room = true},
       v1::DRAIN_STATE_STUCK},
      {"everything moved", {.alive = true, .leaving = true, .member = true}, v1::DRAIN_STATE_EMPTY},
      {"everything moved after all",
       {.alive = true, .leaving = true, .member = true, .no_room = true},
       v1::DRAIN_STATE_EMPTY},
      {"out of the view", {.alive = true, .leaving = true}, v1::DRAIN_STATE_OUT},
      {"never in the view, others hold its part", {.alive = true, .leaving = true, .holds = true}, v1::DRAIN_STATE_OUT},
      {"drained by an operator, empty", {.alive = true, .cordoned = true, .member = true}, v1::DRAIN_STATE_EMPTY},
      {"drained by an operator, empty, restarting", {.alive = true, .cordoned = true}, v1::DRAIN_STATE_EMPTY},
  };
  for (const Case& c : cases) EXPECT_EQ(DrainStateOf(c.facts), c.state) << c.name;
}

TEST(DecideDrain, Table) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  const DrainPlanFacts due{.moving = true, .others = 2, .view_works = true};
  const auto with = [&](auto change) {
    DrainPlanFacts facts = due;
    change(facts);
    return facts;
  };
  struct Case {
    std::string name;
    DrainPlanFacts facts;
    DrainStep step;
  };
  const std::vector<Case> cases = {
      {"due", due, DrainStep::kPlan},
      {"nobody goes", with([](auto& f) { f.moving = false; }), DrainStep::kNothing},
      {"a plan is being made", with([](auto& f) { f.planning = true; }), DrainStep::kNothing},
      {"a rollout is under way", with([](auto& f) { f.rollout_active = true; }), DrainStep::kNothing},
      {"the view is being installed", with([](auto& f) { f.view_works = false; }), DrainStep::kNothing},
      {"the last one", with([](auto& f) { f.others = 0; }), DrainStep::kGiveUp},
      {"the last one in a view that does not work", with([](auto& f) { f.others = 0, f.view_works = false; }),
       DrainStep::kGiveUp},
      {"tried just now", with([&](auto& f) { f.last_planned = now - absl::Milliseconds(900); }), DrainStep::kNothing},
      {"tried a while ago", with([&](auto& f) { f.last_planned = now - absl::Seconds(1); }), DrainStep::kPlan},
      {"failed three times, the last just now",
       with([&](auto& f) { f.failures = 3, f.last_planned = now - absl::Milliseconds(7900); }), DrainStep::kNothing},
      {"failed three times, the last a while ago",
       with([&](auto& f) { f.failures = 3, f.last_planned = now - absl::Seconds(8); }), DrainStep::kPlan},
      {"failed too often", with([&](auto& f) { f.failures = kMostDrainFailures, f.last_planned = now; }),
       DrainStep::kGiveUp},
      {"failed too often, another rollout is under way",
       with([&](auto& f) { f.failures = kMostDrainFailures, f.rollout_active = true; }), DrainStep::kNothing},
  };
  for (const Case& c : cases) EXPECT_EQ(DecideDrain(c.facts, absl::Seconds(1), now), c.step) << c.name;
}

}  // namespace
}  // namespace ballast
