#include <cmath>
#include <numeric>

#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "controller/sim/load_source.h"
#include "controller/sim/replay.h"
#include "controller/sim/step.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

LoadMatrix Row(std::vector<double> tokens) {
  LoadMatrix load(1, static_cast<int32_t>(tokens.size()));
  load.tokens = std::move(tokens);
  return load;
}

// Experts in order, as many on every worker.
Placement Contiguous(int32_t layers, int32_t experts, const Topology& topology) {
  Placement placement;
  placement.num_layers = layers;
  placement.num_experts = experts;
  const auto workers = static_cast<int32_t>(topology.workers.size());
  for (const TopologyWorker& w : topology.workers) placement.workers.push_back(w.name);
  std::vector<int32_t> used(workers);
  for (int32_t l = 0; l < layers; ++l) {
    for (int32_t e = 0; e < experts; ++e) {
      const int32_t w = e * workers / experts;
      placement.replicas.push_back({{l, e}, w, used[w]++, 1});
    }
  }
  return placement;
}

TEST(DaySource, PhasesTakeTurnsAndMixturesDrift) {
  auto made =
      DaySource::Make({{"prefill", 2, {Row({1, 0, 0}), Row({0, 10, 0})}}, {"decode", 3, {Row({0, 0, 7})}}}, 1000);
  ASSERT_TRUE(made.ok()) << made.status();
  const DaySource& day = *made;
  EXPECT_EQ(day.phase(0), "prefill");
  EXPECT_EQ(day.phase(1), "prefill");
  EXPECT_EQ(day.phase(2), "decode");
  EXPECT_EQ(day.phase(5), "prefill");
  LoadMatrix parts(1, 3);
  day.Parts(0, parts);
  EXPECT_THAT(parts.tokens, testing::ElementsAre(1, 0, 0));
  day.Parts(500, parts);
  EXPECT_THAT(parts.tokens, testing::ElementsAre(testing::DoubleNear(0, 1e-9), testing::DoubleNear(1, 1e-9), 0));
  day.Parts(250, parts);
  EXPECT_NEAR(parts.tokens[0], 0.5, 1e-9);
  day.Parts(2, parts);
  EXPECT_THAT(parts.tokens, testing::ElementsAre(0, 0, 1));
  day.Parts(1000, parts);
  EXPECT_THAT(parts.tokens, testing::ElementsAre(1, 0, 0));

  EXPECT_FALSE(DaySource::Make({}, 10).ok());
  EXPECT_FALSE(DaySource::Make({{"a", 0, {Row({1})}}}, 10).ok());
  EXPECT_FALSE(DaySource::Make({{"a", 1, {}}}, 10).ok());
  EXPECT_FALSE(DaySource::Make({{"a", 1, {Row({1}), Row({1, 2})}}}, 10).ok());
  EXPECT_FALSE(DaySource::Make({{"a", 1, {Row({1})}}}, 0).ok());
}

TEST(TraceSource, PlaysWindowsInTurn) {
  auto made = TraceSource::Make({{"prefill", 2, Row({1, 3})}, {"decode", 1, Row({5, 5})}});
  ASSERT_TRUE(made.ok()) << made.status();
  LoadMatrix parts(1, 2);
  made->Parts(4, parts);
  EXPECT_EQ(made->phase(4), "prefill");
  EXPECT_THAT(parts.tokens, testing::ElementsAre(0.25, 0.75));
  made->Parts(5, parts);
  EXPECT_EQ(made->phase(5), "decode");
  EXPECT_THAT(parts.tokens, testing::ElementsAre(0.5, 0.5));
  EXPECT_FALSE(TraceSource::Make({}).ok());
  EXPECT_FALSE(TraceSource::Make({{"a", 1, Row({1})}, {"b", 1, Row({1, 2})}}).ok());
}

TEST(ZipfSource, DriftsByTheStep) {
  const ZipfSource zipf({.layers = 2, .experts = 32, .swap_every = 10, .jump_every = 500});
  LoadMatrix a(2, 32);
  LoadMatrix b(2, 32);
  zipf.Parts(9, a);
  EXPECT_NEAR(std::accumulate(a.layer(1).begin(), a.layer(1).end(), 0.0), 1, 1e-12);
  zipf.Parts(0, b);
  EXPECT_EQ(a, b);
  zipf.Parts(200, b);
  EXPECT_NE(a, b);
  zipf.Parts(9, b);
  EXPECT_EQ(a, b);
}

TEST(SampleCounts, HasTheMeanAndTheNoiseThatItSays) {
  const LoadMatrix parts = Row({0.5, 0.25, 0.25, 0});
  for (const double burstiness : {0.0, 0.5}) {
    for (const int64_t steps : {1, 10}) {
      std::mt19937_64 random(1);
      LoadMatrix counts;
      double sum = 0;
      double squares = 0;
      constexpr int kDraws = 20'000;
      for (int i = 0; i < kDraws; ++i) {
        SampleCounts(parts, {.tokens_per_step = 100, .top_k = 2, .burstiness = burstiness}, steps, random, counts);
        EXPECT_EQ(counts.tokens[3], 0);
        sum += counts.tokens[0];
        squares += counts.tokens[0] * counts.tokens[0];
      }
      const double mean = sum / kDraws;
      const double want = 100.0 * static_cast<double>(steps);
      EXPECT_NEAR(mean / want, 1, 0.02);
      const double variance = want + want * want * burstiness * burstiness / static_cast<double>(steps);
      EXPECT_NEAR((squares / kDraws - mean * mean) / variance, 1, 0.06);
    }
  }
}

TEST(StepRunner, SplitsAsAsked) {
  const Topology topology = UniformTopology(2, 1, 2);
  Placement placement;
  placement.num_layers = 1;
  placement.num_experts = 2;
  placement.workers = {"w0", "w1"};
  placement.replicas = {{{0, 0}, 0, 0, 3}, {{0, 0}, 1, 0, 1}, {{0, 1}, 1, 1, 1}};
  const CostModel model{.microseconds_per_token = 1,
                        .microseconds_per_expert = 0,
                        .microseconds_per_layer = 0,
                        .microseconds_per_copy_node = 0,
                        .microseconds_per_copy_cross_node = 0,
                        .microseconds_per_step = 5};
  const LoadMatrix pairs = Row({80, 40});
  const auto run = [&](StepSplit split) { return StepRunner(placement, topology, model, split).Run(pairs); };
  EXPECT_DOUBLE_EQ(run(StepSplit::kEqual).balancedness, 60.0 / 80);
  EXPECT_DOUBLE_EQ(run(StepSplit::kEqual).microseconds, 85);
  EXPECT_DOUBLE_EQ(run(StepSplit::kWeights).balancedness, 1);
  EXPECT_DOUBLE_EQ(run(StepSplit::kSolved).balancedness, 1);
  EXPECT_DOUBLE_EQ(run(StepSplit::kSolved).microseconds, 65);
  EXPECT_DOUBLE_EQ(StepRunner(placement, topology, model, StepSplit::kEqual).Run(Row({0, 0})).balancedness, 1);
}

// A short day: two phases that take turns, each a mixture that drifts. The ordering is the point; docs/measurements.md
// has the day on real loads.
TEST(Replay, DriftedLoadIsServedBetterWithFewerBytes) {
  constexpr int32_t kLayers = 3;
  constexpr int32_t kExperts = 64;
  // Workloads of one model have much in common.
  const auto zipf = [&](uint64_t seed) {
    LoadMatrix common(kLayers, kExperts);
    LoadMatrix own(kLayers, kExperts);
    ZipfSource({.layers = kLayers, .experts = kExperts, .exponent = 0.7, .seed = 99}).Parts(0, common);
    ZipfSource({.layers = kLayers, .experts = kExperts, .exponent = 0.7, .seed = seed}).Parts(0, own);
    for (size_t i = 0; i < own.tokens.size(); ++i) own.tokens[i] = 0.5 * own.tokens[i] + 0.5 * common.tokens[i];
    return own;
  };
  const auto day =
      DaySource::Make({{"prefill", 60, {zipf(1), zipf(2), zipf(3)}}, {"decode", 40, {zipf(4), zipf(5)}}}, 24'000);
  ASSERT_TRUE(day.ok()) << day.status();
  const Topology topology = UniformTopology(8, 2, kLayers * 9);
  const Ground ground{
      .topology = topology, .placement = Contiguous(kLayers, kExperts, topology), .expert_bytes = 88'080'384};
  const ReplayOptions options{
      .steps = 24'000, .seconds_per_step = 1, .sample_every = 20, .sample = {.tokens_per_step = 1024}};
  std::vector<std::unique_ptr<Strategy>> strategies;
  strategies.push_back(StayStrategy("never"));
  strategies.push_back(
      PeriodicStrategy({.name = "EPLB once", .every = 0}, std::make_unique<EplbPolicy>(1, EplbPolicy::Split::kEqual)));
  strategies.push_back(
      PeriodicStrategy({.name = "EPLB every 3000"}, std::make_unique<EplbPolicy>(1, EplbPolicy::Split::kEqual)));
  strategies.push_back(
      PeriodicStrategy({.name = "CRAFT once", .every = 0, .replicas_per_worker = 1}, std::make_unique<CraftPolicy>()));
  strategies.push_back(
      PeriodicStrategy({.name = "CRAFT every 3000", .replicas_per_worker = 1}, std::make_unique<CraftPolicy>()));
  strategies.push_back(DriftStrategy({.move_budget = {.max_moves = 24}}, std::make_unique<CostAwarePolicy>(20'000)));
  const auto results = Replay(*day, ground, options, strategies);
  ASSERT_TRUE(results.ok()) << results.status();
  for (const ReplayResult& r : *results) {
    std::printf("%-18s balancedness %.4f (worst hour %.4f), %.0f us, %.0f tokens/s, %d plans, %d moves, %.1f GB\n",
                r.name.c_str(), r.balancedness, r.worst_hour, r.step_microseconds, r.tokens_per_second,
                static_cast<int>(r.plans), static_cast<int>(r.moves), static_cast<double>(r.bytes) * 1e-9);
  }
  const ReplayResult& ours = results->back();
  EXPECT_EQ((*results)[0].bytes, 0);
  for (size_t i = 0; i + 1 < results->size(); ++i) {
    const ReplayResult& other = (*results)[i];
    EXPECT_GT(ours.balancedness, other.balancedness) << other.name;
    EXPECT_GT(ours.worst_hour, other.worst_hour) << other.name;
    EXPECT_GT(ours.tokens_per_second, other.tokens_per_second) << other.name;
    // One that plans once moves little and is served worst.
    if (other.plans > 1) {
      EXPECT_LT(ours.bytes, other.bytes) << other.name;
    }
  }
  // The same again.
  std::vector<std::unique_ptr<Strategy>> again;
  again.push_back(StayStrategy("never"));
  const auto repeated = Replay(*day, ground, options, again);
  ASSERT_TRUE(repeated.ok());
  EXPECT_EQ((*repeated)[0].balancedness, (*results)[0].balancedness);
}

// Every step has bursts, which are measured: hot experts get replicas until single steps are as level as under EPLB,
// which uses every slot for them, at a fraction of its moves. The same load without bursts is planned for as before.
TEST(Replay, BurstsAreEvenedOutByReplicas) {
  constexpr int32_t kLayers = 3;
  const ZipfSource source({.layers = kLayers, .experts = 64, .exponent = 0.7, .swap_every = 1500, .seed = 3});
  const Topology topology = UniformTopology(8, 2, kLayers * 9);
  const Ground ground{.topology = topology, .placement = Contiguous(kLayers, 64, topology), .expert_bytes = 88'080'384};
  const auto replay = [&](double burstiness, std::unique_ptr<Strategy> strategy) {
    const ReplayOptions options{
        .steps = 24'000, .sample_every = 20, .sample = {.tokens_per_step = 4096, .burstiness = burstiness}};
    std::vector<std::unique_ptr<Strategy>> strategies;
    strategies.push_back(std::move(strategy));
    const auto results = Replay(source, ground, options, strategies);
    EXPECT_TRUE(results.ok()) << results.status();
    const ReplayResult r = results->front();
    std::printf("bursts of %.1f, %-15s balancedness %.4f, %.0f us, %d plans, %d moves\n", burstiness, r.name.c_str(),
                r.balancedness, r.step_microseconds, static_cast<int>(r.plans), static_cast<int>(r.moves));
    return r;
  };
  const auto ours = [](bool measured) {
    return DriftStrategy({.name = measured ? "ballast" : "by means",
                          .split = StepSplit::kEqual,
                          .drift = {.shares = ShareMode::kFixed},
                          .measure_bursts = measured,
                          .move_budget = {.max_moves = 24}},
                         std::make_unique<CostAwarePolicy>(20'000, Split::kEqual));
  };
  const ReplayResult eplb = replay(
      0.5, PeriodicStrategy({.name = "EPLB every 3000"}, std::make_unique<EplbPolicy>(1, EplbPolicy::Split::kEqual)));
  const ReplayResult by_means = replay(0.5, ours(false));
  const ReplayResult bursty = replay(0.5, ours(true));
  EXPECT_GT(bursty.balancedness, by_means.balancedness + 0.01);
  EXPECT_LT(bursty.step_microseconds, by_means.step_microseconds);
  EXPECT_GT(bursty.balancedness, eplb.balancedness - 0.003);
  EXPECT_LT(static_cast<double>(bursty.bytes), 0.6 * static_cast<double>(eplb.bytes));
  const ReplayResult calm = replay(0, ours(true));
  const ReplayResult calm_by_means = replay(0, ours(false));
  EXPECT_EQ(calm.balancedness, calm_by_means.balancedness);
  EXPECT_EQ(calm.moves, calm_by_means.moves);
}

}  // namespace
}  // namespace ballast
