// What choosing a token costs the step: logits of Qwen3's vocabulary in an order of no meaning, with temperature .7.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "worker/decoder/sampling.h"

namespace ballast {
namespace {

// Probabilities fall with the rank's power `tenths` / 10: 15 is much like a language model's, 0 is flat.
void Sample(benchmark::State& state) {
  const int tenths = static_cast<int>(state.range(0));
  std::mt19937 random(1);
  std::vector<float> logits(151936);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = -0.7f * 0.1f * static_cast<float>(tenths) * std::log(static_cast<float>(i + 1));
  }
  std::shuffle(logits.begin(), logits.end(), random);
  Sampler sampler;
  int64_t position = 0;
  const SamplingOptions options = {.temperature = 0.7f, .top_p = 0.01f * static_cast<float>(state.range(1)), .seed = 1};
  for (auto _ : state) benchmark::DoNotOptimize(sampler.Sample(logits, options, ++position));
}
BENCHMARK(Sample)->ArgNames({"power", "percent"})->ArgsProduct({{15, 5, 0}, {100, 90}})->Unit(benchmark::kMicrosecond);

void Greedy(benchmark::State& state) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> logits(151936);
  for (float& v : logits) v = normal(random);
  Sampler sampler;
  for (auto _ : state) benchmark::DoNotOptimize(sampler.Sample(logits, {}, 1));
}
BENCHMARK(Greedy)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
