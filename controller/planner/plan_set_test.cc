#include "controller/planner/plan_set.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "controller/planner/eplb.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Two kinds of load, each in two scenarios that are nearly alike.
PlanRequest Request() {
  std::mt19937 random(1);
  std::lognormal_distribution<double> skew(5, 1.5);
  std::lognormal_distribution<double> noise(0, 0.05);
  PlanRequest request;
  LoadMatrix kinds[2] = {LoadMatrix(3, 16), LoadMatrix(3, 16)};
  for (LoadMatrix& kind : kinds) {
    for (double& t : kind.tokens) t = skew(random);
  }
  const char* const names[] = {"chat", "code", "chat2", "code2"};
  for (int s = 0; s < 4; ++s) {
    request.scenarios.push_back({names[s], 1, kinds[s % 2]});
    for (double& t : request.scenarios.back().load.tokens) t = std::ceil(100 * t * noise(random));
  }
  request.topology = UniformTopology(4, 1, 15);
  request.expert_bytes = 1'000'000;
  return request;
}

TEST(MakePlanSet, DividesScenariosOfDifferentKinds) {
  const PlanRequest request = Request();
  const EplbPolicy policy(1, Split::kEqual);
  const auto one = MakePlanSet(policy, request, {.most_plans = 1});
  const auto two = MakePlanSet(policy, request, {.most_plans = 4, .enough = 0.9});
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_EQ(one->members.size(), 1u);
  EXPECT_LT(one->worst, 0.9);
  ASSERT_EQ(two->members.size(), 2u);
  EXPECT_THAT(two->members[0].scenarios, ElementsAre(0, 2));
  EXPECT_THAT(two->members[1].scenarios, ElementsAre(1, 3));
  EXPECT_GT(two->worst, 0.9);
  EXPECT_EQ(two->switches[0][0], Switch{});
  EXPECT_GT(two->switches[0][1].moves, 0);
  EXPECT_EQ(two->switches[0][1].bytes, two->switches[0][1].moves * 1'000'000);
  EXPECT_EQ(two->split, Split::kEqual);
  ASSERT_EQ(two->single.size(), 4u);
  for (const PlanSetMember& member : two->members) {
    EXPECT_TRUE(Validate(member.plan.placement).ok());
    ASSERT_EQ(member.plan.predicted.size(), 2u);
    EXPECT_TRUE(member.plan.current.empty()) << "nothing is in force";
    EXPECT_EQ(member.plan.moves, 0);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(member.plan.predicted[i].scenario, request.scenarios[member.scenarios[i]].name);
      EXPECT_GE(BalancednessOf(member.plan.predicted[i], two->split), two->worst);
    }
  }
  double worst_single = 1;
  for (const LoadScore& score : two->single) worst_single = std::min(worst_single, BalancednessOf(score, two->split));
  EXPECT_EQ(worst_single, one->worst);
  EXPECT_EQ(MakePlanSet(policy, request, {.most_plans = 4, .enough = 0.9})->members[1].plan.placement,
            two->members[1].plan.placement);
}

TEST(MakePlanSet, CostsAreFromThePlacementInForce) {
  PlanRequest request = Request();
  const EplbPolicy policy(1, Split::kEqual);
  PlanRequest before = request;
  before.scenarios.resize(1);
  request.current = MakePlan(policy, before)->placement;
  const auto set = MakePlanSet(policy, request, {.most_plans = 2, .enough = 0.9});
  ASSERT_TRUE(set.ok()) << set.status();
  ASSERT_EQ(set->members.size(), 2u);
  const Plan& other = set->members[1].plan;
  EXPECT_GT(other.moves, 0);
  EXPECT_EQ(other.bytes, other.moves * request.expert_bytes);
  EXPECT_GT(other.gain, 0);
  EXPECT_LT(set->members[0].plan.moves, other.moves) << "it was for that load";
}

TEST(MakePlanSet, OneWhereOneIsEnough) {
  PlanRequest request = Request();
  EXPECT_EQ(MakePlanSet(EplbPolicy(), request, {.most_plans = 3, .enough = 0.1})->members.size(), 1u);
  request.scenarios.resize(1);
  EXPECT_EQ(MakePlanSet(EplbPolicy(), request, {.most_plans = 3, .enough = 1})->members.size(), 1u);
  EXPECT_THAT(MakePlanSet(EplbPolicy(), request, {.most_plans = 0}).status().message(), HasSubstr("most_plans: 0"));
  EXPECT_THAT(MakePlanSet(EplbPolicy(), request, {.most_plans = 1, .enough = 2}).status().message(),
              HasSubstr("enough: 2; must be 0 to 1"));
}

TEST(PickMember, TakesTheBestButStaysForLittle) {
  const PlanRequest request = Request();
  const auto set = MakePlanSet(EplbPolicy(1, Split::kEqual), request, {.most_plans = 2, .enough = 0.9});
  ASSERT_TRUE(set.ok()) << set.status();
  std::vector<Placement> members;
  for (const PlanSetMember& member : set->members) members.push_back(member.plan.placement);
  const std::vector<std::string> names = {"chatty", "coder"};
  PickInput input{members, names, set->switches, request.topology, Split::kEqual};
  const GateLimits gate;
  for (int32_t s = 0; s < 4; ++s) {
    const LoadMatrix& load = request.scenarios[s].load;
    input.in_force = -1;
    EXPECT_EQ(PickMember(input, load, gate)->member, s % 2);
    input.in_force = s % 2;
    const auto stays = PickMember(input, load, gate);
    EXPECT_EQ(stays->member, s % 2);
    EXPECT_THAT(stays->reason, HasSubstr(names[s % 2] + ", which is in force, has balancedness"));
    input.in_force = 1 - s % 2;
    const auto changes = PickMember(input, load, gate);
    EXPECT_EQ(changes->member, s % 2) << changes->reason;
    EXPECT_GT(changes->balancedness[s % 2], changes->balancedness[1 - s % 2]);
    // Not worth it when the load lasts a moment, or the gain is within the threshold.
    GateLimits strict;
    strict.horizon_seconds = 1e-6;
    EXPECT_EQ(PickMember(input, load, strict)->member, 1 - s % 2);
    strict = {};
    strict.min_gain = 0.9;
    EXPECT_EQ(PickMember(input, load, strict)->member, 1 - s % 2);
  }
  // A mixture goes back and forth over no threshold: whichever is in force stays.
  LoadMatrix half = request.scenarios[0].load;
  for (size_t i = 0; i < half.tokens.size(); ++i) half.tokens[i] += request.scenarios[1].load.tokens[i];
  GateLimits wide;
  wide.min_gain = 0.3;
  for (const int32_t in_force : {0, 1}) {
    input.in_force = in_force;
    EXPECT_EQ(PickMember(input, half, wide)->member, in_force);
  }
}

TEST(PickMember, NamesWhatIsWrong) {
  const PlanRequest request = Request();
  const PickInput none{{}, {}, {}, request.topology};
  EXPECT_THAT(PickMember(none, request.scenarios[0].load, {}).status().message(), HasSubstr("0 members"));
  const auto set = MakePlanSet(EplbPolicy(), request, {.most_plans = 1});
  const std::string name = "only";
  PickInput input{std::span(&set->members[0].plan.placement, 1), std::span(&name, 1), set->switches, request.topology};
  EXPECT_THAT(PickMember(input, LoadMatrix(3, 8), {}).status().message(),
              HasSubstr("members have 3 layers of 16 experts; the load has 3 of 8"));
  input.in_force = 1;
  EXPECT_THAT(PickMember(input, request.scenarios[0].load, {}).status().message(),
              HasSubstr("member in force: 1; must be -1 (none) to 0"));
}

}  // namespace
}  // namespace ballast
