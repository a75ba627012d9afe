// Planning speed and the balance that it buys, on synthetic skewed loads, one thread. `balancedness` is of the load
// that is planned for (the worst of them), with the plan's own split; `bound` is proven.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "proto/base/check.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// `scenarios` loads that have some of their skew in common.
PlanRequest Request(int32_t layers, int32_t experts, int32_t workers, int32_t slots, int32_t scenarios) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  PlanRequest request;
  std::vector<double> common(static_cast<size_t>(layers) * experts);
  for (double& c : common) c = normal(random);
  for (int32_t s = 0; s < scenarios; ++s) {
    request.scenarios.push_back({"load" + std::to_string(s), 1, LoadMatrix(layers, experts)});
    for (size_t i = 0; i < common.size(); ++i) {
      const double own = scenarios == 1 ? common[i] : .8 * common[i] + .6 * normal(random);
      request.scenarios[s].load.tokens[i] = std::floor(std::exp(6 + .9 * own));
    }
  }
  request.topology = UniformTopology(workers, 1, slots * layers);
  return request;
}

PlanRequest Request(const benchmark::State& state, int32_t scenarios = 1) {
  return Request(static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1)),
                 static_cast<int32_t>(state.range(2)), static_cast<int32_t>(state.range(3)), scenarios);
}

// Arguments: layers, experts, workers, slots of a layer on each.
void Shapes(benchmark::internal::Benchmark* b) {
  b->Args({58, 256, 32, 9})->Args({58, 256, 64, 5})->Args({58, 256, 144, 2});
  b->Args({58, 256, 320, 2})->Args({61, 512, 1024, 2})->Unit(benchmark::kMillisecond);
}
void SmallShapes(benchmark::internal::Benchmark* b) {
  b->Args({58, 256, 32, 9})->Args({58, 256, 64, 5})->Unit(benchmark::kMillisecond);
}

// The published algorithm alone, in its own arithmetic, without placing, relabelling or scoring.
void BM_PublishedEplb(benchmark::State& state) {
  const PlanRequest request = Request(state);
  const LoadMatrix& load = request.scenarios[0].load;
  const auto workers = static_cast<int32_t>(state.range(2));
  const auto slots = static_cast<int32_t>(state.range(3));
  std::vector<std::vector<int32_t>> physical(load.layers);
  for (auto _ : state) {
    for (int32_t l = 0; l < load.layers; ++l) {
      const auto tokens = load.layer(l);
      const std::vector<float> weights(tokens.begin(), tokens.end());
      physical[l] = RebalanceExperts(weights, workers * slots, 1, 1, workers);
      benchmark::DoNotOptimize(physical[l].data());
    }
  }
  double sum = 0;
  for (int32_t l = 0; l < load.layers; ++l) {
    std::vector<double> count(load.experts);
    for (const int32_t e : physical[l]) ++count[e];
    std::vector<double> loads(workers);
    for (size_t p = 0; p < physical[l].size(); ++p) {
      const int32_t e = physical[l][p];
      loads[p / slots] += load.layer(l)[e] / count[e];
    }
    sum += Balancedness(loads);
  }
  state.counters["balancedness"] = sum / load.layers;
}
BENCHMARK(BM_PublishedEplb)->Apply(Shapes);

// Placement and solved shares of every layer.
void BM_LevelWithShares(benchmark::State& state) {
  const PlanRequest request = Request(state);
  const LoadMatrix& load = request.scenarios[0].load;
  const std::vector<int32_t> slots(state.range(2), static_cast<int32_t>(state.range(3)));
  for (auto _ : state) {
    for (int32_t l = 0; l < load.layers; ++l) {
      DispatchTable table = LevelTable(load.layer(l), slots);
      if (table.weight[0] == 0) SolveWeights(load.layer(l), {}, static_cast<int32_t>(slots.size()), table);
      benchmark::DoNotOptimize(table.weight.data());
    }
  }
}
BENCHMARK(BM_LevelWithShares)->Apply(Shapes);

void Plan(benchmark::State& state, const PlannerPolicy& policy, const PlanRequest& request) {
  absl::StatusOr<ballast::Plan> plan;
  for (auto _ : state) plan = MakePlan(policy, request);
  BALLAST_CHECK(plan.ok()) << plan.status();
  double worst = 1;
  double solved = 1;
  for (const LoadScore& score : plan->predicted) {
    worst = std::min(worst, score.balancedness);
    solved = std::min(solved, score.balancedness_solved);
  }
  state.counters["balancedness"] = worst;
  state.counters["solved_shares"] = solved;
  state.counters["bound"] = plan->predicted[0].upper_bound;
}

// A whole plan: placement, shares, scores and bounds.
void BM_PlanWithShares(benchmark::State& state) { Plan(state, CostAwarePolicy(), Request(state)); }
BENCHMARK(BM_PlanWithShares)->Apply(Shapes);

// The same for an engine that splits equally.
void BM_PlanForEqualSplit(benchmark::State& state) { Plan(state, CostAwarePolicy(0, Split::kEqual), Request(state)); }
BENCHMARK(BM_PlanForEqualSplit)->Apply(SmallShapes);

// One placement for six loads.
void BM_PlanForSixLoads(benchmark::State& state) { Plan(state, CostAwarePolicy(), Request(state, 6)); }
BENCHMARK(BM_PlanForSixLoads)->Apply(SmallShapes)->Iterations(1);

// EPLB's plan for the same six, of their sum.
void BM_EplbForSixLoads(benchmark::State& state) { Plan(state, EplbPolicy(1, Split::kEqual), Request(state, 6)); }
BENCHMARK(BM_EplbForSixLoads)->Apply(SmallShapes);

// Four replicas a worker over all layers.
PlanRequest BudgetRequest(const benchmark::State& state) {
  PlanRequest request = Request(state);
  const LoadMatrix& load = request.scenarios[0].load;
  request.replicas_per_worker = 4;
  request.topology =
      UniformTopology(static_cast<int32_t>(state.range(2)), 1,
                      load.layers * load.experts / static_cast<int32_t>(state.range(2)) + *request.replicas_per_worker);
  return request;
}
void BM_PlanUnderABudget(benchmark::State& state) { Plan(state, CostAwarePolicy(), BudgetRequest(state)); }
BENCHMARK(BM_PlanUnderABudget)->Apply(SmallShapes)->Iterations(1);
void BM_CraftUnderABudget(benchmark::State& state) { Plan(state, CraftPolicy(), BudgetRequest(state)); }
BENCHMARK(BM_CraftUnderABudget)->Apply(SmallShapes);

// One layer's shares from one step's counts, as every worker does it: 256 experts, 32 workers of 9 slots.
void BM_SharesOfAStep(benchmark::State& state) {
  const PlanRequest request = Request(1, 256, 32, 9, 1);
  const auto tokens = request.scenarios[0].load.layer(0);
  const DispatchTable table = ToTable(PlaceLevel(tokens, 32, 9), 256);
  ShareSolver solver(table, 32);
  std::mt19937 random(2);
  double total = 0;
  for (const double t : tokens) total += t;
  std::vector<std::vector<int64_t>> steps(64, std::vector<int64_t>(256));
  for (auto& counts : steps) {
    for (size_t e = 0; e < counts.size(); ++e) {
      counts[e] =
          std::poisson_distribution<int64_t>(tokens[e] / total * 8 * static_cast<double>(state.range(0)))(random);
    }
  }
  std::vector<int64_t> flow(table.num_replicas());
  size_t step = 0;
  for (auto _ : state) benchmark::DoNotOptimize(solver.Solve(steps[step++ % steps.size()], flow));
}
BENCHMARK(BM_SharesOfAStep)->Arg(1024)->Arg(4096)->Arg(16384)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
