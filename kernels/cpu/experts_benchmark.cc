// The expert FFN against this machine's limits, on one thread, each pair in alternated runs of one process (the other
// side of a ratio sees the same noise):
//   Batch64/HxI  flops of 64 rows through an expert, against the same three products alone in oneDNN (f32, packed
//                weights): counters gflops, library_gflops and ratio
//   Layer/HxI/E/R  R rows through each of E experts, as a step does: counter gflops
//   Batch1/HxI/E weight bytes a second of one row through each of E experts, against a plain read of as many bytes,
//   that
//                is of the cache level that the weights sit in: counters gbytes, read_gbytes and ratio
// Counters are medians of kRuns runs; ratio is the median of the runs' ratios.
#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/test_data.h"
#include "kernels/experts.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ballast {
namespace {

using internal::RandomBf16;
using internal::RandomFloats;

constexpr int kRuns = 5;
constexpr double kRunSeconds = 0.05;

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds of one call, over at least kRunSeconds.
template <typename F>
double Time(F&& call) {
  int64_t calls = 0;
  const double start = Seconds();
  double now = start;
  for (int64_t batch = 1; now - start < kRunSeconds; batch *= 2) {
    for (int64_t i = 0; i < batch; ++i) call();
    calls += batch;
    now = Seconds();
  }
  return (now - start) / static_cast<double>(calls);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Runs ours and theirs in turns; `amount` is what a call does, in the unit of the counters.
template <typename Ours, typename Theirs>
void Compare(benchmark::State& state, double amount, const char* ours_name, Ours&& ours, const char* theirs_name,
             Theirs&& theirs) {
  for (auto _ : state) {
    std::vector<double> our_rates, their_rates, ratios;
    ours();
    theirs();
    for (int run = 0; run < kRuns; ++run) {
      our_rates.push_back(amount / Time(ours));
      their_rates.push_back(amount / Time(theirs));
      ratios.push_back(our_rates.back() / their_rates.back());
    }
    state.counters[ours_name] = Median(our_rates);
    state.counters[theirs_name] = Median(their_rates);
    state.counters["ratio"] = Median(ratios);
  }
  state.SetLabel(internal::Kernels().name);
}

// y = x W of f32, packed W, one thread.
class LibraryMatmul {
 public:
  LibraryMatmul(int rows, int inputs, int outputs) : stream_(engine_) {
    omp_set_num_threads(1);
    using dnnl::memory;
    constexpr auto kF32 = memory::data_type::f32;
    const memory::desc x({rows, inputs}, kF32, memory::format_tag::ab),
        y({rows, outputs}, kF32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc product(
        dnnl::matmul::desc(x, memory::desc({inputs, outputs}, kF32, memory::format_tag::any), y), engine_);
    product_ = dnnl::matmul(product);
    memory plain(memory::desc({inputs, outputs}, kF32, memory::format_tag::ab), engine_);
    memory packed(product.weights_desc(), engine_), rows_in(x, engine_), rows_out(y, engine_);
    std::fill_n(static_cast<float*>(plain.get_data_handle()), static_cast<size_t>(inputs) * outputs, 0.01f);
    std::fill_n(static_cast<float*>(rows_in.get_data_handle()), static_cast<size_t>(rows) * inputs, 1.0f);
    dnnl::reorder(plain, packed).execute(stream_, plain, packed);
    stream_.wait();
    arguments_ = {{DNNL_ARG_SRC, rows_in}, {DNNL_ARG_WEIGHTS, packed}, {DNNL_ARG_DST, rows_out}};
  }
  void Run() { product_.execute(stream_, arguments_); }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_;
  dnnl::matmul product_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

void Batch64(benchmark::State& state) {
  const int hidden = static_cast<int>(state.range(0)), intermediate = static_cast<int>(state.range(1)), rows = 64;
  const std::vector<uint16_t> weights = RandomBf16(ExpertWeightBytes(hidden, intermediate) / 2, 1, 0.1f);
  const std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * hidden, 2);
  std::vector<const float*> pointers;
  for (int r = 0; r < rows; ++r) pointers.push_back(x.data() + static_cast<size_t>(r) * hidden);
  std::vector<float> out(x.size());
  const ExpertTask task = {weights.data(), pointers, out.data()};
  ThreadPool pool(1);
  LibraryMatmul gate(rows, hidden, intermediate), up(rows, hidden, intermediate), down(rows, intermediate, hidden);
  Compare(
      state, 6e-9 * rows * hidden * intermediate, "gflops",
      [&] {
        RunExperts({&task, 1}, hidden, intermediate, Activation::kSwiGlu, pool);
      },
      "library_gflops",
      [&] {
        gate.Run();
        up.Run();
        down.Run();
      });
}

void Layer(benchmark::State& state) {
  const int hidden = static_cast<int>(state.range(0)), intermediate = static_cast<int>(state.range(1));
  const int experts = static_cast<int>(state.range(2)), rows = static_cast<int>(state.range(3));
  const size_t elements = ExpertWeightBytes(hidden, intermediate) / 2;
  const std::vector<uint16_t> weights = RandomBf16(elements * experts, 1, 0.1f);
  const std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * hidden, 2);
  std::vector<const float*> pointers;
  for (int r = 0; r < rows; ++r) pointers.push_back(x.data() + static_cast<size_t>(r) * hidden);
  std::vector<float> out(x.size() * experts);
  std::vector<ExpertTask> tasks;
  for (int e = 0; e < experts; ++e) tasks.push_back({&weights[e * elements], pointers, &out[e * x.size()]});
  ThreadPool pool(1);
  for (auto _ : state) RunExperts(tasks, hidden, intermediate, Activation::kSwiGlu, pool);
  state.counters["gflops"] =
      benchmark::Counter(6e-9 * experts * rows * hidden * intermediate, benchmark::Counter::kIsIterationInvariantRate);
}

// Reads `bytes`, a multiple of 512, at full width.
#if defined(__x86_64__)
__attribute__((target("avx512f"))) void ReadWide(const std::byte* at, size_t bytes) {
  __m512i sums[8] = {};
  for (const std::byte* end = at + bytes; at < end; at += 512) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] = _mm512_or_si512(sums[i], _mm512_loadu_si512(at + 64 * i));
  }
  for (__m512i& sum : sums) benchmark::DoNotOptimize(sum);
}
__attribute__((target("avx2"))) void ReadNarrow(const std::byte* at, size_t bytes) {
  __m256i sums[8] = {};
  for (const std::byte* end = at + bytes; at < end; at += 256) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      sums[i] = _mm256_or_si256(sums[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * i)));
    }
  }
  for (__m256i& sum : sums) benchmark::DoNotOptimize(sum);
}
void Read(const std::byte* at, size_t bytes) {
  __builtin_cpu_supports("avx512f") ? ReadWide(at, bytes) : ReadNarrow(at, bytes);
}
#endif

void Batch1(benchmark::State& state) {
  const int hidden = static_cast<int>(state.range(0)), intermediate = static_cast<int>(state.range(1));
  const int experts = static_cast<int>(state.range(2));
  const size_t bytes = ExpertWeightBytes(hidden, intermediate);
  std::vector<uint16_t> storage = RandomBf16(bytes / 2 + 32, 1, 0.1f);
  storage.resize(bytes / 2 * experts + 32);
  // Slots are aligned; so are these.
  auto* weights = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(storage.data()) + 63) / 64 * 64);
  for (int e = 1; e < experts; ++e) std::copy_n(weights, bytes / 2, weights + e * (bytes / 2));
  const std::vector<float> x = RandomFloats(hidden, 2);
  const float* row = x.data();
  std::vector<float> out(static_cast<size_t>(experts) * hidden);
  std::vector<ExpertTask> tasks;
  for (int e = 0; e < experts; ++e) {
    tasks.push_back({weights + e * (bytes / 2), {&row, 1}, out.data() + static_cast<size_t>(e) * hidden});
  }
  ThreadPool pool(1);
  const size_t total = bytes * experts;
  Compare(
      state, 1e-9 * total, "gbytes", [&] { RunExperts(tasks, hidden, intermediate, Activation::kSwiGlu, pool); },
      "read_gbytes", [&] { Read(reinterpret_cast<const std::byte*>(weights), total / 512 * 512); });
}

// The shapes of olmoe-9m, qwen3moe-28m and Qwen3-30B-A3B.
BENCHMARK(Batch64)->Args({192, 64})->Args({256, 64})->Args({2048, 768})->Iterations(1)->Unit(benchmark::kMillisecond);
// One expert again and again (L2), a layer's experts one after another (L3), and as many large ones as L3 holds.
BENCHMARK(Batch1)
    ->Args({192, 64, 1})
    ->Args({192, 64, 32})
    ->Args({256, 64, 1})
    ->Args({256, 64, 64})
    ->Args({2048, 768, 1})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

BENCHMARK(Layer)
    ->ArgsProduct({{192}, {64}, {32}, {1, 2, 3, 4, 5, 6, 8, 16, 32}})
    ->ArgsProduct({{256}, {64}, {64}, {1, 2, 4, 8, 32}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
