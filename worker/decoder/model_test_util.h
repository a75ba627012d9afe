// Models and what the reference implementation computes with them, for tests.
#ifndef BALLAST_WORKER_DECODER_MODEL_TEST_UTIL_H_
#define BALLAST_WORKER_DECODER_MODEL_TEST_UTIL_H_

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "proto/base/check.h"
#include "worker/decoder/decoder.h"
#include "worker/decoder/kv_cache.h"
#include "worker/decoder/local_moe.h"
#include "worker/decoder/sequence_runs.h"
#include "worker/model/checkpoint.h"

namespace ballast {

// A model in one process.
struct TestModel {
  TestModel(const std::string& dir, int threads, int max_rows) : pool(threads) {
    auto opened = Checkpoint::Open(dir);
    BALLAST_CHECK(opened.ok()) << opened.status().ToString();
    checkpoint = *std::move(opened);
    auto made = Decoder::Create(*checkpoint, pool, {.max_rows = max_rows});
    BALLAST_CHECK(made.ok()) << made.status().ToString();
    decoder = *std::move(made);
    auto local = LocalMoe::Create(*checkpoint, *decoder, pool);
    BALLAST_CHECK(local.ok()) << local.status().ToString();
    moe = *std::move(local);
    auto blocks = KvCache::Create(decoder->kv_shape(), KvCache::BlocksFor(16384));
    BALLAST_CHECK(blocks.ok()) << blocks.status().ToString();
    cache = *std::move(blocks);
  }

  const ModelConfig& config() const { return decoder->config(); }

  // Logits [tokens.size()][vocab] of one sequence, run in steps of `chunk` rows.
  std::vector<float> Logits(std::span<const int32_t> tokens, int chunk) {
    return SequenceLogits(*cache, config().vocab_size, tokens, chunk, forward());
  }
  ForwardStep forward() {
    return [this](const StepInput& input, float* logits) { return decoder->Forward(input, *moe, logits); };
  }

  ThreadPool pool;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<LocalMoe> moe;
  std::unique_ptr<KvCache> cache;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_MODEL_TEST_UTIL_H_
