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

// Samples tokens; keeps its scratch memory between calls. One thread.
class Sampler {
 public:
  // The token for `position` (the position that the new token will take). The random number is a function of (seed,
  // position) alone, so the answer does not depend on what else the step held, or on how often the step was run.
  // A logit that is not finite is the answer only where the largest (ArgMax) is not finite.
  // REQUIRES: valid options, logits not empty.
  int32_t Sample(std::span<const float> logits, const SamplingOptions& options, int64_t position);

 private:
  struct Candidate {
    double probability;
    int32_t id;
  };
  std::vector<Candidate> candidates_;
};

// ln softmax(logits)[token], by kernels/elementwise.h's LogSumExp. REQUIRES: token in range.
float LogProbability(std::span<const float> logits, int32_t token);

// Uniform in [0, 1), 53 bits, a function of (seed, counter): SplitMix64's finalizer over both (Steele, Lea, Flood,
// "Fast splittable pseudorandom number generators", 2014).
double UniformAt(uint64_t seed, uint64_t counter);

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_SAMPLING_H_
