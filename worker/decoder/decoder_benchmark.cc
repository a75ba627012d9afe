// Whole steps with all experts in this process, of the models in the tree and in the shared folder.
//   Step/THREADS/SEQUENCES/ROWS/START  each sequence adds ROWS positions after START; one row's logits a sequence
// Counters: tokens a second, and the share of the time spent in MoE layers.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "worker/decoder/model_test_util.h"

namespace ballast {
namespace {

class TimedMoe final : public MoeLayer {
 public:
  explicit TimedMoe(MoeLayer& moe) : moe_(moe) {}
  absl::Status Run(int moe_layer, const float* hidden, int rows, float* out) override {
    const auto start = std::chrono::steady_clock::now();
    absl::Status status = moe_.Run(moe_layer, hidden, rows, out);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return status;
  }
  double seconds = 0;

 private:
  MoeLayer& moe_;
};

void Step(benchmark::State& state, const std::string& dir) {
  const int threads = static_cast<int>(state.range(0)), count = static_cast<int>(state.range(1));
  const int rows = static_cast<int>(state.range(2)), start = static_cast<int>(state.range(3));
  TestModel model(dir, threads, count * rows);
  TimedMoe moe(*model.moe);
  std::vector<int32_t> ids(count * rows), wanted;
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 2654435761u % model.config().vocab_size);
  std::vector<std::unique_ptr<KvSequence>> kv;
  std::vector<StepSequence> sequences;
  for (int s = 0; s < count; ++s) {
    kv.push_back(std::make_unique<KvSequence>(*model.cache));
    BALLAST_CHECK(kv[s]->Reserve(start + rows).ok());
    kv[s]->Commit(start);
    sequences.push_back({kv[s].get(), s * rows, rows, start});
    wanted.push_back(s * rows + rows - 1);
  }
  std::vector<float> logits(wanted.size() * model.config().vocab_size);
  const auto begin = std::chrono::steady_clock::now();
  for (auto _ : state) {
    const absl::Status status = model.decoder->Forward({ids, sequences, wanted}, moe, logits.data());
    BALLAST_CHECK(status.ok()) << status.ToString();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  state.counters["tokens"] =
      benchmark::Counter(static_cast<double>(ids.size()), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["moe_share"] = moe.seconds / seconds;
}

void Register(const std::string& name, const std::string& dir) {
  auto* bench = benchmark::RegisterBenchmark((name + "/Step").c_str(), Step, dir)->UseRealTime();
  for (int threads : {1, 2}) {
    bench->Args({threads, 1, 1, 100})->Args({threads, 8, 1, 100})->Args({threads, 64, 1, 100});
    bench->Args({threads, 4, 64, 0})->Args({threads, 1, 256, 256});
  }
  bench->Unit(benchmark::kMillisecond);
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  ballast::Register("olmoe-9m", "testdata/olmoe-9m");
  if (const char* shared = std::getenv("BALLAST_SHARED")) {
    const std::string dir = std::string(shared) + "/model/qwen3moe-28m";
    if (std::filesystem::exists(dir)) ballast::Register("qwen3moe-28m", dir);
  }
  benchmark::RunSpecifiedBenchmarks();
}
