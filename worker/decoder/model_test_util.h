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
    const size_t vocab = config().vocab_size;
    std::vector<float> logits(tokens.size() * vocab);
    KvSequence kv(*cache);
    BALLAST_CHECK(kv.Reserve(static_cast<int>(tokens.size())).ok());
    for (size_t at = 0; at < tokens.size();) {
      const int rows = static_cast<int>(std::min<size_t>(chunk, tokens.size() - at));
      std::vector<int32_t> wanted(rows);
      for (int i = 0; i < rows; ++i) wanted[i] = i;
      const StepSequence step = {&kv, 0, rows, static_cast<int>(at)};
      const absl::Status status =
          decoder->Forward({.token_ids = tokens.subspan(at, rows), .sequences = {&step, 1}, .logit_rows = wanted}, *moe,
                           logits.data() + at * vocab);
      BALLAST_CHECK(status.ok()) << status.ToString();
      kv.Commit(rows);
      at += rows;
    }
    return logits;
  }

  ThreadPool pool;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<LocalMoe> moe;
  std::unique_ptr<KvCache> cache;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_MODEL_TEST_UTIL_H_
