#include "controller/planner/grouping/policies.h"

#include <algorithm>
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
  // A worker has gone: its experts' layers start anew, and all have a worker.
  request.topology.workers.pop_back();
  request.slots_per_layer = 7;
  for (TopologyWorker& w : request.topology.workers) w.capacity.slots = 30;
  EXPECT_TRUE(MakePlan(policy, request).ok());
}

TEST(Policies, SayWhatTheyCannotDo) {
  const Routes routes = RandomRoutes(kShape, 3);
  PlanRequest request = Request(routes, 4, 5);
  request.replicas_per_worker = 2;
  const TaskAwarePolicy ours(routes, Short());
  const TacgPolicy tacg(routes);
  EXPECT_THAT(ours.Place(request).status().message(), HasSubstr("task-aware gives every layer as many replicas"));
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
