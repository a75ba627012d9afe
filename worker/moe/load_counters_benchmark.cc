// What counting costs a step: rows of 26 layers of 64 experts, top-6, of eight tasks, without and with routes of 16
// tokens of each kept; reports once every 1,000 steps, Take included. `row`: microseconds of a row, all layers.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "worker/moe/load_counters.h"

namespace ballast {
namespace {

constexpr int32_t kLayers = 26, kExperts = 64, kTopK = 6, kTasks = 8;

void BM_AddStep(benchmark::State& state) {
  const auto rows = static_cast<int32_t>(state.range(0));
  LoadCounters counters(kLayers, kExperts, kTopK, static_cast<int32_t>(state.range(1)));
  std::vector<RowLabel> labels;
  for (int32_t r = 0; r < rows; ++r) {
    labels.push_back({counters.InternTask("task" + std::to_string(r % kTasks)), TokenPhase::kDecode});
  }
  std::vector<std::vector<int32_t>> experts(kLayers);
  const std::vector<float> weights(static_cast<size_t>(rows) * kTopK, 1.0f / kTopK);
  std::vector<RoutedLayer> layers;
  for (int32_t l = 0; l < kLayers; ++l) {
    for (int32_t i = 0; i < rows * kTopK; ++i) experts[l].push_back((i * 11 + l * 7) % kExperts);
    layers.push_back({l, experts[l], weights});
  }
  int64_t steps = 0;
  for (auto _ : state) {
    counters.AddStep(Epoch(1), labels, {}, layers, {.balancedness = 1});
    if (++steps % 1000 == 0) benchmark::DoNotOptimize(counters.Take());
  }
  state.counters["row"] = benchmark::Counter(
      1e-6 * static_cast<double>(rows), benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_AddStep)->ArgNames({"rows", "routes"})->ArgsProduct({{1, 16, 256}, {0, 16}});

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
