#include "worker/decoder/sampling.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/elementwise.h"
#include "kernels/tokens.h"

namespace ballast {
namespace {

uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

absl::Status Validate(const SamplingOptions& options) {
  // Written so that NaN fails.
  if (!(options.temperature >= 0 && options.temperature <= 100)) {
    return absl::InvalidArgumentError(absl::StrCat("temperature=", options.temperature, " must lie in [0, 100]"));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top_p=", options.top_p, " must lie in (0, 1]"));
  }
  return absl::OkStatus();
}

double UniformAt(uint64_t seed, uint64_t counter) {
  const uint64_t bits = Mix(Mix(seed + 0x9e3779b97f4a7c15u) + (counter + 1) * 0x9e3779b97f4a7c15u);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

int32_t Sampler::Sample(std::span<const float> logits, const SamplingOptions& options, int64_t position) {
  const int32_t best = ArgMax(logits);
  if (options.temperature == 0) return best;
  const double top = logits[best];
  candidates_.clear();
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double e = std::exp((logits[i] - top) / options.temperature);
    // Never drawn, and not in the way of an order.
    const double p = std::isfinite(e) ? e : 0;
    sum += p;
    candidates_.push_back({p, static_cast<int32_t>(i)});
  }
  double mass = sum;
  if (options.top_p < 1) {
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
    });
    mass = 0;
    size_t kept = 0;
    while (kept < candidates_.size() && mass < options.top_p * sum) mass += candidates_[kept++].probability;
    candidates_.resize(kept);
  }
  double left = UniformAt(options.seed, static_cast<uint64_t>(position)) * mass;
  for (const Candidate& candidate : candidates_) {
    left -= candidate.probability;
    if (left < 0) return candidate.id;
  }
  // Rounding alone leads here: the sums were made in this order.
  return best;
}

float LogProbability(std::span<const float> logits, int32_t token) {
  return logits[token] - LogSumExp(logits.data(), static_cast<int>(logits.size()));
}

}  // namespace ballast
