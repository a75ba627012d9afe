// Step times of the GPU's decoder in the shape of Qwen3-30B-A3B, random weights: of two depths, so that their
// difference is the time of a layer. Every sequence has 512 positions before the timed decode steps.
//   device_decoder_benchmark [folder for the checkpoints]
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/cuda/benchmark_support.h"
#include "worker/decoder/device_model_test_util.h"
#include "worker/decoder/random_checkpoint.h"

namespace ballast {
namespace {

constexpr int kVocab = 4096, kContext = 512, kPrefillRows = 4096, kMostSequences = 128, kRepeats = 30;
constexpr int kDepths[] = {2, 4};

double TimeOf(const std::function<void()>& run) {
  std::vector<double> seconds;
  for (int i = 0; i < kRepeats + 3; ++i) {
    const absl::Time begin = absl::Now();
    run();
    if (i >= 3) seconds.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
  }
  return Median(seconds);
}

class Sequences {
 public:
  Sequences(DeviceModel& model, KvCache& cache) : model_(model) {
    for (int s = 0; s < kMostSequences; ++s) {
      kv_.push_back(std::make_unique<KvSequence>(cache));
      CheckOk(kv_.back()->Reserve(kContext + 1));
    }
    tokens_ = RandomTokens(kPrefillRows, kVocab, 1);
    CheckCuda(cudaMallocHost(reinterpret_cast<void**>(&logits_), sizeof(float) * kMostSequences * kVocab));
  }
  ~Sequences() { cudaFreeHost(logits_); }

  // A step of the first `count` sequences from `first` on, `rows` rows each; logits of the last row of each.
  void Step(int first, int count, int rows, cudaStream_t stream) {
    std::vector<StepSequence> sequences;
    std::vector<int32_t> wanted;
    for (int i = 0; i < count; ++i) {
      sequences.push_back({kv_[first + i].get(), i * rows, rows, kv_[first + i]->committed()});
      wanted.push_back(i * rows + rows - 1);
    }
    CheckOk(model_.decoder->Forward({std::span(tokens_).first(count * rows), sequences, wanted}, *model_.moe, logits_,
                                    stream));
  }
  void Commit(int first, int count, int rows) {
    for (int i = 0; i < count; ++i) kv_[first + i]->Commit(rows);
  }

 private:
  DeviceModel& model_;
  std::vector<std::unique_ptr<KvSequence>> kv_;
  std::vector<int32_t> tokens_;
  float* logits_ = nullptr;
};

struct Row {
  std::string name;
  double seconds[2];
};

std::vector<Row> Measure(const std::string& dir, int depth) {
  std::vector<Row> rows;
  const auto add = [&](std::string name, double seconds) {
    rows.push_back({std::move(name), {}});
    rows.back().seconds[depth] = seconds;
  };
  for (const bool exact : {false, true}) {
    DeviceModel model(dir, {.max_rows = kPrefillRows, .exact = exact});
    auto cache = model.decoder->CreateKvCache(kMostSequences * KvCache::BlocksFor(kContext + 1));
    CheckOk(cache.status());
    Sequences sequences(model, **cache);
    const std::string mode = exact ? "exact" : "fast";
    const int at_once = kPrefillRows / kContext;
    add(mode + ", prefill 8 x 512", TimeOf([&] { sequences.Step(0, at_once, kContext, model.stream); }));
    for (int first = 0; first < kMostSequences; first += at_once) {
      sequences.Step(first, at_once, kContext, model.stream);
      sequences.Commit(first, at_once, kContext);
    }
    for (const int count : {1, 8, 32, 128}) {
      add(mode + ", decode " + std::to_string(count), TimeOf([&] { sequences.Step(0, count, 1, model.stream); }));
      // The legacy stream cannot be recorded.
      add(mode + ", decode " + std::to_string(count) + ", no graph",
          TimeOf([&] { sequences.Step(0, count, 1, nullptr); }));
    }
  }
  return rows;
}

void Run(const std::string& folder) {
  std::vector<Row> rows;
  for (int depth = 0; depth < 2; ++depth) {
    const std::string dir = folder + "/qwen3-" + std::to_string(kDepths[depth]);
    WriteRandomCheckpoint(RandomQwen3Moe30B(kDepths[depth], kVocab), dir);
    const std::vector<Row> measured = Measure(dir, depth);
    std::filesystem::remove_all(dir);
    if (rows.empty()) rows = measured;
    for (size_t i = 0; i < rows.size(); ++i) rows[i].seconds[depth] = measured[i].seconds[depth];
  }
  std::printf("%-28s %12s %12s %14s\n", "step", "2 layers us", "4 layers us", "a layer us");
  for (const Row& row : rows) {
    std::printf("%-28s %12.1f %12.1f %14.1f\n", row.name.c_str(), row.seconds[0] * 1e6, row.seconds[1] * 1e6,
                (row.seconds[1] - row.seconds[0]) * 1e6 / (kDepths[1] - kDepths[0]));
  }
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  ballast::Run(argc > 1 ? argv[1] : "/tmp");
  return 0;
}
