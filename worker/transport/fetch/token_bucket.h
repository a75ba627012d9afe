#ifndef BALLAST_WORKER_TRANSPORT_FETCH_TOKEN_BUCKET_H_
#define BALLAST_WORKER_TRANSPORT_FETCH_TOKEN_BUCKET_H_

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace ballast {

// The size of the pieces of a move between GPUs: what its rate allows in 200 us, between 256 KiB and 32 MiB; 32 MiB
// without a limit (0). Small pieces leave memory and links to others in between, large ones use them fully.
size_t MoveChunkBytes(int64_t bytes_per_second);

// Paces bytes: on average `rate` a second, at most `burst` bytes ahead of that. (The virtual-scheduling form of the
// leaky bucket, ITU-T I.371 annex A.) Not thread-safe.
class TokenBucket {
 public:
  // rate 0: no limit.
  TokenBucket(int64_t rate, int64_t burst) { SetRate(rate, burst); }

  void SetRate(int64_t rate, int64_t burst) {
    rate_ = rate;
    burst_ = burst;
  }
  // When the next bytes may go; `now` or earlier if they may go now.
  absl::Time ReadyAt() const { return rate_ == 0 ? absl::InfinitePast() : ready_; }
  // `bytes` go at `now`, however many: what exceeds the allowance delays those after them.
  void Spend(int64_t bytes, absl::Time now);

 private:
  int64_t rate_ = 0;
  int64_t burst_ = 0;
  absl::Time ready_ = absl::InfinitePast();
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_FETCH_TOKEN_BUCKET_H_
