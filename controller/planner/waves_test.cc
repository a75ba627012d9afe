#include "controller/planner/waves.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Replicas as sets, slots aside.
std::map<ExpertId, std::set<int32_t>> Holders(const Placement& p) {
  std::map<ExpertId, std::set<int32_t>> out;
  for (const Replica& r : p.replicas) out[r.expert].insert(r.worker);
  return out;
}

struct Case {
  Placement current;
  std::vector<DispatchTable> target;
  Topology topology;
  Scenario scenario;
};

// One random placement within the limits of the topology's arenas: every expert once, then spare replicas at random.
std::map<ExpertId, std::set<int32_t>> Draw(std::mt19937& random, const Topology& topology, int32_t layers,
                                           int32_t experts, double fill) {
  std::map<ExpertId, std::set<int32_t>> out;
  std::vector<int32_t> room;
  int32_t left = 0;
  for (const TopologyWorker& w : topology.workers) {
    room.push_back(w.capacity.slots - w.capacity.staging_slots);
    left += room.back();
  }
  const auto anywhere = [&](const std::set<int32_t>& but) {
    std::vector<int32_t> open;
    for (size_t w = 0; w < room.size(); ++w) {
      if (room[w] > 0 && !but.contains(static_cast<int32_t>(w))) open.push_back(static_cast<int32_t>(w));
    }
    return open.empty() ? -1 : open[random() % open.size()];
  };
  const auto add = [&](ExpertId e) {
    const int32_t w = anywhere(out[e]);
    if (w < 0) return;
    out[e].insert(w);
    --room[w];
    --left;
  };
  for (int32_t l = 0; l < layers; ++l) {
    for (int32_t e = 0; e < experts; ++e) add({l, e});
  }
  for (auto spare = static_cast<int32_t>(left * fill); spare > 0; --spare) {
    add({static_cast<int32_t>(random() % layers), static_cast<int32_t>(random() % experts)});
  }
  return out;
}

Case RandomCase(std::mt19937& random) {
  Case c;
  const int32_t workers = 1 + random() % 5;
  const int32_t layers = 1 + random() % 3;
  const int32_t experts = 1 + random() % 6;
  c.topology = UniformTopology(workers, 1 + random() % workers, 0);
  const int32_t need = (layers * experts + workers - 1) / workers;
  for (TopologyWorker& w : c.topology.workers) {
    w.capacity.staging_slots = 1 + random() % 2;
    w.capacity.slots = need + w.capacity.staging_slots + random() % 3;
  }
  // Full arenas are the hard ones.
  const double fill = random() % 2 == 0 ? 1 : random() % 100 / 100.0;
  const auto now = Draw(random, c.topology, layers, experts, fill);
  const auto then = Draw(random, c.topology, layers, experts, random() % 2 == 0 ? 1 : fill);
  c.current.num_layers = layers;
  c.current.num_experts = experts;
  for (const TopologyWorker& w : c.topology.workers) c.current.workers.push_back(w.name);
  std::vector<std::vector<int32_t>> slots;
  for (const TopologyWorker& w : c.topology.workers) {
    slots.emplace_back();
    for (int32_t s = 0; s < w.capacity.slots; ++s) slots.back().push_back(s);
    std::shuffle(slots.back().begin(), slots.back().end(), random);
  }
  for (const auto& [expert, at] : now) {
    for (const int32_t w : at) {
      c.current.replicas.push_back({expert, w, slots[w].back(), 1 + static_cast<uint32_t>(random() % 9)});
      slots[w].pop_back();
    }
  }
  c.current.Sort();
  for (int32_t l = 0; l < layers; ++l) {
    DispatchTable table;
    table.begin = {0};
    for (int32_t e = 0; e < experts; ++e) {
      for (const int32_t w : then.at({l, e})) {
        table.rank.push_back(w);
        table.weight.push_back(1 + random() % 9);
      }
      table.begin.push_back(static_cast<int32_t>(table.rank.size()));
    }
    c.target.push_back(std::move(table));
  }
  c.scenario = {"load", 1, LoadMatrix(layers, experts)};
  for (double& t : c.scenario.load.tokens) t = static_cast<double>(random() % 1000);
  return c;
}

std::vector<SlotCapacity> Capacity(const Topology& topology) {
  std::vector<SlotCapacity> out;
  for (const TopologyWorker& w : topology.workers) out.push_back(w.capacity);
  return out;
}

// Every invariant of a rollout, wave by wave.
void Check(const Case& c, const std::vector<Wave>& waves, const WaveLimits& limits) {
  const std::vector<SlotCapacity> capacity = Capacity(c.topology);
  Placement before = c.current;
  double busiest = ScoreLoad(before, c.scenario, c.topology).busiest;
  for (const Wave& wave : waves) {
    const auto holders = Holders(before);
    std::set<std::pair<int32_t, int32_t>> used;
    for (const Replica& r : before.replicas) used.insert({r.worker, r.slot});
    std::map<int32_t, int32_t> incoming;
    for (const Move& move : wave.moves) {
      ASSERT_TRUE(used.insert({move.worker, move.slot}).second) << "slot in use";
      ASSERT_LT(move.slot, capacity[move.worker].slots);
      ++incoming[move.worker];
      const auto at = holders.find(move.expert);
      if (move.source >= 0) {
        ASSERT_TRUE(at->second.contains(move.source));
      } else {
        ASSERT_TRUE(at == holders.end());
      }
    }
    if (limits.moves_per_worker > 0) {
      for (const auto& [w, n] : incoming) ASSERT_LE(n, limits.moves_per_worker);
    }
    const Placement after = ApplyWave(before, wave);
    if (Holders(before).size() == c.current.num_layers * static_cast<size_t>(c.current.num_experts)) {
      ASSERT_TRUE(Validate(after, capacity).ok()) << Validate(after, capacity);
    }
    // What changed is what the wave says, and who stays keeps the slot.
    std::set<std::tuple<ExpertId, int32_t, int32_t>> expected;
    for (const Replica& r : before.replicas) expected.insert({r.expert, r.worker, r.slot});
    for (const Replica& r : wave.drops) ASSERT_EQ(expected.erase({r.expert, r.worker, r.slot}), 1u);
    for (const Move& move : wave.moves) expected.insert({move.expert, move.worker, move.slot});
    std::set<std::tuple<ExpertId, int32_t, int32_t>> got;
    for (const Replica& r : after.replicas) got.insert({r.expert, r.worker, r.slot});
    ASSERT_EQ(got, expected);
    const double now = ScoreLoad(after, c.scenario, c.topology).busiest;
    ASSERT_NEAR(now, wave.busiest, 1e-6 * (1 + now));
    if (wave.within_tolerance && holders.size() == Holders(after).size() && &wave != &waves[0]) {
      ASSERT_LE(now, busiest * (1 + limits.tolerance + 1e-3) + 1e-9);
    }
    busiest = now;
    before = after;
  }
  std::vector<DispatchTable> reached = Onto(before, c.topology);
  for (size_t l = 0; l < reached.size(); ++l) {
    ASSERT_EQ(reached[l].begin, c.target[l].begin);
    ASSERT_EQ(reached[l].rank, c.target[l].rank);
    ASSERT_EQ(reached[l].weight, c.target[l].weight);
  }
}

TEST(PlanWaves, KeepEveryInvariantOnRandomCases) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    const Case c = RandomCase(random);
    WaveLimits limits;
    limits.moves_per_worker = static_cast<int32_t>(random() % 3);
    limits.tolerance = trial % 2 == 0 ? .02 : 10;
    const auto waves = PlanWaves(c.current, c.target, c.topology, std::span(&c.scenario, 1), limits);
    ASSERT_TRUE(waves.ok()) << trial << ": " << waves.status();
    Check(c, *waves, limits);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
  }
}

// From one level placement to another: what a wave may lose is counted from the best so far.
TEST(PlanWaves, WhatWavesLoseDoesNotAddUp) {
  constexpr int32_t kLayers = 58;
  constexpr int32_t kWorkers = 8;
  std::mt19937 random(4);
  std::lognormal_distribution<double> tokens(6, 1);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(kLayers, 32)}};
  for (double& t : request.scenarios[0].load.tokens) t = std::floor(tokens(random));
  request.topology = UniformTopology(kWorkers, 1, kLayers * 5);
  request.current = MakePlan(CostAwarePolicy(), request)->placement;
  // The same packs on other workers.
  Placement target = *request.current;
  for (Replica& r : target.replicas) r.worker = (r.worker + 1 + r.expert.layer % (kWorkers - 1)) % kWorkers;
  target.Sort();
  const auto waves =
      PlanWaves(*request.current, Onto(target, request.topology), request.topology, request.scenarios, request.waves);
  ASSERT_TRUE(waves.ok()) << waves.status();
  const double start = ScoreLoad(*request.current, request.scenarios[0], request.topology).busiest;
  double most = 0;
  int outside = 0;
  for (const Wave& wave : *waves) {
    most = std::max(most, wave.busiest);
    outside += wave.within_tolerance ? 0 : 1;
  }
  // A layer that has to pass a worse state goes alone.
  EXPECT_LT(outside, static_cast<int>(waves->size()) / 4);
  EXPECT_LE(most, start * (1.5 * request.waves.tolerance + 1.02));
}

TEST(PlanWaves, BringBackLostExperts) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 5000; ++trial) {
    Case c = RandomCase(random);
    const auto dead = static_cast<int32_t>(random() % c.topology.workers.size());
    std::erase_if(c.current.replicas, [&](const Replica& r) { return r.worker == dead; });
    const auto waves = PlanWaves(c.current, c.target, c.topology, std::span(&c.scenario, 1), {});
    ASSERT_TRUE(waves.ok()) << trial << ": " << waves.status();
    Check(c, *waves, {});
    if (HasFatalFailure()) FAIL() << "trial " << trial;
  }
}

TEST(PlanWaves, ARingOfFullArenasTurnsInOneWave) {
  Case c;
  c.topology = UniformTopology(3, 1, 1);
  for (TopologyWorker& w : c.topology.workers) w.capacity = {2, 1};
  c.current = {.num_layers = 1, .num_experts = 3, .workers = {"w0", "w1", "w2"}};
  c.current.replicas = {{{0, 0}, 0, 0}, {{0, 1}, 1, 0}, {{0, 2}, 2, 0}};
  c.target = {{{0, 1, 2, 3}, {1, 2, 0}, {1, 1, 1}}};
  c.scenario = {"load", 1, LoadMatrix(1, 3)};
  const auto waves = PlanWaves(c.current, c.target, c.topology, std::span(&c.scenario, 1), {});
  ASSERT_TRUE(waves.ok()) << waves.status();
  ASSERT_EQ(waves->size(), 1u);
  EXPECT_THAT((*waves)[0].moves, ElementsAre(Move{{0, 2}, 2, 0, 1}, Move{{0, 0}, 0, 1, 1}, Move{{0, 1}, 1, 2, 1}));
  Check(c, *waves, {});
}

TEST(PlanWaves, WithoutAFreeSlotNothingCanMove) {
  Case c;
  c.topology = UniformTopology(2, 1, 1);
  for (TopologyWorker& w : c.topology.workers) w.capacity = {1, 0};
  c.current = {.num_layers = 1, .num_experts = 2, .workers = {"w0", "w1"}};
  c.current.replicas = {{{0, 0}, 0, 0}, {{0, 1}, 1, 0}};
  c.target = {{{0, 1, 2}, {1, 0}, {1, 1}}};
  c.scenario = {"load", 1, LoadMatrix(1, 2)};
  const auto waves = PlanWaves(c.current, c.target, c.topology, std::span(&c.scenario, 1), {});
  EXPECT_THAT(waves.status().ToString(), HasSubstr("worker 'w0' has no free slot to move through: 1 of 1"));
}

TEST(PlanWaves, SourcesAreSpread) {
  // Expert 0 on workers 0, 1 goes to 2, 3, 4, 5.
  Case c;
  c.topology = UniformTopology(6, 1, 2);
  c.current = {.num_layers = 1, .num_experts = 1};
  for (const TopologyWorker& w : c.topology.workers) c.current.workers.push_back(w.name);
  c.current.replicas = {{{0, 0}, 0, 0}, {{0, 0}, 1, 0}};
  c.target = {{{0, 6}, {0, 1, 2, 3, 4, 5}, {1, 1, 1, 1, 1, 1}}};
  c.scenario = {"load", 1, LoadMatrix(1, 1)};
  const auto waves = PlanWaves(c.current, c.target, c.topology, std::span(&c.scenario, 1), {});
  ASSERT_TRUE(waves.ok()) << waves.status();
  ASSERT_EQ(waves->size(), 1u);
  std::map<int32_t, int> given;
  for (const Move& move : (*waves)[0].moves) ++given[move.source];
  EXPECT_EQ(given[0], 2);
  EXPECT_EQ(given[1], 2);
  EXPECT_DOUBLE_EQ(TransferSeconds((*waves)[0], c.topology, 50'000'000'000), 2);
}

TEST(PlanWaves, WeightsAloneMakeAWaveWithoutMoves) {
  Case c;
  c.topology = UniformTopology(2, 1, 1);
  c.current = {.num_layers = 1, .num_experts = 1, .workers = {"w0", "w1"}};
  c.current.replicas = {{{0, 0}, 0, 0}, {{0, 0}, 1, 0}};
  c.target = {{{0, 2}, {0, 1}, {1, 3}}};
  c.scenario = {"load", 1, LoadMatrix(1, 1)};
  c.scenario.load.tokens = {8};
  const auto waves = PlanWaves(c.current, c.target, c.topology, std::span(&c.scenario, 1), {});
  ASSERT_TRUE(waves.ok()) << waves.status();
  ASSERT_EQ(waves->size(), 1u);
  EXPECT_TRUE((*waves)[0].moves.empty());
  EXPECT_DOUBLE_EQ((*waves)[0].busiest, 6);
  Check(c, *waves, {});
}

}  // namespace
}  // namespace ballast
