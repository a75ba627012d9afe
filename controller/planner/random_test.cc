// Every invariant of every kind of plan, on random cases. Mostly tiny ones: there the odd shapes are common.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/failure.h"
#include "controller/planner/level.h"
#include "controller/planner/objective.h"
#include "controller/planner/planner.h"
#include "gtest/gtest.h"
#include "proto/base/test_data.h"

namespace ballast {
namespace {

std::vector<SlotCapacity> Capacities(const Topology& topology) {
  std::vector<SlotCapacity> out;
  for (const TopologyWorker& w : topology.workers) out.push_back(w.capacity);
  return out;
}

int32_t Draw(std::mt19937& random, int32_t least, int32_t most) {
  return least + static_cast<int32_t>(random() % static_cast<uint32_t>(most - least + 1));
}

LoadMatrix RandomLoad(std::mt19937& random, int32_t layers, int32_t experts) {
  LoadMatrix load(layers, experts);
  for (int32_t l = 0; l < layers; ++l) {
    const auto tokens = load.layer(l);
    std::lognormal_distribution<double> skew(Draw(random, 0, 8), Draw(random, 0, 3));
    switch (random() % 8) {
      case 0:  // no load
        break;
      case 1:  // one expert has all of it
        tokens[random() % experts] = std::ldexp(1, Draw(random, 0, 59));
        break;
      case 2:  // ties
        for (double& t : tokens) t = Draw(random, 0, 2);
        break;
      default:
        for (double& t : tokens) t = random() % 5 == 0 ? 0 : std::floor(skew(random));
    }
  }
  return load;
}

std::vector<Scenario> RandomScenarios(std::mt19937& random, int32_t layers, int32_t experts, int32_t count) {
  std::vector<Scenario> scenarios;
  for (int32_t s = 0; s < count; ++s) {
    scenarios.push_back({std::string(1, static_cast<char>('a' + s)), random() % 2 == 0 ? 1 : 0.1 * Draw(random, 1, 50),
                         RandomLoad(random, layers, experts)});
  }
  return scenarios;
}

struct Case {
  PlanRequest request;
  std::unique_ptr<PlannerPolicy> policy;
};

Case RandomCase(std::mt19937& random) {
  Case c;
  const bool tiny = random() % 50 != 0;
  const int32_t layers = Draw(random, 1, tiny ? 3 : 8);
  const int32_t experts = Draw(random, 1, tiny ? 6 : 40);
  const int32_t workers = Draw(random, 1, tiny ? 5 : 24);
  c.request.scenarios = RandomScenarios(random, layers, experts, random() % 3 == 0 ? Draw(random, 2, 3) : 1);
  const int32_t least = (experts + workers - 1) / workers;
  const int32_t slots = Draw(random, least, least + 2);
  c.request.topology = UniformTopology(workers, Draw(random, 1, workers), slots * layers);
  const bool speeds = random() % 6 == 0;
  for (TopologyWorker& w : c.request.topology.workers) {
    const int32_t usable = w.capacity.slots - w.capacity.staging_slots;
    w.capacity.staging_slots = Draw(random, 1, 3);
    w.capacity.slots = usable + w.capacity.staging_slots + Draw(random, 0, 1);
    if (speeds) w.speed = static_cast<uint32_t>(Draw(random, 1, 4));
  }
  c.request.expert_bytes = Draw(random, 0, 1) * 1000;
  c.request.waves.moves_per_worker = Draw(random, 0, 2);
  switch (random() % 5) {
    case 0:
      c.policy = std::make_unique<EplbPolicy>(1, Split::kEqual);
      break;
    case 1:
      c.policy = std::make_unique<EplbPolicy>();
      break;
    case 2:
      c.policy = std::make_unique<CraftPolicy>();
      c.request.replicas_per_worker = Draw(random, 0, 2);
      break;
    default:
      c.policy = std::make_unique<CostAwarePolicy>(100, random() % 2 == 0 ? Split::kEqual : Split::kSolved);
      if (random() % 3 == 0) c.request.replicas_per_worker = Draw(random, 0, 2);
  }
  if (!c.request.replicas_per_worker && random() % 2 == 0) c.request.slots_per_layer = slots;
  if (c.request.replicas_per_worker) {
    // No more than distinct experts.
    const int32_t once = layers * experts;
    c.request.replicas_per_worker = std::min(*c.request.replicas_per_worker, once - (once + workers - 1) / workers);
    const int32_t most = (layers * experts + workers - 1) / workers + *c.request.replicas_per_worker;
    for (TopologyWorker& w : c.request.topology.workers) w.capacity.slots = most + w.capacity.staging_slots;
  }
  return c;
}

double ObjectiveOf(const PlanRequest& request, const Placement& placement, Split split) {
  std::vector<double> busiest;
  for (const Scenario& s : request.scenarios) {
    const LoadScore score = ScoreLoad(placement, s, request.topology);
    busiest.push_back(split == Split::kEqual ? score.busiest_equal_split : score.busiest);
  }
  return Objective(request.scenarios, request.topology).Of(busiest);
}

// What holds for every plan.
void CheckPlan(const PlanRequest& request, const Plan& plan, bool complete) {
  if (complete) {
    const absl::Status sound = Validate(plan.placement, Capacities(request.topology));
    ASSERT_TRUE(sound.ok()) << sound;
  }
  ASSERT_EQ(plan.predicted.size(), request.scenarios.size());
  for (size_t s = 0; s < request.scenarios.size(); ++s) {
    const LoadScore again = ScoreLoad(plan.placement, request.scenarios[s], request.topology);
    ASSERT_EQ(again.busiest, plan.predicted[s].busiest);
    ASSERT_EQ(again.balancedness, plan.predicted[s].balancedness);
    ASSERT_EQ(again.balancedness_solved, plan.predicted[s].balancedness_solved);
    if (!complete) continue;
    ASSERT_LE(again.balancedness, again.balancedness_solved * (1 + 1e-6));
    ASSERT_LE(again.balancedness_equal_split, again.balancedness_solved * (1 + 1e-6));
    ASSERT_LE(again.balancedness_solved, again.upper_bound * (1 + 1e-6));
    ASSERT_GE(again.busiest, again.busiest_bound * (1 - 1e-6));
  }
  ASSERT_TRUE(std::isfinite(plan.gain) && std::isfinite(plan.objective) && plan.objective > 0);
  int64_t moves = 0;
  for (const Wave& wave : plan.waves) moves += static_cast<int64_t>(wave.moves.size());
  ASSERT_EQ(plan.moves, moves);
  ASSERT_EQ(plan.bytes, moves * request.expert_bytes);
  ASSERT_EQ(plan.transfer.node.moves + plan.transfer.cross_node.moves + plan.transfer.checkpoint.moves, moves);
}

// What holds on the way to it.
void CheckWaves(const PlanRequest& request, const Plan& plan) {
  Placement before = OverTopology(*request.current, request.topology);
  for (const Wave& wave : plan.waves) {
    std::set<std::pair<int32_t, int32_t>> used;
    std::map<ExpertId, std::set<int32_t>> holders;
    for (const Replica& r : before.replicas) {
      used.insert({r.worker, r.slot});
      holders[r.expert].insert(r.worker);
    }
    std::map<int32_t, int32_t> incoming;
    for (const Move& move : wave.moves) {
      ASSERT_TRUE(used.insert({move.worker, move.slot}).second) << "slot in use";
      ASSERT_LT(move.slot, request.topology.workers[move.worker].capacity.slots);
      ++incoming[move.worker];
      if (move.source < 0) {
        ASSERT_FALSE(holders.contains(move.expert)) << "from the checkpoint though a worker has it";
      } else {
        ASSERT_TRUE(holders[move.expert].contains(move.source));
      }
    }
    if (request.waves.moves_per_worker > 0) {
      for (const auto& [w, n] : incoming) ASSERT_LE(n, request.waves.moves_per_worker);
    }
    const Placement after = ApplyWave(before, wave);
    std::set<ExpertId> live;
    std::vector<int32_t> held(request.topology.workers.size());
    std::set<std::pair<int32_t, int32_t>> slots;
    for (const Replica& r : after.replicas) {
      live.insert(r.expert);
      ++held[r.worker];
      ASSERT_TRUE(slots.insert({r.worker, r.slot}).second);
    }
    for (const auto& [expert, at] : holders) ASSERT_TRUE(live.contains(expert)) << "last replica dropped";
    for (size_t w = 0; w < held.size(); ++w) {
      const SlotCapacity& capacity = request.topology.workers[w].capacity;
      ASSERT_LE(held[w], capacity.slots - capacity.staging_slots);
    }
    // What stays keeps its slot.
    std::map<std::pair<ExpertId, int32_t>, int32_t> slot_of;
    for (const Replica& r : before.replicas) slot_of[{r.expert, r.worker}] = r.slot;
    for (const Replica& r : after.replicas) {
      const auto was = slot_of.find({r.expert, r.worker});
      if (was == slot_of.end()) continue;
      ASSERT_EQ(was->second, r.slot);
    }
    before = after;
  }
  ASSERT_EQ(before.replicas, plan.placement.replicas);
}

void CheckIncrement(std::mt19937& random, Case& c) {
  PlanRequest request = c.request;
  const LoadMatrix& shape = request.scenarios[0].load;
  request.scenarios = RandomScenarios(random, shape.layers, shape.experts, random() % 3 == 0 ? 2 : 1);
  const int64_t moves = Draw(random, 1, 6);
  if (request.expert_bytes > 0 && random() % 2 == 0) {
    request.move_budget.max_bytes = moves * request.expert_bytes + Draw(random, 0, 999);
  } else {
    request.move_budget.max_moves = moves;
  }
  const auto plan = MakePlan(*c.policy, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  CheckPlan(request, *plan, true);
  CheckWaves(request, *plan);
  ASSERT_LE(plan->moves, moves);
  ASSERT_LE(plan->objective, plan->objective_now);
  ASSERT_GE(plan->gain, 0);
  // With one load every prefix of the waves is no worse than one wave less, but for layers that are placed anew: these
  // keep to the waves' tolerance where they can. Weights are whole numbers.
  if (request.scenarios.size() == 1) {
    Placement placement = OverTopology(*request.current, request.topology);
    const Split split = c.policy->split(request);
    double last = ObjectiveOf(request, placement, split);
    double best = last;
    for (const Wave& wave : plan->waves) {
      placement = ApplyWave(std::move(placement), wave);
      const double now = ObjectiveOf(request, placement, split);
      if (wave.within_tolerance) {
        ASSERT_LE(now, std::max(last, best * (1 + request.waves.tolerance)) * (1 + 2e-4));
      }
      last = now;
      best = std::min(best, now);
    }
  }
}

void CheckFailure(std::mt19937& random, Case& c) {
  PlanRequest request = c.request;
  auto& workers = request.topology.workers;
  const int32_t dead = Draw(random, 1, std::max<int32_t>(1, static_cast<int32_t>(workers.size()) / 2));
  for (int32_t i = 0; i < dead && workers.size() > 1; ++i) {
    workers.erase(workers.begin() + static_cast<std::ptrdiff_t>(random() % workers.size()));
  }
  if (random() % 3 == 0) request.move_budget.max_moves = Draw(random, 1, 20);
  const auto failure = PlanFailure(request, c.policy->split(request));
  ASSERT_TRUE(failure.ok()) << failure.status();
  std::set<std::string> live;
  for (const TopologyWorker& w : workers) live.insert(w.name);
  std::set<ExpertId> lost;
  for (const Replica& r : request.current->replicas) lost.insert(r.expert);
  for (const Replica& r : request.current->replicas) {
    if (live.contains(request.current->workers[r.worker])) lost.erase(r.expert);
  }
  ASSERT_EQ(std::vector<ExpertId>(lost.begin(), lost.end()), failure->lost);
  const auto restored = static_cast<int64_t>(lost.size() - failure->without_replica.size());
  if (request.move_budget.limited()) {
    ASSERT_LE(failure->plan.moves, std::max(restored, request.move_budget.max_moves));
    ASSERT_GE(failure->plan.moves, restored);
  } else {
    ASSERT_EQ(failure->plan.moves, restored);
  }
  std::set<ExpertId> without = lost;
  for (const Replica& r : failure->plan.placement.replicas) without.erase(r.expert);
  ASSERT_EQ(std::vector<ExpertId>(without.begin(), without.end()), failure->without_replica);
  // Nobody goes without while there is room.
  if (!without.empty()) {
    std::map<ExpertId, int32_t> count;
    std::vector<int32_t> held(workers.size());
    for (const Replica& r : failure->plan.placement.replicas) {
      ASSERT_EQ(++count[r.expert], 1) << "a spare replica is left";
      ++held[r.worker];
    }
    for (size_t w = 0; w < held.size(); ++w) {
      ASSERT_GE(held[w], workers[w].capacity.slots - workers[w].capacity.staging_slots);
    }
  }
  CheckPlan(request, failure->plan, without.empty());
  CheckWaves(request, failure->plan);
}

TEST(Random, EveryInvariantHolds) {
  const int cases = RunsLong() ? 100'000 : 15'000;
  for (int i = 0; i < cases && !HasFatalFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    std::mt19937 random(static_cast<uint32_t>(i));
    Case c = RandomCase(random);
    const auto first = MakePlan(*c.policy, c.request);
    ASSERT_TRUE(first.ok()) << c.policy->name() << ": " << first.status();
    CheckPlan(c.request, *first, true);
    if (i % 8 == 0) {
      ASSERT_EQ(MakePlan(*c.policy, c.request)->placement, first->placement);
    }
    c.request.current = first->placement;
    // Shares that somebody else chose.
    if (random() % 4 == 0) {
      for (Replica& r : c.request.current->replicas) r.weight = 1 + static_cast<uint32_t>(random() % 9);
    }
    switch (random() % 3) {
      case 0:
        CheckIncrement(random, c);
        break;
      case 1:
        CheckFailure(random, c);
        break;
      default: {
        PlanRequest next = c.request;
        next.scenarios = RandomScenarios(random, first->placement.num_layers, first->placement.num_experts, 1);
        const auto plan = MakePlan(*c.policy, next);
        ASSERT_TRUE(plan.ok()) << plan.status();
        CheckPlan(next, *plan, true);
        CheckWaves(next, *plan);
      }
    }
  }
}

TEST(Random, TenThousandWorkers) {
  std::mt19937 random(1);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(1, 64)}};
  for (double& t : request.scenarios[0].load.tokens) t = Draw(random, 0, 1000);
  request.topology = UniformTopology(10'000, 1250, 1);
  for (const Split split : {Split::kEqual, Split::kSolved}) {
    const EplbPolicy policy(1, split);
    auto plan = MakePlan(policy, request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    CheckPlan(request, *plan, true);
    PlanRequest next = request;
    next.current = plan->placement;
    next.move_budget.max_moves = 8;
    for (double& t : next.scenarios[0].load.tokens) t = Draw(random, 0, 1000);
    const auto increment = MakePlan(policy, next);
    ASSERT_TRUE(increment.ok()) << increment.status();
    CheckPlan(next, *increment, true);
    CheckWaves(next, *increment);
  }
}

}  // namespace
}  // namespace ballast
