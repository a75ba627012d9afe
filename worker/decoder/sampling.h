// From logits to the next token, and to log-probabilities. Pure functions of their arguments.
#ifndef BALLAST_WORKER_DECODER_SAMPLING_H_
#define BALLAST_WORKER_DECODER_SAMPLING_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace ballast {

struct SamplingOptions {
  // 0 is greedy: the largest logit, ties to the lowest id. Otherwise in (0, 100].
  float temperature = 0;
  // In (0, 1]: only the smallest set of most probable tokens that reaches this mass is drawn from.
  float top_p = 1;
  uint64_t seed = 0;
};

// InvalidArgument names the field, the value and the limit.
absl::Status Validate(const SamplingOptions& options);

// Samples tokens; keeps its scratch memory between calls, 4 to 20 bytes a token of the vocabulary and with top_p 64 KiB
// of buckets. One thread.
class Sampler {
 public:
  // The token for `position` (the position that the new token will take). The random number is a function of (seed,
  // position) alone, so the answer does not depend on what else the step held, or on how often the step was run.
  // A logit that is not finite is the answer only where the largest (ArgMax) is not finite.
  //
  // Time grows with the vocabulary alone, whatever the logits: nothing is sorted but a few dozen candidates.
  // REQUIRES: valid options, logits not empty.
  int32_t Sample(std::span<const float> logits, const SamplingOptions& options, int64_t position);

 private:
  struct Candidate {
    float probability;
    int32_t id;
  };

  // The token at which the probabilities, added up by rising id, exceed `left`.
  int32_t Draw(double left, int32_t best) const;
  // With top_p: the tokens in order, by falling probability and then by rising id, are never all sorted. Buckets of
  // probabilities that are close to each other are added up first; `is_short(sum)` tells whether a sum from the first
  // token of the order on is short of what is looked for.
  static size_t Bucket(float probability);
  // Without those that are too small to be among the most probable that reach `mass` of `sum`.
  void FillBuckets(double sum, double mass);
  // The bucket, `lowest` or above it, where the sum stops being short; `sum` is that of those before.
  template <typename IsShort>
  size_t FindBucket(IsShort is_short, size_t lowest, double& sum) const;
  // The bucket's tokens become the candidates.
  void Collect(size_t bucket);
  // Puts candidates in order as far as it takes to tell where `sum`, which they are added to, stops being short. How
  // many that takes: these stand in front, the last of them in its place.
  template <typename IsShort>
  static size_t Reach(std::span<Candidate> candidates, IsShort is_short, double& sum);

  // Not normalised: the most probable token has 1.
  std::vector<float> probabilities_;
  // Of each block of them.
  std::vector<double> block_sums_;
  // By Bucket().
  std::vector<double> bucket_sums_;
  // By rising id: those in the buckets; and of one bucket.
  std::vector<Candidate> likely_, candidates_;
};

// ln softmax(logits)[token], by kernels/elementwise.h's LogSumExp. REQUIRES: token in range.
float LogProbability(std::span<const float> logits, int32_t token);

// Uniform in [0, 1), 53 bits, a function of (seed, counter): SplitMix64's finalizer over both (Steele, Lea, Flood,
// "Fast splittable pseudorandom number generators", 2014).
double UniformAt(uint64_t seed, uint64_t counter);

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_SAMPLING_H_
