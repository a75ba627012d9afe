// Planning speed on synthetic skewed loads, one thread.
#include <cmath>
#include <random>

#include "benchmark/benchmark.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

PlanRequest Request(int32_t layers, int32_t experts, int32_t workers, int32_t slots, double skew) {
  std::mt19937 random(1);
  std::lognormal_distribution<double> tokens(6, skew);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(layers, experts)}};
  for (double& t : request.scenarios[0].load.tokens) t = std::floor(tokens(random));
  request.topology = UniformTopology(workers, 1, slots * layers);
  return request;
}

// Arguments: layers, experts, workers, slots of a layer on each.
void Shapes(benchmark::internal::Benchmark* b) {
  b->Args({58, 256, 32, 9})->Args({58, 256, 64, 5})->Args({61, 512, 1024, 2})->Unit(benchmark::kMillisecond);
}

PlanRequest Request(const benchmark::State& state) {
  return Request(static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1)),
                 static_cast<int32_t>(state.range(2)), static_cast<int32_t>(state.range(3)), 1.2);
}

// The published algorithm alone, without placing, relabelling or scoring.
void BM_PublishedEplb(benchmark::State& state) {
  const PlanRequest request = Request(state);
  const LoadMatrix& load = request.scenarios[0].load;
  for (auto _ : state) {
    for (int32_t l = 0; l < load.layers; ++l) {
      const auto tokens = load.layer(l);
      const std::vector<float> weights(tokens.begin(), tokens.end());
      const auto workers = static_cast<int32_t>(state.range(2));
      benchmark::DoNotOptimize(
          RebalanceExperts(weights, workers * static_cast<int32_t>(state.range(3)), 1, 1, workers));
    }
  }
}
BENCHMARK(BM_PublishedEplb)->Apply(Shapes);

// Placement and solved shares of every layer.
void BM_LevelWithShares(benchmark::State& state) {
  const PlanRequest request = Request(state);
  const LoadMatrix& load = request.scenarios[0].load;
  const auto workers = static_cast<int32_t>(state.range(2));
  for (auto _ : state) {
    for (int32_t l = 0; l < load.layers; ++l) {
      DispatchTable table =
          ToTable(PlaceLevel(load.layer(l), workers, static_cast<int32_t>(state.range(3))), load.experts);
      ShareSolver solver(table, workers);
      std::vector<int64_t> flow(table.num_replicas());
      benchmark::DoNotOptimize(solver.Solve(ToIntegers(load.layer(l)), flow));
      FlowToWeights(flow, table);
      benchmark::DoNotOptimize(table.weight.data());
    }
  }
}
BENCHMARK(BM_LevelWithShares)->Apply(Shapes);

// A whole plan: placement, shares, scores and bounds.
void BM_MakePlan(benchmark::State& state) {
  const PlanRequest request = Request(state);
  for (auto _ : state) benchmark::DoNotOptimize(MakePlan(CostAwarePolicy(), request));
}
BENCHMARK(BM_MakePlan)->Apply(Shapes);

// One layer's shares from one step's counts, as every worker does it: 256 experts, 32 workers of 9 slots.
void BM_SharesOfAStep(benchmark::State& state) {
  const PlanRequest request = Request(1, 256, 32, 9, 1.2);
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
