#include "controller/planner/incremental.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "controller/planner/eplb.h"
#include "controller/planner/failure.h"
#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

LoadMatrix RandomLoad(std::mt19937& random, int32_t layers, int32_t experts, double skew) {
  LoadMatrix load(layers, experts);
  std::lognormal_distribution<double> tokens(5, skew);
  for (double& t : load.tokens) t = std::floor(tokens(random));
  return load;
}

PlanRequest Request(std::mt19937& random, int32_t layers, int32_t experts, int32_t workers, int32_t slots) {
  PlanRequest request;
  request.scenarios = {{"load", 1, RandomLoad(random, layers, experts, 1.2)}};
  request.topology = UniformTopology(workers, 2, slots * layers);
  request.expert_bytes = 1000;
  return request;
}

TEST(Increment, GainsMoreWithMoreMoves) {
  for (const auto policy_split : {EplbPolicy::Split::kEqual, EplbPolicy::Split::kSolved}) {
    const EplbPolicy policy(1, policy_split);
    std::mt19937 random(1);
    PlanRequest request = Request(random, 6, 32, 8, 5);
    request.current = MakePlan(policy, request)->placement;
    request.scenarios = {{"load", 1, RandomLoad(random, 6, 32, 1.2)}};
    double last = 0;
    for (const int64_t moves : {1, 2, 4, 8, 16, 32, 64}) {
      request.move_budget.max_moves = moves;
      const auto plan = MakePlan(policy, request);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_LE(plan->moves, moves);
      EXPECT_GE(plan->gain, last);
      EXPECT_GT(plan->gain, 0);
      last = plan->gain;
    }
    request.move_budget = {};
    const auto whole = MakePlan(policy, request);
    EXPECT_GT(last, 0.5 * whole->gain);
  }
}

// Another load altogether: where single changes end, layers are placed anew, as far as the budget goes.
TEST(Increment, LargeBudgetsReachThePolicysOwnBalance) {
  const CostAwarePolicy shares;
  const EplbPolicy equal(1, Split::kEqual);
  for (const PlannerPolicy* policy :
       {static_cast<const PlannerPolicy*>(&shares), static_cast<const PlannerPolicy*>(&equal)}) {
    std::mt19937 random(3);
    PlanRequest request = Request(random, 6, 48, 8, 7);
    request.current = MakePlan(*policy, request)->placement;
    request.scenarios = {{"load", 1, RandomLoad(random, 6, 48, 1.2)}};
    const auto whole = MakePlan(*policy, request);
    ASSERT_TRUE(whole.ok()) << whole.status();
    request.move_budget.max_moves = 10 * whole->moves;
    const auto all = MakePlan(*policy, request);
    ASSERT_TRUE(all.ok()) << all.status();
    EXPECT_LE(all->objective, whole->objective * 1.02) << policy->name();
    EXPECT_TRUE(Validate(all->placement).ok()) << Validate(all->placement);
    double last = all->objective_now;
    for (int64_t moves = 16; moves < 2 * whole->moves; moves *= 2) {
      request.move_budget.max_moves = moves;
      const auto plan = MakePlan(*policy, request);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_LE(plan->moves, moves);
      EXPECT_LE(plan->objective, last * (1 + 1e-9)) << moves;
      last = plan->objective;
    }
  }
}

// Tiny: one layer, so that every placement can be tried.
struct Tiny {
  PlanRequest request;
  Placement current;
};

Tiny RandomTiny(std::mt19937& random) {
  Tiny t;
  const int32_t workers = 2 + static_cast<int32_t>(random() % 2);
  const int32_t experts = 3 + static_cast<int32_t>(random() % 2);
  const int32_t limit = (experts + workers - 1) / workers + static_cast<int32_t>(random() % 2);
  t.request.scenarios = {{"load", 1, RandomLoad(random, 1, experts, 1)}};
  t.request.topology = UniformTopology(workers, 1, std::min(limit, experts));
  t.request.expert_bytes = 1000;
  t.current = MakePlan(EplbPolicy(), t.request)->placement;
  // Not every slot in use.
  for (size_t i = 0; i < t.current.replicas.size(); ++i) {
    const ExpertId e = t.current.replicas[i].expert;
    const auto count = std::count_if(t.current.replicas.begin(), t.current.replicas.end(),
                                     [&](const Replica& r) { return r.expert == e; });
    if (count > 1 && random() % 2 == 0) t.current.replicas.erase(t.current.replicas.begin() + i--);
  }
  t.request.current = t.current;
  t.request.scenarios = {{"load", 1, RandomLoad(random, 1, experts, 1)}};
  return t;
}

double Busiest(const PlanRequest& request, const Placement& placement, Split split) {
  const LoadScore score = ScoreLoad(placement, request.scenarios[0], request.topology);
  if (Bursty(request.scenarios)) return score.busiest_in_step;
  return split == Split::kEqual ? score.busiest_equal_split : score.busiest_solved;
}

// Calls visit(placement, arrivals) for every placement over the topology in which each expert has a replica.
template <typename Visit>
void ForEachPlacement(const Placement& from, const Topology& topology, Visit visit) {
  const auto workers = static_cast<int32_t>(topology.workers.size());
  const int32_t sets = 1 << from.num_experts;
  std::vector<int32_t> held(workers);
  for (const Replica& r : from.replicas) held[r.worker] |= 1 << r.expert.expert;
  std::vector<int32_t> mask(workers);
  while (true) {
    int32_t all = 0;
    int32_t arrivals = 0;
    bool fits = true;
    for (int32_t w = 0; w < workers; ++w) {
      const SlotCapacity& capacity = topology.workers[w].capacity;
      all |= mask[w];
      arrivals += std::popcount(static_cast<uint32_t>(mask[w] & ~held[w]));
      fits &= std::popcount(static_cast<uint32_t>(mask[w])) <= capacity.slots - capacity.staging_slots;
    }
    if (fits && all == sets - 1) {
      Placement p = from;
      p.replicas.clear();
      for (int32_t e = 0; e < from.num_experts; ++e) {
        for (int32_t w = 0; w < workers; ++w) {
          if (mask[w] >> e & 1) p.replicas.push_back({{0, e}, w, 0, 1});
        }
      }
      visit(p, arrivals);
    }
    int32_t w = 0;
    while (w < workers && ++mask[w] == sets) mask[w++] = 0;
    if (w == workers) return;
  }
}

TEST(Increment, ComesCloseToTheBestSetOfMoves) {
  const std::pair<Split, double> kinds[] = {{Split::kEqual, 0}, {Split::kSolved, 0}, {Split::kEqual, .25}};
  for (const auto& [split, burstiness] : kinds) {
    const std::string what =
        absl::StrCat(split == Split::kEqual ? "equal" : "solved", burstiness > 0 ? ", bursts" : "");
    std::mt19937 random(3);
    int best = 0;
    constexpr int kCases = 150;
    double reached = 0;
    double possible = 0;
    for (int trial = 0; trial < kCases; ++trial) {
      const Tiny t = RandomTiny(random);
      PlanRequest request = t.request;
      request.move_budget.max_moves = 1 + trial % 3;
      if (burstiness > 0) request.scenarios[0].burstiness = {burstiness};
      const double now = Busiest(request, t.current, split);
      double least = now;
      ForEachPlacement(t.current, request.topology, [&](const Placement& p, int32_t arrivals) {
        // An increment gives no replica up but for another.
        if (arrivals > request.move_budget.max_moves || p.replicas.size() < t.current.replicas.size()) return;
        least = std::min(least, Busiest(request, p, split));
      });
      const auto plan = MakePlan(EplbPolicy(1, split), request);
      ASSERT_TRUE(plan.ok()) << plan.status();
      const double got = Busiest(request, plan->placement, split);
      ASSERT_GE(got, least * (1 - 1e-6));
      ASSERT_LE(got, now * (1 + 1e-6));
      best += got <= least * (1 + 1e-6) ? 1 : 0;
      reached += now - got;
      possible += now - least;
    }
    EXPECT_GE(best, 0.8 * kCases) << what;
    EXPECT_GE(reached, 0.9 * possible) << what;
    RecordProperty(what, best);
  }
}

TEST(Increment, NoBudgetIsTheWholePlanAndNoGainIsNone) {
  std::mt19937 random(4);
  PlanRequest request = Request(random, 4, 16, 4, 5);
  const CostAwarePolicy policy;
  request.current = MakePlan(policy, request)->placement;
  request.move_budget.max_moves = 100;
  // Level already.
  const auto none = MakePlan(policy, request);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->moves, 0);
  EXPECT_TRUE(none->waves.empty());
  EXPECT_EQ(none->placement.replicas, request.current->replicas);
  EXPECT_FALSE(none->gate.worth);
  // Fewer bytes than one move takes.
  request.scenarios = {{"load", 1, RandomLoad(random, 4, 16, 1.2)}};
  request.move_budget = {0, 999};
  EXPECT_EQ(MakePlan(policy, request)->moves, 0);
  request.move_budget = {0, 3999};
  EXPECT_LE(MakePlan(policy, request)->moves, 3);
  EXPECT_GT(MakePlan(policy, request)->moves, 0);
}

TEST(Increment, UsesAWorkerThatJoined) {
  std::mt19937 random(5);
  PlanRequest request = Request(random, 4, 16, 4, 5);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  TopologyWorker fresh = request.topology.workers[0];
  fresh.name = "fresh";
  request.topology.workers.push_back(fresh);
  request.move_budget.max_moves = 8;
  const auto plan = MakePlan(EplbPolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->moves, 0);
  EXPECT_LE(plan->moves, 8);
  EXPECT_GT(plan->gain, 0);
  for (const Wave& wave : plan->waves) {
    for (const Move& move : wave.moves) EXPECT_EQ(move.worker, 4);
  }
}

TEST(Increment, SaysWhatItCannotStartFrom) {
  std::mt19937 random(6);
  PlanRequest request = Request(random, 4, 16, 4, 4);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  request.move_budget.max_moves = 4;
  PlanRequest dead = request;
  dead.topology.workers.pop_back();
  EXPECT_EQ(MakePlan(EplbPolicy(), dead).status().code(), absl::StatusCode::kFailedPrecondition);
  PlanRequest negative = request;
  negative.move_budget.max_moves = -1;
  EXPECT_THAT(MakePlan(EplbPolicy(), negative).status().message(), HasSubstr("max_moves: -1; must be at least 0"));
  negative.move_budget = {0, -5};
  EXPECT_THAT(MakePlan(EplbPolicy(), negative).status().message(), HasSubstr("max_bytes: -5; must be at least 0"));
  negative.move_budget = {0, 5};
  negative.expert_bytes = 0;
  EXPECT_THAT(MakePlan(EplbPolicy(), negative).status().message(), HasSubstr("expert_bytes must say"));
}

TEST(Plan, SaysWhatItBringsAndCosts) {
  std::mt19937 random(7);
  PlanRequest request = Request(random, 4, 16, 4, 5);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  request.scenarios = {{"load", 1, RandomLoad(random, 4, 16, 1.2)}};
  request.cost_model.microseconds_per_token = 3;
  const auto plan = MakePlan(EplbPolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_NEAR(plan->gain_tokens, plan->current[0].busiest - plan->predicted[0].busiest, 1e-6);
  EXPECT_NEAR(plan->gain_microseconds, 3 * plan->gain_tokens, 1e-6);
  EXPECT_NEAR(plan->gain, plan->gain_tokens / plan->current[0].busiest, 1e-9);
  EXPECT_EQ(plan->transfer.node.bytes + plan->transfer.cross_node.bytes, plan->bytes);
  EXPECT_GT(plan->transfer.seconds, 0);
  EXPECT_GE(plan->predicted[0].busiest, plan->predicted[0].busiest_bound);
  EXPECT_NE(plan->gate.reason, "");
  // What does not pay within the horizon.
  request.gate.horizon_seconds = 1e-9;
  EXPECT_FALSE(MakePlan(EplbPolicy(), request)->gate.worth);
}

TEST(PlanFailure, TakesTheFewestMoves) {
  std::mt19937 random(8);
  int without = 0;
  for (int trial = 0; trial < 150; ++trial) {
    Tiny t = RandomTiny(random);
    t.request.topology.workers.erase(t.request.topology.workers.begin() +
                                     static_cast<std::ptrdiff_t>(random() % t.request.topology.workers.size()));
    const Placement live = OverTopology(t.current, t.request.topology);
    int32_t fewest = -1;
    ForEachPlacement(live, t.request.topology, [&](const Placement&, int32_t arrivals) {
      if (fewest < 0 || arrivals < fewest) fewest = arrivals;
    });
    const auto failure = PlanFailure(t.request);
    ASSERT_TRUE(failure.ok()) << failure.status();
    ASSERT_EQ(failure->without_replica.empty(), fewest >= 0);
    if (fewest >= 0) {
      ASSERT_EQ(failure->plan.moves, fewest);
    }
    without += fewest < 0 ? 1 : 0;
  }
  EXPECT_GT(without, 10);
  EXPECT_LT(without, 140);
}

TEST(PlanFailure, TakesTheSpareReplicasThatAreMissedLeast) {
  // Worker 2 dies with the only replica of expert 0; expert 1 is hot and needs both of its, expert 2 does not.
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(1, 3)}};
  request.scenarios[0].load.tokens = {10, 100, 10};
  request.topology = UniformTopology(3, 1, 2);
  Placement current;
  current.num_layers = 1;
  current.num_experts = 3;
  current.workers = {"w0", "w1", "w2"};
  current.replicas = {{{0, 0}, 2, 0}, {{0, 1}, 0, 0}, {{0, 1}, 1, 0}, {{0, 2}, 0, 1}, {{0, 2}, 1, 1}};
  request.current = current;
  request.topology.workers.pop_back();
  const auto failure = PlanFailure(request);
  ASSERT_TRUE(failure.ok()) << failure.status();
  EXPECT_THAT(failure->lost, ElementsAre(ExpertId{0, 0}));
  ASSERT_EQ(failure->plan.waves.size(), 1u);
  ASSERT_EQ(failure->plan.waves[0].drops.size(), 1u);
  EXPECT_EQ(failure->plan.waves[0].drops[0].expert, (ExpertId{0, 2}));
  EXPECT_EQ(failure->plan.waves[0].moves[0].source, -1);
  EXPECT_EQ(failure->plan.transfer.checkpoint.moves, 1);
}

// Two layers of `experts` on eight workers, the first layer's tokens `hot` for every second expert; worker 7 dies.
PlanRequest DeadWorker(int32_t experts, double hot) {
  PlanRequest request;
  request.topology = UniformTopology(8, 1, experts);
  Placement current;
  current.num_layers = 2;
  current.num_experts = experts;
  for (int32_t w = 0; w < 8; ++w) current.workers.push_back(request.topology.workers[w].name);
  std::vector<int32_t> next(8);
  for (int32_t l = 0; l < 2; ++l) {
    for (int32_t e = 0; e < experts; ++e) current.replicas.push_back({{l, e}, e % 8, next[e % 8]++});
  }
  request.current = current;
  request.scenarios = {{"load", 1, LoadMatrix(2, experts)}};
  for (int32_t e = 0; e < experts; e += 2) request.scenarios[0].load.tokens[e] = hot;
  request.topology.workers.pop_back();
  return request;
}

TEST(PlanFailure, WorkersFetchSideBySide) {
  for (const double hot : {0.0, 1.0, 1000.0}) {
    const PlanRequest request = DeadWorker(64, hot);
    const auto failure = PlanFailure(request);
    ASSERT_TRUE(failure.ok()) << failure.status();
    ASSERT_EQ(failure->lost.size(), 16u);
    std::vector<int32_t> arrivals(7);
    for (const Wave& wave : failure->plan.waves) {
      for (const Move& move : wave.moves) ++arrivals[move.worker];
    }
    const auto [least, most] = std::minmax_element(arrivals.begin(), arrivals.end());
    EXPECT_LE(*most - *least, 1) << hot;
  }
}

TEST(PlanFailure, BurstsCountByEqualSplitAlone) {
  PlanRequest request = DeadWorker(64, 1000);
  request.move_budget.max_moves = 64;
  for (const Split split : {Split::kSolved, Split::kEqual}) {
    request.scenarios[0].burstiness.clear();
    const auto without = PlanFailure(request, split);
    request.scenarios[0].burstiness = {.25, .25};
    const auto with = PlanFailure(request, split);
    ASSERT_TRUE(without.ok() && with.ok());
    if (split == Split::kSolved) {
      EXPECT_EQ(with->plan.placement, without->plan.placement);
      EXPECT_EQ(with->plan.gain_tokens, without->plan.gain_tokens);
      EXPECT_EQ(with->plan.predicted[0].busiest_in_step, with->plan.predicted[0].busiest);
    } else {
      EXPECT_GT(with->plan.predicted[0].busiest_in_step, with->plan.predicted[0].busiest);
    }
  }
}

TEST(PlanFailure, NeedsNoSlotToSpare) {
  // Every slot is used, also for staging: the second replica of expert 0 makes room for expert 3.
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(1, 4)}};
  request.scenarios[0].load.tokens = {10, 10, 10, 10};
  request.topology = UniformTopology(3, 1, 2);
  for (TopologyWorker& w : request.topology.workers) w.capacity = {.slots = 2, .staging_slots = 0};
  Placement current;
  current.num_layers = 1;
  current.num_experts = 4;
  for (const TopologyWorker& w : request.topology.workers) current.workers.push_back(w.name);
  current.replicas = {{{0, 0}, 0, 0}, {{0, 0}, 1, 1}, {{0, 1}, 0, 1}, {{0, 2}, 1, 0}, {{0, 3}, 2, 1}};
  request.current = current;
  request.topology.workers.pop_back();
  const auto failure = PlanFailure(request);
  ASSERT_TRUE(failure.ok()) << failure.status();
  EXPECT_TRUE(failure->without_replica.empty());
  EXPECT_EQ(failure->plan.moves, 1);
  ASSERT_EQ(failure->plan.waves.size(), 2u);
  EXPECT_EQ(failure->plan.waves[0].drops.size(), 1u);
  EXPECT_EQ(failure->plan.waves[1].moves.size(), 1u);
}

TEST(PlanFailure, NamesWhatCannotBePlaced) {
  std::mt19937 random(9);
  PlanRequest request = Request(random, 3, 8, 4, 2);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  request.topology.workers.pop_back();
  const auto failure = PlanFailure(request);
  ASSERT_TRUE(failure.ok()) << failure.status();
  EXPECT_EQ(failure->lost.size(), 6u);
  EXPECT_EQ(failure->without_replica, failure->lost);
  EXPECT_EQ(failure->plan.moves, 0);
  request.current.reset();
  EXPECT_EQ(PlanFailure(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PlanFailure, GivesEveryExpertAReplica) {
  std::mt19937 random(2);
  PlanRequest request = Request(random, 6, 32, 8, 5);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  request.topology.workers.erase(request.topology.workers.begin() + 3);
  const auto failure = PlanFailure(request);
  ASSERT_TRUE(failure.ok()) << failure.status();
  EXPECT_GT(failure->lost.size(), 0u);
  EXPECT_TRUE(failure->without_replica.empty());
  EXPECT_EQ(failure->plan.moves, static_cast<int64_t>(failure->lost.size()));
  EXPECT_TRUE(Validate(failure->plan.placement).ok()) << Validate(failure->plan.placement);
  EXPECT_TRUE(failure->plan.gate.worth);
}

}  // namespace
}  // namespace ballast
