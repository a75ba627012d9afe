#include "controller/planner/drift.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "controller/planner/scenario_book.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using testing::HasSubstr;

constexpr int32_t kLayers = 3;
constexpr int32_t kExperts = 64;
constexpr int32_t kWorkers = 8;

// Parts of a layer's tokens, summing to 1 a layer; skewed, another order in each layer.
LoadMatrix Skewed(uint64_t seed, double exponent = 0.8) {
  std::mt19937_64 random(seed);
  LoadMatrix load(kLayers, kExperts);
  for (int32_t l = 0; l < kLayers; ++l) {
    const auto layer = load.layer(l);
    double sum = 0;
    for (int32_t e = 0; e < kExperts; ++e) sum += layer[e] = std::pow(e + 1, -exponent);
    for (int32_t e = kExperts - 1; e > 0; --e) std::swap(layer[e], layer[random() % static_cast<uint64_t>(e + 1)]);
    for (double& t : layer) t /= sum;
  }
  return load;
}

// Poisson counts of `tokens` a layer, each count `dispersion` times as noisy as independent tokens are.
LoadMatrix Draw(const LoadMatrix& parts, double tokens, double dispersion, std::mt19937_64& random) {
  LoadMatrix counts = parts;
  for (double& t : counts.tokens) {
    t = dispersion * static_cast<double>(std::poisson_distribution<int64_t>(t * tokens / dispersion)(random));
  }
  return counts;
}

Topology Machines() { return UniformTopology(kWorkers, 2, kLayers * (kExperts / kWorkers + 1)); }

Placement PlanFor(std::vector<Scenario> scenarios, const Topology& topology) {
  PlanRequest request;
  request.scenarios = std::move(scenarios);
  request.topology = topology;
  auto plan = MakePlan(CostAwarePolicy(20'000), request);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan->placement;
}

TEST(DetectDrift, StationaryLoadNeverLooksLikeDrift) {
  const Topology topology = Machines();
  for (const ShareMode shares : {ShareMode::kFixed, ShareMode::kPerStep}) {
    for (const double tokens : {2e3, 2e4, 2e5, 2e6}) {
      for (const double dispersion : {1.0, 8.0}) {
        for (uint64_t seed = 1; seed <= 5; ++seed) {
          std::mt19937_64 random(seed);
          const LoadMatrix parts = Skewed(seed);
          // Planned on a window that is as noisy as those that follow.
          const std::vector<Scenario> first = {{"load", 1, Draw(parts, tokens, dispersion, random)}};
          const Placement placement = PlanFor(first, topology);
          const auto settled = Settle(placement, topology, first, shares);
          const DriftLimits limits{.shares = shares, .dispersion = dispersion};
          for (int window = 0; window < 25; ++window) {
            const std::vector<Scenario> now = {{"load", 1, Draw(parts, tokens, dispersion, random)}};
            const DriftReport report = DetectDrift(placement, topology, now, settled, limits);
            EXPECT_FALSE(report.drifted) << tokens << " tokens, seed " << seed << ": " << report.reason;
          }
        }
      }
    }
  }
}

TEST(DetectDrift, SeesAnotherLoad) {
  const Topology topology = Machines();
  std::mt19937_64 random(1);
  const std::vector<Scenario> first = {{"load", 1, Draw(Skewed(1), 2e5, 1, random)}};
  const Placement placement = PlanFor(first, topology);
  const auto settled = Settle(placement, topology, first, ShareMode::kFixed);
  const std::vector<Scenario> other = {{"load", 1, Draw(Skewed(2), 2e5, 1, random)}};
  const DriftReport report = DetectDrift(placement, topology, other, settled, {});
  EXPECT_TRUE(report.drifted);
  EXPECT_EQ(report.worst, 0);
  EXPECT_GT(report.gain, 0.2);
  EXPECT_THAT(report.reason, HasSubstr("load: the busiest workers have"));
  // The same skew in a window of few tokens may be chance.
  const std::vector<Scenario> few = {{"load", 1, Draw(Skewed(2), 200, 1, random)}};
  EXPECT_LT(DetectDrift(placement, topology, few, settled, {}).gain, report.gain);
  // Nothing was counted.
  const std::vector<Scenario> none = {{"load", 1, LoadMatrix(kLayers, kExperts)}};
  EXPECT_FALSE(DetectDrift(placement, topology, none, settled, {}).drifted);
}

TEST(DetectDrift, WhatCannotBeAvoidedIsNoReason) {
  // One expert has everything: with one replica of it, and every slot taken, there is nothing to gain...
  Topology topology = UniformTopology(2, 1, 1);
  Placement placement;
  placement.num_layers = 1;
  placement.num_experts = 2;
  placement.workers = {"w0", "w1"};
  placement.replicas = {{{0, 0}, 0, 0, 1}, {{0, 1}, 1, 0, 1}};
  std::vector<Scenario> scenarios = {{"load", 1, LoadMatrix(1, 2)}};
  scenarios[0].load.tokens = {1e6, 0};
  DriftReport report = DetectDrift(placement, topology, scenarios, {}, {});
  EXPECT_DOUBLE_EQ(report.scenarios[0].excess, 1);
  EXPECT_DOUBLE_EQ(report.scenarios[0].unavoidable, 1);
  EXPECT_FALSE(report.drifted);
  // ... nor where the plan in force was predicted to leave as much.
  topology = UniformTopology(2, 1, 2);
  placement.replicas = {{{0, 0}, 0, 0, 1}, {{0, 1}, 1, 0, 1}, {{0, 1}, 0, 1, 1}};
  report = DetectDrift(placement, topology, scenarios, {}, {});
  EXPECT_TRUE(report.drifted);
  const SettledScenario settled[] = {{"load", 1}};
  EXPECT_FALSE(DetectDrift(placement, topology, scenarios, settled, {}).drifted);
  // An expert that has lost its workers is.
  topology.workers.pop_back();
  scenarios[0].load.tokens = {10, 10};
  placement.replicas = {{{0, 0}, 0, 0, 1}, {{0, 1}, 1, 0, 1}};
  EXPECT_EQ(DetectDrift(placement, topology, scenarios, settled, {}).gain, 1);
}

TEST(MeanGain, OfAllScenarios) {
  const SettledScenario before[] = {{"a", 1}, {"b", 0}};
  const SettledScenario after[] = {{"a", 0.25}, {"b", 0.25}};
  EXPECT_DOUBLE_EQ(MeanGain(before, after), 1 - 2.5 / 3);
  EXPECT_DOUBLE_EQ(MeanGain(before, before), 0);
}

TEST(Dispersion, TellsIndependentTokensFromBursts) {
  const LoadMatrix parts = Skewed(3);
  std::mt19937_64 random(1);
  for (const double dispersion : {1.0, 10.0}) {
    std::vector<LoadMatrix> samples;
    for (int i = 0; i < 30; ++i) samples.push_back(Draw(parts, 1e5 * (1 + i % 3), dispersion, random));
    EXPECT_NEAR(Dispersion(samples) / dispersion, 1, 0.1);
  }
  EXPECT_EQ(Dispersion({}), 1);
  const LoadMatrix one[] = {Draw(parts, 1e5, 1, random), LoadMatrix(kLayers, kExperts)};
  EXPECT_EQ(Dispersion(one), 1);
}

TEST(DecideReplan, Table) {
  const DriftReport drifted{.gain = 0.1, .worst = 0, .drifted = true, .reason = "drift"};
  const ReplanLimits limits{.hold_off_seconds = 60};
  const double never = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(DecideReplan(drifted, {.seconds_since_plan = never}, limits).plan);
  EXPECT_TRUE(DecideReplan(drifted, {.seconds_since_plan = 60}, limits).plan);
  EXPECT_FALSE(DecideReplan(drifted, {.seconds_since_plan = 59}, limits).plan);
  EXPECT_FALSE(DecideReplan({}, {.seconds_since_plan = never}, limits).plan);
  EXPECT_FALSE(DecideReplan(drifted, {.seconds_since_plan = 239, .fruitless = 2}, limits).plan);
  EXPECT_TRUE(DecideReplan(drifted, {.seconds_since_plan = 240, .fruitless = 2}, limits).plan);
  EXPECT_TRUE(DecideReplan(drifted, {.seconds_since_plan = 32 * 60, .fruitless = 1000}, limits).plan);
  EXPECT_FALSE(DecideReplan(drifted, {.seconds_since_plan = 0}, limits).reason.empty());
}

TEST(ScenarioBook, KeepsWhatDiffersAndForgetsTheRest) {
  ScenarioBook book({.memory_tokens = 1e5, .kept = 2, .distinct = 0.1});
  std::mt19937_64 random(1);
  const auto names = [&] {
    std::vector<std::string> out;
    for (const Scenario& s : book.Scenarios()) out.push_back(s.name);
    return out;
  };
  EXPECT_THAT(names(), testing::IsEmpty());
  for (int i = 0; i < 50; ++i) book.Add("decode", Draw(Skewed(1), 1e4, 1, random));
  EXPECT_THAT(names(), testing::ElementsAre("decode"));
  // Old tokens fade.
  double sum = 0;
  const std::vector<Scenario> now = book.Scenarios();
  for (const double t : now[0].load.layer(0)) sum += t;
  EXPECT_NEAR(sum, 1e5, 1);
  for (int i = 0; i < 50; ++i) book.Add("decode", Draw(Skewed(2), 1e4, 1, random));
  ASSERT_THAT(names(), testing::SizeIs(testing::Ge(2)));
  EXPECT_EQ(names()[0], "decode");
  EXPECT_LT(LoadDistance(book.Scenarios()[0].load, Draw(Skewed(2), 1e6, 1, random)), 0.05);
  for (int i = 0; i < 5; ++i) book.Add("prefill", Draw(Skewed(3), 1e4, 1, random));
  EXPECT_THAT(names(), testing::IsSupersetOf({"decode", "prefill"}));
  EXPECT_THAT(names(), testing::SizeIs(testing::Le(4)));
}

TEST(ScenarioBook, LoadsThatAreKeptAreAsBurstyAsTheirName) {
  ScenarioBook book({.memory_tokens = 5e5});
  std::mt19937_64 random(1);
  for (int step = 0; step < 200; ++step) {
    LoadMatrix parts = Skewed(step < 150 ? 1 : 2);
    std::gamma_distribution<double> factor(4, .25);
    for (double& p : parts.tokens) p *= factor(random);
    const LoadMatrix counts = Draw(parts, 2e4, 1, random);
    book.Add("decode", counts);
    book.AddStep("decode", counts);
    book.Add("prefill", Draw(Skewed(3), 2e4, 1, random));
  }
  const std::vector<Scenario> scenarios = book.Scenarios();
  bool kept = false;
  for (const Scenario& s : scenarios) {
    if (s.name.starts_with("prefill")) {
      EXPECT_TRUE(s.burstiness.empty());
      continue;
    }
    kept |= s.name != "decode";
    ASSERT_EQ(std::ssize(s.burstiness), kLayers);
    for (const double b : s.burstiness) EXPECT_NEAR(std::sqrt(b), .5, .15);
  }
  EXPECT_TRUE(kept);
  EXPECT_TRUE(Bursty(scenarios));
}

TEST(ScenarioBook, PhasesThatTakeTurnsShareOnePlacement) {
  const Topology topology = Machines();
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    std::mt19937_64 random(seed);
    const LoadMatrix phases[] = {Skewed(10 + seed), Skewed(20 + seed)};
    const char* const names[] = {"decode", "prefill"};
    ScenarioBook book({});
    Placement placement;
    std::vector<SettledScenario> settled;
    int plans = 0;
    for (int turn = 0; turn < 20; ++turn) {
      for (int window = 0; window < 5; ++window) {
        book.Add(names[turn % 2], Draw(phases[turn % 2], 1e5, 1, random));
        const std::vector<Scenario> scenarios = book.Scenarios();
        if (plans > 0 &&
            !DetectDrift(placement, topology, scenarios, settled, {.shares = ShareMode::kPerStep}).drifted) {
          continue;
        }
        placement = PlanFor(scenarios, topology);
        settled = Settle(placement, topology, scenarios, ShareMode::kPerStep);
        ++plans;
      }
    }
    // One for the first phase, one for both.
    EXPECT_LE(plans, 2) << "seed " << seed;
    for (const LoadMatrix& phase : phases) {
      const LoadScore score = ScoreLoad(placement, {"phase", 1, phase}, topology);
      EXPECT_GT(score.balancedness_solved, 0.97) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace ballast
