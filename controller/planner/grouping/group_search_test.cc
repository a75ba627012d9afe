#include "controller/planner/grouping/group_search.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "controller/planner/grouping/coactivation.h"
#include "controller/planner/grouping/cover.h"
#include "controller/planner/grouping/grouping_test_util.h"
#include "controller/planner/grouping/hops.h"
#include "controller/planner/grouping/spectral.h"
#include "controller/planner/grouping/tasks_alone.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

Packs ToPacks(const DispatchTable& table, int32_t workers) {
  Packs packs(workers);
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) packs[table.rank[r]].push_back(e);
  }
  return packs;
}

double Hops(const DispatchTable& table, const Routes& routes, int32_t workers) {
  return ScoreHops({{table}}, routes, UniformTopology(workers, 1, 1 << 10))[0].hops;
}

// Of the worst task alone, with shares chosen for it.
double TaskMaxVio(const DispatchTable& table, const LayerRoutes& layer, int32_t workers) {
  LayerSolver solver(workers, {});
  double worst = 0;
  for (const LayerRoutes::Task& task : layer.tasks) {
    std::vector<double> tokens(layer.experts);
    for (const int32_t e : task.experts) ++tokens[e];
    worst = std::max(worst, 1 / solver.Solve(table, tokens) - 1);
  }
  return worst;
}

void ExpectSound(const DispatchTable& table, std::span<const int32_t> slots) {
  std::vector<int32_t> used(slots.size());
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    EXPECT_LT(table.begin[e], table.begin[e + 1]) << "expert " << e << " has no worker";
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      ++used[table.rank[r]];
      EXPECT_GE(table.weight[r], 1);
      if (r > table.begin[e]) {
        EXPECT_LT(table.rank[r - 1], table.rank[r]);
      }
    }
  }
  for (size_t w = 0; w < slots.size(); ++w) EXPECT_LE(used[w], slots[w]);
}

// All ways to give each of `experts` a worker, `slots` on each.
void ForEachPlacement(int32_t experts, int32_t workers, int32_t slots, const std::function<void(const Packs&)>& visit) {
  Packs packs(workers);
  const std::function<void(int32_t)> place = [&](int32_t e) {
    if (e == experts) return visit(packs);
    for (int32_t w = 0; w < workers; ++w) {
      if (static_cast<int32_t>(packs[w].size()) < slots) {
        packs[w].push_back(e);
        place(e + 1);
        packs[w].pop_back();
      }
      // Workers that are empty so far are alike.
      if (packs[w].empty()) break;
    }
  };
  place(0);
}

TEST(GroupSearch, FindsTheFewestHopsOfAllPlacements) {
  for (uint32_t seed = 0; seed < 8; ++seed) {
    const Routes routes =
        RandomRoutes({.experts = 8, .top_k = 3, .tokens = 80, .community = 3, .together = .1 * (seed % 4)}, seed);
    const LayerRoutes layer = LayerOf(routes, 0);
    const int32_t workers = seed % 2 == 0 ? 4 : 2;
    const std::vector<int32_t> slots(workers, 8 / workers);
    double best = kNoLimit;
    const Cover cover(layer, workers);
    ForEachPlacement(8, workers, slots[0], [&](const Packs& packs) {
      std::vector<int64_t> visits(2 * workers), pairs(2 * workers);
      Cover::Program program;
      cover.Compile(Assign(packs, 8), program);
      cover.Evaluate(program, Cover::kAll, Cover::kNone, 1, visits, pairs);
      best = std::min(best, static_cast<double>(std::accumulate(visits.begin(), visits.end(), int64_t{0})) / 160 - 1);
    });
    const GroupedLayer grouped = GroupExpertsByRoutes({&layer, slots, {}, {}, {kNoLimit, kNoLimit}});
    EXPECT_NEAR(grouped.hops, best, 1e-9) << "seed " << seed;
    EXPECT_NEAR(Hops(grouped.table, routes, workers), best, 1e-9);
    ExpectSound(grouped.table, slots);
  }
}

TEST(GroupSearch, FindsTheFewestHopsWithASpareReplica) {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    const Routes routes = RandomRoutes(
        {.experts = 5, .top_k = 2, .tasks = 1, .tokens = 60, .community = 3, .together = .25 * seed}, seed);
    const LayerRoutes layer = LayerOf(routes, 0);
    const std::vector<int32_t> slots(2, 3);
    // With two experts a token and two workers: a token makes a hop where no worker holds both.
    double best = kNoLimit;
    for (int32_t twice = 0; twice < 5; ++twice) {
      for (uint32_t there = 0; there < 32; ++there) {
        const auto on = [&](int32_t w, int32_t e) { return e == twice || static_cast<int32_t>(there >> e & 1) == w; };
        int32_t size = 0;
        for (int32_t e = 0; e < 5; ++e) size += on(0, e);
        if (size != 3) continue;
        double hops = 0;
        for (size_t t = 0; t < 120; t += 2) {
          const int32_t a = routes.tasks[0].experts[0][t], b = routes.tasks[0].experts[0][t + 1];
          hops += !((on(0, a) && on(0, b)) || (on(1, a) && on(1, b)));
        }
        best = std::min(best, hops / 60);
      }
    }
    const GroupedLayer grouped = GroupExpertsByRoutes({&layer, slots, {}, {}, {kNoLimit, kNoLimit}});
    EXPECT_NEAR(grouped.hops, best, 1e-9) << "seed " << seed;
    ExpectSound(grouped.table, slots);
  }
}

// What is said is what dispatch does: shares are those that the search planned with.
TEST(GroupSearch, SaysWhatDispatchDoes) {
  const Routes routes =
      RandomRoutes({.experts = 32, .top_k = 4, .tasks = 3, .tokens = 2000, .community = 4, .together = .7}, 5);
  const LayerRoutes layer = LayerOf(routes, 0);
  const std::vector<int32_t> slots(8, 5);
  const GroupedLayer grouped = GroupExpertsByRoutes({&layer, slots, {}, {}, {.1, kNoLimit}, {}, 0, 0, 20000});
  ExpectSound(grouped.table, slots);
  const auto scores = ScoreHops({{grouped.table}}, routes, UniformTopology(8, 1, 64));
  EXPECT_NEAR(scores[0].hops, grouped.hops, .04 * grouped.hops);
  EXPECT_NEAR(scores[0].balance.maxvio_layer, grouped.maxvio, .03);
  EXPECT_LE(grouped.maxvio, .1 + 1e-9);
  EXPECT_NEAR(grouped.task_maxvio, TaskMaxVio(grouped.table, layer, 8), .002);
  // Far better than chance, and than pooled co-activation with as many replicas.
  EXPECT_LT(grouped.hops, .75 * RandomPlacementHops(std::vector<int32_t>(8, 4), 4));
  DispatchTable pooled = ToTable(PlaceCoactivation(layer, slots, true), 32);
  std::fill(pooled.weight.begin(), pooled.weight.end(), 1);
  EXPECT_LT(grouped.hops, Hops(pooled, routes, 8));
}

TEST(GroupSearch, EveryTaskAloneIsHeldToItsLimit) {
  const Routes routes =
      RandomRoutes({.experts = 32, .top_k = 3, .tasks = 4, .tokens = 1000, .community = 4, .together = .9}, 6);
  const LayerRoutes layer = LayerOf(routes, 0);
  const std::vector<int32_t> slots(8, 5);
  GroupProblem problem{&layer, slots};
  problem.limits = {.1, kNoLimit};
  problem.proposals = 30000;
  const GroupedLayer free = GroupExpertsByRoutes(problem);
  problem.limits.task_maxvio = .3;
  const GroupedLayer held = GroupExpertsByRoutes(problem);
  EXPECT_GT(free.task_maxvio, .6);
  EXPECT_LE(held.task_maxvio, .3);
  EXPECT_NEAR(held.task_maxvio, TaskMaxVio(held.table, layer, 8), .002);
  EXPECT_LE(held.maxvio, .12);
  EXPECT_LT(held.hops, .75 * RandomPlacementHops(std::vector<int32_t>(8, 4), 3));
  // What keeps the limit already stays where it is.
  problem.current = ToPacks(held.table, 8);
  problem.max_moves = 0;
  EXPECT_LE(GroupExpertsByRoutes(problem).task_maxvio, .3);
  // From what does not: a few moves bring it nearer, more bring it there, and none are made for nothing.
  problem.current = ToPacks(free.table, 8);
  problem.move_price = .002;
  double last = free.task_maxvio;
  for (const int32_t moves : {4, 40}) {
    problem.max_moves = moves;
    const GroupedLayer some = GroupExpertsByRoutes(problem);
    EXPECT_LE(some.moves, moves);
    EXPECT_LT(some.task_maxvio, last);
    last = some.task_maxvio;
  }
  EXPECT_LE(last, .3);
}

// Every task has a hot expert of its own, with more pairs than a worker's part, and there are fewer replicas than they
// all need: as near to the bound as can be, not as far from it as hops like.
TEST(GroupSearch, WhereNoPlacementHoldsTheLimitItIsNearTheBound) {
  Routes routes =
      RandomRoutes({.experts = 16, .top_k = 2, .tasks = 4, .tokens = 800, .community = 4, .together = .7}, 14);
  for (int32_t f = 0; f < 4; ++f) {
    std::vector<int32_t>& experts = routes.tasks[f].experts[0];
    for (size_t i = 0; i < experts.size(); i += 2) {
      if (experts[i + 1] != f) experts[i] = f;
    }
  }
  const LayerRoutes layer = LayerOf(routes, 0);
  const std::vector<int32_t> slots = {3, 3, 3, 3, 2, 2, 2, 2};
  const double least = LeastTaskMaxVio(layer, slots, {});
  EXPECT_GT(least, .9);
  GroupProblem problem{&layer, slots};
  problem.proposals = 30000;
  const GroupedLayer free = GroupExpertsByRoutes(problem);
  problem.limits.task_maxvio = .3;
  const GroupedLayer held = GroupExpertsByRoutes(problem);
  ExpectSound(held.table, slots);
  EXPECT_GT(free.task_maxvio, 1.2 * (1 + least) - 1);
  EXPECT_LE(held.task_maxvio, 1.1 * (1 + least) - 1);
}

TEST(GroupSearch, SlowWorkersGetLess) {
  const Routes routes = RandomRoutes({.experts = 16, .top_k = 2, .tokens = 1000}, 7);
  const LayerRoutes layer = LayerOf(routes, 0);
  const std::vector<int32_t> slots = {14, 6};
  const std::vector<uint32_t> speed = {3, 1};
  GroupProblem problem{&layer, slots, speed};
  const GroupedLayer grouped = GroupExpertsByRoutes(problem);
  EXPECT_LE(grouped.maxvio, .06 + 1e-9);
  Topology topology = UniformTopology(2, 1, 32);
  topology.workers[0].speed = 3;
  EXPECT_LE(ScoreHops({{grouped.table}}, routes, topology)[0].balance.maxvio_layer, .15);
}

TEST(GroupSearch, CopiesGoWhereTheyAreCheap) {
  const Routes routes = RandomRoutes({.experts = 12, .top_k = 3, .tasks = 1, .tokens = 600}, 8);
  const LayerRoutes layer = LayerOf(routes, 0);
  const std::vector<int32_t> slots = {4, 4, 4};
  const std::vector<double> price = {.1, .1, 2.8};
  GroupProblem problem{&layer, slots, {}, price};
  problem.limits = {kNoLimit, kNoLimit};
  const GroupedLayer grouped = GroupExpertsByRoutes(problem);
  // The experts that are used least are where copies are dear.
  const std::vector<double> load = MixLoad(layer);
  const Packs packs = ToPacks(grouped.table, 3);
  std::vector<double> sum;
  for (const auto& pack : packs) {
    sum.push_back(std::accumulate(pack.begin(), pack.end(), 0.0, [&](double s, int32_t e) { return s + load[e]; }));
  }
  EXPECT_LT(sum[2], sum[0]);
  EXPECT_LT(sum[2], sum[1]);
}

TEST(GroupSearch, FromAPlacementInForce) {
  const Routes before =
      RandomRoutes({.experts = 24, .top_k = 3, .tasks = 2, .tokens = 800, .community = 4, .together = .8}, 9);
  Routes after = before;
  // The mix shifts.
  after.tasks[0].weight = 4;
  const LayerRoutes old_layer = LayerOf(before, 0), layer = LayerOf(after, 0);
  const std::vector<int32_t> slots(4, 7);
  const GroupedLayer first = GroupExpertsByRoutes({&old_layer, slots, {}, {}, {}, {}, 0, 0, 20000});
  const Packs current = ToPacks(first.table, 4);
  const auto moves = [&](const GroupedLayer& grouped) {
    int32_t n = 0;
    const Packs packs = ToPacks(grouped.table, 4);
    for (int32_t w = 0; w < 4; ++w) {
      for (const int32_t e : packs[w]) n += std::find(current[w].begin(), current[w].end(), e) == current[w].end();
    }
    return n;
  };
  GroupProblem problem{&layer, slots, {}, {}, {kNoLimit, kNoLimit}, current};
  problem.proposals = 20000;
  const GroupedLayer free = GroupExpertsByRoutes(problem);
  problem.max_moves = 3;
  const GroupedLayer few = GroupExpertsByRoutes(problem);
  EXPECT_LE(moves(few), 3);
  ExpectSound(few.table, slots);
  problem.max_moves = 0;
  const GroupedLayer none = GroupExpertsByRoutes(problem);
  EXPECT_EQ(moves(none), 0);
  EXPECT_LT(few.hops, none.hops);
  EXPECT_LT(free.hops, none.hops);
  problem.max_moves = 1000;
  // Dear, but together no more than 3 % of the hops.
  problem.move_price = 1;
  const GroupedLayer dear = GroupExpertsByRoutes(problem);
  EXPECT_LE(moves(dear), moves(free));
  EXPECT_LE(dear.move_price * 28, .03 * dear.cost_before + 1e-9);
  EXPECT_GE(dear.Net(), 0);
}

// Of communities that have changed, and of workers that are not alike.
TEST(GroupSearch, AnewKeepsWhatStays_AndIsAsGoodAsFromNothing) {
  const RouteShape shape{.experts = 24, .top_k = 3, .tasks = 2, .tokens = 800, .community = 4, .together = .8};
  const Routes before = RandomRoutes(shape, 12), after = RandomRoutes(shape, 13);
  const LayerRoutes old_layer = LayerOf(before, 0), layer = LayerOf(after, 0);
  const std::vector<int32_t> slots = {7, 7, 9, 7};
  const GroupedLayer first = GroupExpertsByRoutes({&old_layer, slots, {}, {}, {}, {}, 0, 0, 20000});
  for (const LayerRoutes* routes : {&old_layer, &layer}) {
    GroupProblem problem{routes, slots};
    problem.proposals = 40000;
    const GroupedLayer nothing = GroupExpertsByRoutes(problem);
    problem.current = ToPacks(first.table, 4);
    problem.move_price = .002;
    problem.anew = true;
    const GroupedLayer anew = GroupExpertsByRoutes(problem);
    ExpectSound(anew.table, slots);
    EXPECT_LE(anew.cost, 1.05 * nothing.cost);
    const Packs packs = ToPacks(anew.table, 4);
    int64_t moves = 0;
    for (int32_t w = 0; w < 4; ++w) {
      for (const int32_t e : packs[w]) {
        moves +=
            std::find((*problem.current)[w].begin(), (*problem.current)[w].end(), e) == (*problem.current)[w].end();
      }
    }
    EXPECT_EQ(anew.moves, moves);
    // By chance a quarter or so would stay where it is.
    EXPECT_LE(moves, routes == &layer ? 18 : 14);
  }
}

TEST(GroupSearch, SameInputSameOutput) {
  const Routes routes = RandomRoutes({.experts = 16, .top_k = 3, .tokens = 300, .together = .5}, 10);
  const LayerRoutes layer = LayerOf(routes, 0);
  const std::vector<int32_t> slots(4, 5);
  const GroupedLayer a = GroupExpertsByRoutes({&layer, slots, {}, {}, {}, {}, 0, 0, 5000});
  const GroupedLayer b = GroupExpertsByRoutes({&layer, slots, {}, {}, {}, {}, 0, 0, 5000});
  EXPECT_EQ(a.table.rank, b.table.rank);
  EXPECT_EQ(a.table.weight, b.table.weight);
  EXPECT_EQ(a.hops, b.hops);
}

TEST(GroupSearch, OddShapes) {
  // More workers than experts, workers without slots, one worker, one expert.
  for (const auto& [experts, slots] :
       {std::pair<int32_t, std::vector<int32_t>>{4, {1, 1, 1, 1, 1, 1}}, {4, {0, 3, 2}}, {4, {4}}, {1, {1, 1}}}) {
    const Routes routes = RandomRoutes({.experts = experts, .top_k = 1, .tokens = 40}, 11);
    const LayerRoutes layer = LayerOf(routes, 0);
    ExpectSound(GroupExpertsByRoutes({&layer, slots}).table, slots);
  }
}

}  // namespace
}  // namespace ballast
