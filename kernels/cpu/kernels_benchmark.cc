// The kernels around the experts, each with what its header's roofline counts.
#include <benchmark/benchmark.h>

#include <numeric>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/test_data.h"
#include "kernels/elementwise.h"
#include "kernels/router.h"
#include "kernels/tokens.h"

namespace ballast {
namespace {

using internal::RandomBf16;
using internal::RandomFloats;

void SetFlops(benchmark::State& state, double flops) {
  state.counters["flops"] = benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void Route(benchmark::State& state) {
  const int tokens = static_cast<int>(state.range(0)), experts = static_cast<int>(state.range(1)), width = 256, k = 8;
  const std::vector<float> hidden = RandomFloats(tokens * width, 1);
  const std::vector<uint16_t> weights = RandomBf16(experts * width, 2, 0.1f);
  std::vector<float> logits(tokens * experts), route_weights(tokens * k);
  std::vector<int32_t> ids(tokens * k);
  ThreadPool pool(1);
  for (auto _ : state) {
    RouteTokens({experts, k, true}, hidden.data(), weights.data(), tokens, width, logits.data(), ids.data(),
                route_weights.data(), pool);
  }
  SetFlops(state, 2.0 * tokens * experts * width);
}
BENCHMARK(Route)->Args({1, 64})->Args({256, 64})->Args({256, 128});

void Attend(benchmark::State& state) {
  const AttentionShape shape = {.num_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  const int rows = static_cast<int>(state.range(0)), first = static_cast<int>(state.range(1)), width = 256;
  const int blocks = (first + rows + kKvBlockPositions - 1) / kKvBlockPositions;
  std::vector<float> storage = RandomFloats(blocks * shape.block_floats(), 1);
  const std::vector<float> queries = RandomFloats(rows * width, 2);
  std::vector<int32_t> at(blocks);
  std::iota(at.begin(), at.end(), 0);
  const KvLayer layer = {.data = storage.data(), .stride = shape.block_floats(), .blocks = at.data()};
  std::vector<float> out(queries.size());
  for (auto _ : state) AttendRows(shape, queries.data(), width, rows, first, layer, out.data(), width);
  SetFlops(state, 4.0 * width * rows * (first + 0.5 * rows));
}
BENCHMARK(Attend)->Args({1, 64})->Args({1, 512})->Args({32, 0})->Args({32, 480});

void Norm(benchmark::State& state) {
  const int n = static_cast<int>(state.range(0));
  const std::vector<float> x = RandomFloats(n, 1), weight = RandomFloats(n, 2);
  std::vector<float> out(n);
  for (auto _ : state) {
    RmsNorm(x.data(), weight.data(), 1e-6f, n, out.data());
    benchmark::ClobberMemory();
  }
  SetFlops(state, 4.0 * n);
}
BENCHMARK(Norm)->Arg(64)->Arg(256)->Arg(2048);

void LogSum(benchmark::State& state) {
  const std::vector<float> x = RandomFloats(4096, 1);
  for (auto _ : state) benchmark::DoNotOptimize(LogSumExp(x.data(), 4096));
  state.SetBytesProcessed(state.iterations() * 4096 * sizeof(float));
}
BENCHMARK(LogSum);

void Largest(benchmark::State& state) {
  const std::vector<float> x = RandomFloats(4096, 1);
  for (auto _ : state) benchmark::DoNotOptimize(ArgMax(x));
  state.SetBytesProcessed(state.iterations() * 4096 * sizeof(float));
}
BENCHMARK(Largest);

void Combine(benchmark::State& state) {
  const int width = 256, terms = 8;
  const std::vector<float> rows = RandomFloats(terms * width, 1);
  std::vector<CombineTerm> list;
  for (int i = 0; i < terms; ++i) list.push_back({rows.data() + i * width, 0.1f});
  std::vector<float> out(width);
  for (auto _ : state) {
    CombineRows(list, width, out.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * terms * width * sizeof(float));
}
BENCHMARK(Combine);

void Group(benchmark::State& state) {
  std::vector<int32_t> ids(256 * 8);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 2654435761u >> 7) & 63;
  std::vector<int32_t> begin(65), order(ids.size());
  for (auto _ : state) GroupByExpert(ids, 64, begin, order);
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids.size()));
}
BENCHMARK(Group);

void Count(benchmark::State& state) {
  std::vector<int32_t> ids(256 * 8), task(256);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 2654435761u >> 7) & 63;
  for (size_t i = 0; i < task.size(); ++i) task[i] = static_cast<int32_t>(i % 8);
  std::vector<uint64_t> counts(8 * 64);
  for (auto _ : state) CountExperts(ids, task, 8, 64, counts);
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids.size()));
}
BENCHMARK(Count);

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
