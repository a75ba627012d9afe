#include "worker/transport/fetch/token_bucket.h"

#include <algorithm>

namespace ballast {

void TokenBucket::Spend(int64_t bytes, absl::Time now) {
  if (rate_ == 0) return;
  const auto time_of = [this](int64_t n) { return absl::Seconds(static_cast<double>(n) / static_cast<double>(rate_)); };
  // A bucket left alone fills up to the burst and no further.
  ready_ = std::max(ready_, now - time_of(burst_)) + time_of(bytes);
}

}  // namespace ballast
