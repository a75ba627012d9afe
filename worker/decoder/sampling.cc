#include "worker/decoder/sampling.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "kernels/elementwise.h"
#include "kernels/tokens.h"

namespace ballast {
namespace {

// Tokens whose probabilities are added up by themselves: a draw looks at one block's alone.
constexpr size_t kBlock = 256;
// A bucket holds probabilities of one exponent and the same first 6 bits behind the point.
constexpr int kBucketShift = 17;

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

int32_t Sampler::Draw(double left, int32_t best) const {
  for (size_t block = 0; block < block_sums_.size(); ++block) {
    if (left >= block_sums_[block]) {
      left -= block_sums_[block];
      continue;
    }
    const size_t first = block * kBlock, end = std::min(first + kBlock, probabilities_.size());
    int32_t last = best;
    for (size_t i = first; i < end; ++i) {
      if (probabilities_[i] == 0) continue;
      last = static_cast<int32_t>(i);
      left -= probabilities_[i];
      if (left < 0) break;
    }
    // Rounding alone leads past the last.
    return last;
  }
  return best;
}

size_t Sampler::Bucket(float probability) { return std::bit_cast<uint32_t>(probability) >> kBucketShift; }

void Sampler::FillBuckets(double sum, double mass) {
  constexpr size_t kGroup = 16;
  const size_t size = probabilities_.size();
  // All that are below the limit have less than is left out, even together. A little lower, for sums are rounded.
  const auto limit = static_cast<float>((sum - mass) / static_cast<double>(size) * 0.999);
  likely_.clear();
  bucket_sums_.assign(Bucket(1) + 1, 0);
  for (size_t at = 0; at < size; at += kGroup) {
    const size_t end = std::min(at + kGroup, size);
    if (end == at + kGroup) {
      // Few groups have any, and to see that takes no branch for each.
      int any = 0;
      for (size_t i = 0; i < kGroup; ++i) any |= probabilities_[at + i] >= limit;
      if (any == 0) continue;
    }
    for (size_t i = at; i < end; ++i) {
      const float p = probabilities_[i];
      if (p < limit) continue;
      likely_.push_back({p, static_cast<int32_t>(i)});
      bucket_sums_[Bucket(p)] += p;
    }
  }
}

template <typename IsShort>
size_t Sampler::FindBucket(IsShort is_short, size_t lowest, double& sum) const {
  // Where rounding alone leaves the sum short of all, it is at the last bucket that has any.
  size_t last = lowest;
  double next = sum = 0;
  for (size_t bucket = bucket_sums_.size(); bucket-- > lowest;) {
    if (bucket_sums_[bucket] == 0) continue;
    last = bucket;
    sum = next;
    next += bucket_sums_[bucket];
    if (!is_short(next)) break;
  }
  return last;
}

void Sampler::Collect(size_t bucket) {
  candidates_.clear();
  for (const Candidate& candidate : likely_) {
    if (Bucket(candidate.probability) == bucket) candidates_.push_back(candidate);
  }
}

template <typename IsShort>
size_t Sampler::Reach(std::span<Candidate> candidates, IsShort is_short, double& sum) {
  constexpr size_t kSorted = 32;
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
  };
  size_t first = 0, last = candidates.size();
  while (last - first > kSorted) {
    const size_t middle = first + (last - first) / 2;
    const auto at = candidates.begin();
    std::nth_element(at + first, at + middle, at + last, before);
    double half = 0;
    for (const Candidate& candidate : candidates.subspan(first, middle - first)) half += candidate.probability;
    if (!is_short(sum + half)) {
      last = middle;
    } else {
      sum += half;
      first = middle;
    }
  }
  std::sort(candidates.begin() + first, candidates.begin() + last, before);
  while (first < last && is_short(sum)) sum += candidates[first++].probability;
  return first;
}

int32_t Sampler::Sample(std::span<const float> logits, const SamplingOptions& options, int64_t position) {
  const int32_t best = ArgMax(logits);
  if (options.temperature == 0) return best;
  probabilities_.resize(logits.size());
  block_sums_.clear();
  double sum = 0;
  for (size_t at = 0; at < logits.size(); at += kBlock) {
    const auto size = static_cast<int>(std::min(kBlock, logits.size() - at));
    block_sums_.push_back(
        ExpRow(logits.data() + at, logits[best], options.temperature, size, probabilities_.data() + at));
    sum += block_sums_.back();
  }
  // No logit is finite.
  if (sum == 0) return best;
  const double uniform = UniformAt(options.seed, static_cast<uint64_t>(position));
  if (options.top_p == 1) return Draw(uniform * sum, best);
  const double wanted = options.top_p * sum;
  FillBuckets(sum, wanted);
  const auto is_short = [wanted](double mass) { return mass < wanted; };
  double mass = 0;
  const size_t last = FindBucket(is_short, 0, mass);
  Collect(last);
  size_t kept = Reach(candidates_, is_short, mass);
  const double left = uniform * mass;
  const auto is_before = [left](double mass) { return mass <= left; };
  const size_t drawn = FindBucket(is_before, last, mass);
  if (drawn != last) {
    Collect(drawn);
    kept = candidates_.size();
  }
  const size_t count = Reach(std::span(candidates_).first(kept), is_before, mass);
  return candidates_[std::max<size_t>(count, 1) - 1].id;
}

float LogProbability(std::span<const float> logits, int32_t token) {
  return logits[token] - LogSumExp(logits.data(), static_cast<int>(logits.size()));
}

}  // namespace ballast
