// Incremental and failure plans on synthetic skewed loads, one thread.
#include <cmath>
#include <random>

#include "benchmark/benchmark.h"
#include "controller/planner/eplb.h"
#include "controller/planner/failure.h"
#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// A load, the placement that `policy` makes for it, and then the load as it has drifted: every expert's tokens times a
// factor of its own.
PlanRequest Drifted(const PlannerPolicy& policy, int32_t layers, int32_t experts, int32_t workers, int32_t slots) {
  std::mt19937 random(1);
  std::lognormal_distribution<double> tokens(6, 1.2);
  std::lognormal_distribution<double> drift(0, 0.4);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(layers, experts)}};
  for (double& t : request.scenarios[0].load.tokens) t = std::floor(tokens(random));
  request.topology = UniformTopology(workers, 4, slots * layers);
  request.expert_bytes = 88'000'000;
  request.current = MakePlan(policy, request)->placement;
  for (double& t : request.scenarios[0].load.tokens) t = std::floor(t * drift(random));
  return request;
}

// Arguments: layers, experts, workers, slots of a layer on each, moves.
PlanRequest Request(const PlannerPolicy& policy, const benchmark::State& state) {
  return Drifted(policy, static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1)),
                 static_cast<int32_t>(state.range(2)), static_cast<int32_t>(state.range(3)));
}

void Increments(benchmark::State& state, const PlannerPolicy& policy) {
  PlanRequest request = Request(policy, state);
  request.move_budget.max_moves = state.range(4);
  Plan last;
  for (auto _ : state) {
    auto plan = MakePlan(policy, request);
    BALLAST_CHECK(plan.ok()) << plan.status();
    last = *std::move(plan);
  }
  request.move_budget = {};
  const auto whole = MakePlan(policy, request);
  state.counters["moves"] = static_cast<double>(last.moves);
  state.counters["gain"] = last.gain;
  state.counters["whole_moves"] = static_cast<double>(whole->moves);
  state.counters["whole_gain"] = whole->gain;
}

// The whole plan: changes, waves, and the scores of both placements.
void BM_IncrementEqualSplit(benchmark::State& state) { Increments(state, EplbPolicy(1, Split::kEqual)); }
void BM_IncrementShares(benchmark::State& state) { Increments(state, CostAwarePolicy()); }
// The changes alone.
void Search(benchmark::State& state, const PlannerPolicy& policy) {
  const PlanRequest request = Request(policy, state);
  const IncrementLimits limits = LimitsOf(request, state.range(4));
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        FindIncrement(*request.current, request.topology, request.scenarios, policy.split(request), limits));
  }
}
void BM_SearchEqualSplit(benchmark::State& state) { Search(state, EplbPolicy(1, Split::kEqual)); }
void BM_SearchShares(benchmark::State& state) { Search(state, CostAwarePolicy()); }

void Shapes(benchmark::internal::Benchmark* b) {
  b->Args({58, 256, 32, 9, 16})
      ->Args({58, 256, 32, 9, 64})
      ->Args({58, 256, 32, 9, 256})
      ->Args({61, 512, 1024, 2, 64})
      ->Unit(benchmark::kMillisecond);
}
BENCHMARK(BM_IncrementEqualSplit)->Apply(Shapes);
BENCHMARK(BM_IncrementShares)->Apply(Shapes);
BENCHMARK(BM_SearchEqualSplit)->Apply(Shapes);
BENCHMARK(BM_SearchShares)->Apply(Shapes);

// Arguments: layers, experts, workers, slots, dead ones.
void BM_Failure(benchmark::State& state) {
  PlanRequest request = Request(CostAwarePolicy(), state);
  for (int64_t i = 0; i < state.range(4); ++i) {
    request.topology.workers.erase(request.topology.workers.begin() + 3 * i + 1);
  }
  size_t lost = 0;
  for (auto _ : state) {
    const auto failure = PlanFailure(request);
    BALLAST_CHECK(failure.ok()) << failure.status();
    lost = failure->lost.size();
  }
  state.counters["moves"] = static_cast<double>(lost);
}
BENCHMARK(BM_Failure)
    ->Args({58, 256, 32, 9, 1})
    ->Args({58, 256, 32, 9, 4})
    ->Args({61, 512, 1024, 2, 8})
    ->Unit(benchmark::kMillisecond);

void BM_Score(benchmark::State& state) {
  const PlanRequest request = Request(CostAwarePolicy(), state);
  for (auto _ : state) {
    benchmark::DoNotOptimize(ScoreLoad(*request.current, request.scenarios[0], request.topology));
  }
}
BENCHMARK(BM_Score)->Args({58, 256, 32, 9, 0})->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
