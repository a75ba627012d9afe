#include "controller/planner/grouping/policies.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "controller/planner/grouping/grouping_test_util.h"
#include "controller/planner/grouping/hops.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr RouteShape kShape = {
    .layers = 3, .experts = 16, .top_k = 3, .tasks = 2, .tokens = 600, .community = 4, .together = .85};

PlanRequest Request(const Routes& routes, int32_t workers, int32_t slots) {
  PlanRequest request;
  request.scenarios = LoadsByTask(routes);
  request.topology = UniformTopology(workers, 1, slots * routes.layers);
  request.slots_per_layer = slots;
  request.expert_bytes = 1000;
  return request;
}

TaskAwareOptions Short() {
  TaskAwareOptions options;
  options.limits.maxvio = .1;
  options.proposals = 8000;
  return options;
}

TEST(TaskAware, PlansWithItsShares) {
  const Routes routes = RandomRoutes(kShape, 1);
  const PlanRequest request = Request(routes, 4, 5);
  const TaskAwarePolicy ours(routes, Short());
  const TacgPolicy published(routes);
  const auto plan = MakePlan(ours, request), tacg = MakePlan(published, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_TRUE(tacg.ok()) << tacg.status();
  EXPECT_EQ(plan->policy, "task-aware");
  EXPECT_EQ(tacg->policy, "tacg");
  EXPECT_EQ(plan->placement.replicas.size(), 60u);
  const auto score = [&](const Plan& p) {
    return ScoreHops(Onto(p.placement, request.topology), routes, request.topology)[0];
  };
  EXPECT_LT(score(*plan).hops, score(*tacg).hops);
  EXPECT_LT(score(*plan).balance.maxvio_layer, .15);
  EXPECT_LT(score(*tacg).hops, 3 * RandomPlacementHops(std::vector<int32_t>(4, 4), 3));
  // Two spare slots a worker and layer at most, two replicas more for each expert that has any.
  EXPECT_LE(tacg->placement.replicas.size(), 60u);
}

TEST(TaskAware, FromThePlacementInForce) {
  const Routes routes = RandomRoutes(kShape, 2);
  PlanRequest request = Request(routes, 4, 5);
  const TaskAwarePolicy policy(routes, Short());
  const auto first = MakePlan(policy, request);
  ASSERT_TRUE(first.ok()) << first.status();
  request.current = first->placement;
  // The tasks change: from where they were, not anew.
  Routes later = RandomRoutes(kShape, 2);
  later.tasks[0].weight = 3;
  const TaskAwarePolicy again(later, Short());
  const auto next = MakePlan(again, request);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_LT(next->moves, 30);
  // A budget is kept, and what it buys is the best of it.
  TaskAwareOptions few = Short();
  few.limits.maxvio = std::numeric_limits<double>::infinity();
  const auto free = MakePlan(TaskAwarePolicy(later, few), request);
  ASSERT_TRUE(free.ok()) << free.status();
  int64_t last_moves = 0;
  double last_hops = 0;
  for (const int64_t moves : {1, 4, 1000}) {
    few.budget.max_moves = moves;
    const auto plan = MakePlan(TaskAwarePolicy(later, few), request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->moves, moves);
    EXPECT_GE(plan->moves, last_moves);
    const double hops = ScoreHops(Onto(plan->placement, request.topology), later, request.topology)[0].hops;
    if (last_moves > 0) {
      EXPECT_LT(hops, last_hops + .02);
    }
    last_moves = plan->moves;
    last_hops = hops;
  }
  EXPECT_EQ(last_moves, free->moves);
  // A worker has gone: its experts find another one.
  request.topology.workers.pop_back();
  request.slots_per_layer = 7;
  for (TopologyWorker& w : request.topology.workers) w.capacity.slots = 30;
  EXPECT_TRUE(MakePlan(policy, request).ok());
}

// What tokens choose together has nothing to do with what stands: changes one by one can end half above what a
// placement from nothing reaches, layers placed anew do not.
TEST(TaskAware, LayersAreAnewWhereFewMovesDoNotGetThere) {
  const RouteShape shape{
      .layers = 2, .experts = 32, .top_k = 4, .tasks = 3, .tokens = 800, .community = 4, .together = .9};
  for (const auto& [workers, slots, seed] : {std::tuple(8, 4, 6), {4, 8, 10}, {8, 5, 8}}) {
    const Routes before = RandomRoutes(shape, seed), after = RandomRoutes(shape, seed + 1);
    PlanRequest request = Request(after, workers, slots);
    TaskAwareOptions options = Short();
    options.limits = {.maxvio = .3};
    const auto first = MakePlan(TaskAwarePolicy(before, options), request);
    const auto own = MakePlan(TaskAwarePolicy(after, options), request);
    ASSERT_TRUE(first.ok() && own.ok()) << first.status() << own.status();
    request.current = first->placement;
    const auto hops = [&](const Plan& plan) {
      return ScoreHops(Onto(plan.placement, request.topology), after, request.topology)[0].hops;
    };
    const auto next = MakePlan(TaskAwarePolicy(after, options), request);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_LE(hops(*next), 1.03 * hops(*own)) << workers << " workers, seed " << seed;
    // Within a budget: layer by layer, as far as it goes.
    options.budget.max_moves = next->moves / 2;
    const auto some = MakePlan(TaskAwarePolicy(after, options), request);
    ASSERT_TRUE(some.ok()) << some.status();
    EXPECT_LE(some->moves, options.budget.max_moves);
    EXPECT_LT(hops(*some), hops(*first));
  }
}

TEST(TaskAware, ReplicasGoToTheLayersThatGain) {
  Routes routes = RandomRoutes(kShape, 4);
  // Layer 1: every token chooses experts 0, 1 and 2, which then are best on every worker.
  for (TaskRoutes& task : routes.tasks) {
    for (size_t i = 0; i < task.experts[1].size(); ++i) task.experts[1][i] = static_cast<int32_t>(i % 3);
  }
  PlanRequest request = Request(routes, 4, 4);
  request.slots_per_layer = 0;
  request.replicas_per_worker = 3;
  for (TopologyWorker& w : request.topology.workers) w.capacity = {3 * 4 + 3 + 2, 2};
  const auto plan = MakePlan(TaskAwarePolicy(routes, Short()), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->placement.replicas.size(), 3u * 16 + 3 * 4);
  std::vector<int32_t> in_layer(3);
  for (const Replica& r : plan->placement.replicas) ++in_layer[r.expert.layer];
  request.replicas_per_worker = 4;
  EXPECT_THAT(TaskAwarePolicy(routes, Short()).Place(request).status().message(), HasSubstr("has room for 15"));
  EXPECT_GE(in_layer[1], 16 + 2 * 4) << in_layer[0] << " " << in_layer[1] << " " << in_layer[2];
}

TEST(FitPacks, SpareReplicasGiveWayFirst) {
  DispatchTable table;
  // Expert 0 on 0 and 1, expert 1 on 0, expert 2 on 0 and 1, expert 3 nowhere.
  table.begin = {0, 2, 3, 5, 5};
  table.rank = {0, 1, 0, 0, 1};
  table.weight = {1, 1, 1, 1, 1};
  const std::vector<double> load = {.4, .3, .2, .1};
  EXPECT_THAT(FitPacks(table, std::vector<int32_t>{3, 3}, load),
              ElementsAre(ElementsAre(0, 1, 2), ElementsAre(0, 2, 3)));
  // Worker 0's spare of expert 2 is the lightest.
  EXPECT_THAT(FitPacks(table, std::vector<int32_t>{2, 3}, load), ElementsAre(ElementsAre(0, 1), ElementsAre(0, 2, 3)));
  // Neither has room for expert 3: a spare replica makes some.
  EXPECT_THAT(FitPacks(table, std::vector<int32_t>{2, 2}, load), ElementsAre(ElementsAre(1, 3), ElementsAre(0, 2)));
  EXPECT_THAT(FitPacks(table, std::vector<int32_t>{1, 3}, load), ElementsAre(ElementsAre(1), ElementsAre(0, 2, 3)));
}

TEST(Policies, SayWhatTheyCannotDo) {
  const Routes routes = RandomRoutes(kShape, 3);
  PlanRequest request = Request(routes, 4, 5);
  request.replicas_per_worker = 2;
  const TacgPolicy tacg(routes);
  EXPECT_THAT(tacg.Place(request).status().message(), HasSubstr("tacg gives every layer as many replicas"));
  request.replicas_per_worker.reset();
  RouteShape other = kShape;
  other.layers = 2;
  const Routes fewer = RandomRoutes(other, 3);
  EXPECT_THAT(TaskAwarePolicy(fewer).Place(request).status().message(), HasSubstr("routes of 2 layers and 16 experts"));
  const PlanRequest wide = Request(routes, 20, 1);
  EXPECT_EQ(tacg.Place(wide).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CopyPrices, WorkersThatAreFarFromMostCostMore) {
  for (const int32_t nodes : {1, 2, 3, 6}) EXPECT_THAT(CopyPrices(UniformTopology(12, nodes, 8)), IsEmpty());
  Topology topology = UniformTopology(3, 1, 8);
  topology.workers[2].node = 1;
  topology.node_bytes_per_second = 4e9;
  topology.cross_node_bytes_per_second = 1e9;
  // 1/4 + 1, 1/4 + 1 and 1 + 1.
  EXPECT_THAT(CopyPrices(topology), ElementsAre(DoubleEq(1.25 / 1.5), DoubleEq(1.25 / 1.5), DoubleEq(2 / 1.5)));
}

TEST(AlignLayers, TokensStayNearAndNothingElseChanges) {
  // Every layer's token chooses the experts of its task's half, which each layer has under other numbers and names.
  Routes routes{3, 8, 2, {}};
  const int32_t shift[] = {0, 3, 5};
  for (int32_t f = 0; f < 2; ++f) {
    TaskRoutes task{f == 0 ? "a" : "b", 1, std::vector<std::vector<int32_t>>(3)};
    for (int32_t t = 0; t < 40; ++t) {
      for (int32_t l = 0; l < 3; ++l) {
        for (const int32_t i : {t % 4, (t + 1) % 4}) task.experts[l].push_back((4 * f + i + shift[l]) % 8);
      }
    }
    routes.tasks.push_back(std::move(task));
  }
  const auto table = [&](int32_t layer, bool swapped) {
    Packs packs(2);
    for (int32_t e = 0; e < 8; ++e) packs[(e < 4) == swapped].push_back((e + shift[layer]) % 8);
    DispatchTable out = ToTable(packs, 8);
    std::fill(out.weight.begin(), out.weight.end(), 1);
    return out;
  };
  std::vector<DispatchTable> layers = {table(0, true), table(1, false), table(2, true)};
  const Topology topology = UniformTopology(2, 1, 16);
  const auto before = ScoreHops(layers, routes, topology);
  AlignLayers(routes, std::vector<int32_t>{0, 0}, layers);
  // The first task's experts are on worker 0, in every layer.
  for (int32_t l = 0; l < 3; ++l) {
    EXPECT_EQ(layers[l].rank, table(l, false).rank) << "layer " << l;
  }
  const auto after = ScoreHops(layers, routes, topology);
  EXPECT_EQ(before[0].hops, after[0].hops);
  EXPECT_EQ(before[0].balance.maxvio_layer, after[0].balance.maxvio_layer);
  // Workers that differ keep their names.
  layers = {table(0, true), table(1, false), table(2, true)};
  AlignLayers(routes, std::vector<int32_t>{0, 1}, layers);
  EXPECT_EQ(layers[0].rank, table(0, true).rank);
}

}  // namespace
}  // namespace ballast
