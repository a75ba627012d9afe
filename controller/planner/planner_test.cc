#include "controller/planner/planner.h"

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "controller/planner/copies.h"
#include "controller/planner/eplb.h"
#include "controller/planner/gate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

LoadMatrix RandomLoad(std::mt19937& random, int32_t layers, int32_t experts) {
  LoadMatrix load(layers, experts);
  std::lognormal_distribution<double> skew(5, 1.2);
  for (double& t : load.tokens) t = std::floor(skew(random));
  return load;
}

PlanRequest Request(std::mt19937& random) {
  PlanRequest request;
  request.scenarios = {{"prefill", 1, RandomLoad(random, 3, 16)}, {"decode", 1, RandomLoad(random, 3, 16)}};
  request.topology = UniformTopology(4, 2, 18);
  request.expert_bytes = 1000;
  return request;
}

TEST(MakePlan, FirstPlanMovesNothing) {
  std::mt19937 random(1);
  const PlanRequest request = Request(random);
  const auto plan = MakePlan(EplbPolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->policy, "eplb");
  EXPECT_TRUE(plan->waves.empty());
  EXPECT_EQ(plan->placement.replicas.size(), 72u);
  ASSERT_EQ(plan->predicted.size(), 2u);
  EXPECT_EQ(plan->predicted[1].scenario, "decode");
  EXPECT_TRUE(plan->current.empty());
}

TEST(MakePlan, TheSameLoadAgainMovesNothing) {
  std::mt19937 random(2);
  PlanRequest request = Request(random);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  const auto again = MakePlan(EplbPolicy(), request);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->waves.empty());
  EXPECT_EQ(again->moves, 0);
  EXPECT_EQ(again->placement.replicas, request.current->replicas);
  EXPECT_DOUBLE_EQ(again->gain, 0);
}

TEST(MakePlan, AnotherLoadGainsAndCosts) {
  std::mt19937 random(3);
  PlanRequest request = Request(random);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  request.scenarios = {{"load", 1, RandomLoad(random, 3, 16)}};
  const auto plan = MakePlan(EplbPolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->gain, 0.1);
  EXPECT_GT(plan->moves, 0);
  EXPECT_EQ(plan->bytes, plan->moves * 1000);
  EXPECT_GT(plan->transfer.seconds, 0);
  EXPECT_GT(plan->predicted[0].balancedness, plan->current[0].balancedness);
  // Deterministic.
  const auto twice = MakePlan(EplbPolicy(), request);
  EXPECT_EQ(twice->placement, plan->placement);
}

TEST(MakePlan, WorkersComeAndGo) {
  std::mt19937 random(4);
  PlanRequest request = Request(random);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  // w1 died, w9 joined.
  request.topology.workers[1].name = "w9";
  const auto plan = MakePlan(EplbPolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->placement.workers, ElementsAre("w0", "w9", "w2", "w3"));
  bool from_checkpoint = false;
  for (const Wave& wave : plan->waves) {
    for (const Move& move : wave.moves) from_checkpoint |= move.source < 0;
  }
  EXPECT_TRUE(from_checkpoint);
  EXPECT_TRUE(MakeGateInput(request, *plan).restores_experts);
  EXPECT_TRUE(Decide(MakeGateInput(request, *plan), {}).worth);
}

TEST(MakePlan, NamesWhatIsWrong) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const struct {
    std::function<void(PlanRequest&)> spoil;
    const char* message;
  } cases[] = {
      {[](PlanRequest& r) { r.scenarios.clear(); }, "scenarios: 0; at least 1"},
      {[](PlanRequest& r) { r.scenarios[1].name = "prefill"; }, "scenario 'prefill': named twice"},
      {[](PlanRequest& r) { r.scenarios[1].weight = 0; }, "weight 0 must be finite and above 0"},
      {[&](PlanRequest& r) { r.scenarios[1].load.layer(2)[3] = nan; },
       "scenario 'decode': layer 2 expert 3: nan tokens"},
      {[](PlanRequest& r) { r.scenarios[1].load.layer(0)[0] = -1; }, "-1 tokens; must be finite, at least 0"},
      {[](PlanRequest& r) { r.scenarios[1].load = LoadMatrix(3, 8); }, "scenario 'prefill' has 3 x 16"},
      {[](PlanRequest& r) { r.topology.workers.clear(); }, "0 workers"},
      {[](PlanRequest& r) { r.topology.workers[1].name = "w0"; }, "worker 'w0': named twice"},
      {[](PlanRequest& r) { r.topology.workers[1].node = -1; }, "node -1"},
      {[](PlanRequest& r) { r.topology.workers[1].speed = 2000; }, "speed 2000; must be 1 to 1024"},
      {[](PlanRequest& r) { r.topology.workers[1].capacity.staging_slots = 20; }, "20 staging slots of 20"},
      {[](PlanRequest& r) { r.topology.node_bytes_per_second = 0; }, "0 bytes a second"},
      {[](PlanRequest& r) { r.expert_bytes = -1; }, "expert_bytes: -1"},
      {[](PlanRequest& r) { r.slots_per_layer = -1; }, "slots_per_layer: -1"},
      {[](PlanRequest& r) { r.current = Placement{.num_layers = 3, .num_experts = 17}; }, "3 layers of 17 experts"},
  };
  for (const auto& c : cases) {
    std::mt19937 random(5);
    PlanRequest request = Request(random);
    c.spoil(request);
    EXPECT_THAT(MakePlan(EplbPolicy(), request).status().ToString(), HasSubstr(c.message));
  }
}

TEST(MakePlan, OddButValid) {
  const struct {
    int32_t layers, experts, workers;
    std::vector<double> tokens;
  } cases[] = {
      {1, 1, 1, {5}},
      {1, 1, 3, {0}},
      {2, 4, 1, {0, 0, 0, 0, 1, 0, 0, 0}},
      {1, 3, 3, {1e18, 0, 0}},
      {1, 2, 2, {1e-300, 1e18}},
  };
  for (const auto& c : cases) {
    PlanRequest request;
    request.scenarios = {{"load", 1, LoadMatrix(c.layers, c.experts)}};
    request.scenarios[0].load.tokens = c.tokens;
    request.topology = UniformTopology(c.workers, 1, c.layers * c.experts);
    const auto plan = MakePlan(EplbPolicy(), request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_GT(plan->predicted[0].balancedness, 0);
  }
}

TEST(WithSolvedShares, LevelsWhatThePlacementAllows) {
  Placement p;
  p.num_layers = 1;
  p.num_experts = 3;
  p.workers = {"gone", "w0", "w1"};
  p.replicas = {{{0, 0}, 0, 0, 9}, {{0, 0}, 1, 0}, {{0, 0}, 2, 0}, {{0, 1}, 1, 1}, {{0, 2}, 0, 1, 5}, {{0, 2}, 2, 1}};
  Scenario s{"load", 1, LoadMatrix(1, 3)};
  s.load.tokens = {60, 40, 20};
  const Placement solved = WithSolvedShares(p, UniformTopology(2, 1, 4), std::span(&s, 1));
  EXPECT_EQ(solved.replicas[0].weight, 9u);
  EXPECT_EQ(solved.replicas[4].weight, 5u);
  EXPECT_NEAR(solved.replicas[1].weight, 1048576 / 3, 1);
  EXPECT_NEAR(solved.replicas[2].weight, 1048576 * 2 / 3, 1);
}

TEST(Blend, WeighsScenariosNotTheirSizes) {
  Scenario a{"a", 1, LoadMatrix(2, 2)};
  a.load.tokens = {100, 300, 0, 0};
  Scenario b{"b", 2, LoadMatrix(2, 2)};
  b.load.tokens = {1, 0, 2, 2};
  const Scenario both[] = {a, b};
  EXPECT_THAT(Blend(both).tokens, ElementsAre(2.25, .75, 1, 1));
  EXPECT_EQ(Blend(std::span(&a, 1)), a.load);
}

TEST(UniformTopology, SpreadsWorkersOverNodes) {
  std::vector<int32_t> nodes;
  for (const TopologyWorker& w : UniformTopology(7, 3, 1).workers) nodes.push_back(w.node);
  EXPECT_THAT(nodes, ElementsAre(0, 0, 0, 1, 1, 2, 2));
}

TEST(CountCopies, ByHand) {
  // Experts 0, 1 on worker 0, 2 on 1, 3 on 2; workers 0 and 1 on node 0.
  DispatchTable table{{0, 1, 2, 3, 4}, {0, 0, 1, 2}, {1, 1, 1, 1}};
  Topology topology = UniformTopology(3, 1, 4);
  topology.workers[2].node = 1;
  // Two tokens at home on worker 0, one on worker 1, one on worker 2.
  const int32_t experts[] = {0, 1, 2, 3, 0, 1, 3, 9};
  const int64_t samples[] = {0, 3, 1, 2};
  const CopyCount count = CountCopies(table, topology, 2, experts, samples);
  EXPECT_EQ(count.tokens, 4);
  EXPECT_EQ(count.copies, 0 + 2 + 1 + 0);
  EXPECT_EQ(count.cross_node, 1);
  EXPECT_DOUBLE_EQ(count.per_token(), .75);
}

TEST(Gate, Table) {
  GateInput good;
  good.gain = .1;
  good.moves = 100;
  good.transfer_seconds = 2;
  good.waves = 4;
  good.tokens_per_worker_layer = 1000;
  const struct {
    std::function<void(GateInput&)> change;
    bool worth;
    const char* reason;
  } cases[] = {
      {[](GateInput&) {}, true, "gain 0.1000 saves 30.000 s in 600 s at a cost of 0.220 s for 100 moves"},
      {[](GateInput& i) { i.gain = .009; }, false, "below the threshold of 0.0100"},
      {[](GateInput& i) { i.gain = .009, i.bursty = true; }, true, "saves 2.700 s"},
      {[](GateInput& i) { i.gain = .0009, i.bursty = true; }, false, "below the threshold of 0.0010"},
      {[](GateInput& i) { i.gain = -.5; }, false, "below the threshold"},
      {[](GateInput& i) { i.tokens_per_worker_layer = 63; }, false, "at least 64 are needed"},
      {[](GateInput& i) { i.transfer_seconds = 1000; }, false, "below 2.0 times its cost of 100.020 s"},
      {[](GateInput& i) { i.waves = 10000; }, false, "below 2.0 times its cost"},
      {[](GateInput& i) { i = {.gain = -1, .restores_experts = true}; }, true, "without a live replica"},
  };
  for (const auto& c : cases) {
    GateInput input = good;
    c.change(input);
    const GateDecision decision = Decide(input, {});
    EXPECT_EQ(decision.worth, c.worth) << decision.reason;
    EXPECT_THAT(decision.reason, HasSubstr(c.reason));
  }
}

// A move saves twice what it costs by the gate's rule: the slowdown while an expert comes over the slowest link.
TEST(LimitsOf, MovesPayForThemselves) {
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(2, 4)}};
  request.topology = UniformTopology(4, 2, 4);
  request.topology.node_bytes_per_second = 50e9;
  request.topology.cross_node_bytes_per_second = 10e9;
  request.gate = {.horizon_seconds = 600, .moe_share = 0.5, .move_slowdown = 0.1, .payback = 2};
  const double none = LimitsOf(request, 8).least_gain;
  request.expert_bytes = 1'000'000'000;
  EXPECT_DOUBLE_EQ(LimitsOf(request, 8).least_gain, 2 * 0.1 * 0.1 / 300);
  request.topology = UniformTopology(4, 1, 4);
  EXPECT_DOUBLE_EQ(LimitsOf(request, 8).least_gain, 2 * 0.02 * 0.1 / 300);
  // Where a move costs next to nothing, or nothing can pay, it has to gain at all.
  EXPECT_GT(none, 0);
  request.gate.horizon_seconds = 0;
  EXPECT_EQ(LimitsOf(request, 8).least_gain, none);
  EXPECT_EQ(LimitsOf(request, 8).max_moves, 8);
}

}  // namespace
}  // namespace ballast
