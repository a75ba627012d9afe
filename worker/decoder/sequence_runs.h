// Runs sequences through a decoder in steps of every kind, for tests of any decoder.
#ifndef BALLAST_WORKER_DECODER_SEQUENCE_RUNS_H_
#define BALLAST_WORKER_DECODER_SEQUENCE_RUNS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "proto/base/check.h"
#include "worker/decoder/kv_cache.h"
#include "worker/decoder/step_input.h"

namespace ballast {

// One step of a decoder: its logits [logit_rows][vocab]. Must not fail.
using ForwardStep = std::function<absl::Status(const StepInput& input, float* logits)>;

inline std::vector<int32_t> RandomTokens(int n, int vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Logits [tokens.size()][vocab] of one sequence, run in steps of `chunk` rows.
inline std::vector<float> SequenceLogits(KvCache& cache, size_t vocab, std::span<const int32_t> tokens, int chunk,
                                         const ForwardStep& forward) {
  std::vector<float> logits(tokens.size() * vocab);
  KvSequence kv(cache);
  BALLAST_CHECK(kv.Reserve(static_cast<int>(tokens.size())).ok());
  for (size_t at = 0; at < tokens.size();) {
    const int rows = static_cast<int>(std::min<size_t>(chunk, tokens.size() - at));
    std::vector<int32_t> wanted(rows);
    std::iota(wanted.begin(), wanted.end(), 0);
    const StepSequence step = {&kv, 0, rows, static_cast<int>(at)};
    const absl::Status status =
        forward({.token_ids = tokens.subspan(at, rows), .sequences = {&step, 1}, .logit_rows = wanted},
                logits.data() + at * vocab);
    BALLAST_CHECK(status.ok()) << status.ToString();
    kv.Commit(rows);
    at += rows;
  }
  return logits;
}

// The same of several sequences in steps of at most `max_rows` that hold some of them in random order, with up to as
// many rows of each as the step's `most_rows` says, and ask for their logits in random order.
inline std::vector<std::vector<float>> ShuffledLogits(KvCache& cache, size_t vocab,
                                                      std::span<const std::vector<int32_t>> tokens, int max_rows,
                                                      std::mt19937& random, const std::function<int()>& most_rows,
                                                      const ForwardStep& forward) {
  const size_t count = tokens.size();
  std::vector<std::vector<float>> got(count);
  std::vector<std::unique_ptr<KvSequence>> kv;
  size_t left = 0;
  for (size_t s = 0; s < count; ++s) {
    kv.push_back(std::make_unique<KvSequence>(cache));
    BALLAST_CHECK(kv[s]->Reserve(static_cast<int>(tokens[s].size())).ok());
    got[s].assign(tokens[s].size() * vocab, 0);
    left += tokens[s].size();
  }
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  while (left > 0) {
    std::shuffle(order.begin(), order.end(), random);
    std::vector<StepSequence> sequences;
    std::vector<size_t> of_sequence;
    std::vector<int32_t> ids, wanted;
    const int most = most_rows();
    for (const size_t s : order) {
      const int rows = std::min({static_cast<int>(tokens[s].size()) - kv[s]->committed(),
                                 max_rows - static_cast<int>(ids.size()), static_cast<int>(random() % (most + 1))});
      if (rows == 0) continue;
      sequences.push_back({kv[s].get(), static_cast<int>(ids.size()), rows, kv[s]->committed()});
      of_sequence.push_back(s);
      for (int i = 0; i < rows; ++i) {
        wanted.push_back(static_cast<int32_t>(ids.size()));
        ids.push_back(tokens[s][kv[s]->committed() + i]);
      }
    }
    if (ids.empty()) continue;
    std::shuffle(wanted.begin(), wanted.end(), random);
    std::vector<float> logits(wanted.size() * vocab);
    const absl::Status status = forward({ids, sequences, wanted}, logits.data());
    BALLAST_CHECK(status.ok()) << status.ToString();
    for (size_t k = 0; k < sequences.size(); ++k) {
      const StepSequence& step = sequences[k];
      for (size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i] < step.first_row || wanted[i] >= step.first_row + step.num_rows) continue;
        const int position = step.start_position + wanted[i] - step.first_row;
        std::copy_n(&logits[i * vocab], vocab, &got[of_sequence[k]][static_cast<size_t>(position) * vocab]);
      }
      step.kv->Commit(step.num_rows);
      left -= step.num_rows;
    }
  }
  return got;
}

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_SEQUENCE_RUNS_H_
