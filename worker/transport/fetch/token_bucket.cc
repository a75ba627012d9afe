#include "worker/transport/fetch/token_bucket.h"

#include <algorithm>

namespace ballast {

size_t MoveChunkBytes(int64_t bytes_per_second) {
  constexpr int64_t kLeast = int64_t{256} << 10, kMost = int64_t{32} << 20;
  if (bytes_per_second == 0) return kMost;
  // Whole pages.
  return static_cast<size_t>(std::clamp(bytes_per_second / 5000, kLeast, kMost)) & ~size_t{4095};
}

void TokenBucket::Spend(int64_t bytes, absl::Time now) {
  if (rate_ == 0) return;
  const auto time_of = [this](int64_t n) { return absl::Seconds(static_cast<double>(n) / static_cast<double>(rate_)); };
  // A bucket left alone fills up to the burst and no further.
  ready_ = std::max(ready_, now - time_of(burst_)) + time_of(bytes);
}

}  // namespace ballast
