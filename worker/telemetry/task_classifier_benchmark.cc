// What telling a prompt's task takes of the step that does it: routes of as many tokens as are looked at, in the shapes
// of DeepSeek-V2-Lite (26 layers of 64 experts, top-6) and DeepSeek-V3 (58 of 256, top-8), 8 and 32 tasks.
#include <cstdint>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "proto/base/check.h"
#include "worker/telemetry/task_classifier.h"

namespace ballast {
namespace {

void Classify(benchmark::State& state) {
  const auto layers = static_cast<int32_t>(state.range(0)), experts = static_cast<int32_t>(state.range(1)),
             top_k = static_cast<int32_t>(state.range(2)), tasks = static_cast<int32_t>(state.range(3)),
             tokens = static_cast<int32_t>(state.range(4));
  uint32_t random = 1;
  const auto below = [&](int32_t n) {
    random = random * 1664525 + 1013904223;
    return static_cast<int32_t>((random >> 8) % static_cast<uint32_t>(n));
  };
  v1::TaskProfiles profiles;
  for (int32_t t = 0; t < tasks; ++t) {
    v1::TaskProfile& profile = *profiles.add_tasks();
    profile.set_task(std::to_string(t));
    for (int32_t i = 0; i < layers * experts; ++i) profile.add_tokens(static_cast<uint32_t>(below(1000)));
  }
  const auto table = ProfileTable::Create(profiles, layers, experts);
  BALLAST_CHECK(table.ok()) << table.status();
  // A prompt of one task keeps to part of the experts.
  std::vector<int32_t> routes;
  for (int32_t i = 0; i < tokens * layers; ++i) {
    const int32_t first = below(experts / 4);
    for (int32_t k = 0; k < top_k; ++k) routes.push_back((first + k) % experts);
  }
  for (auto _ : state) benchmark::DoNotOptimize(table->Classify(routes, top_k, .9));
}
BENCHMARK(Classify)
    ->ArgNames({"layers", "experts", "top_k", "tasks", "tokens"})
    ->ArgsProduct({{26}, {64}, {6}, {8, 32}, {8, 64, 256}})
    ->ArgsProduct({{58}, {256}, {8}, {8, 32}, {8, 64, 256}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
