// Moves expert weights in the background, at a pace that serving does not notice.
#ifndef BALLAST_WORKER_EXPERTS_EXPERT_MOVER_H_
#define BALLAST_WORKER_EXPERTS_EXPERT_MOVER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "worker/transport/fetch/token_bucket.h"

namespace ballast {

// Copies between memories behind the caller's back, in the order they were started. One thread. Implementations:
// DeviceCopier (device_copier.h).
class ChunkCopier {
 public:
  virtual ~ChunkCopier() = default;
  // Starts a copy and does not wait. Both ends live until it is done.
  virtual absl::Status Start(const std::byte* from, std::byte* to, size_t bytes) = 0;
  // Waits until no more than `left` of the copies are under way.
  virtual absl::Status AwaitAllBut(int left) = 0;
};

// Cancel and ForgetCancel may be called by any thread, all else by one.
class ExpertMover {
 public:
  // Both outlive it.
  ExpertMover(ChunkCopier& copier, Clock& clock) : copier_(copier), clock_(clock) {}

  // Copies `from` to `to` at no more than `max_bytes_per_second` (0: no limit) beyond one piece (MoveChunkBytes), a
  // limit that the moves of this object share; returns when it is done, or nothing of it is under way any more. What
  // was copied is not verified.
  //   Cancelled          Cancel() was called while it ran, or before it and after the last move, but for ForgetCancel
  //   DeadlineExceeded   `deadline` came; says how far it got
  //   what the copier says
  absl::Status Move(std::span<const std::byte> from, std::byte* to, int64_t max_bytes_per_second, absl::Time deadline)
      BALLAST_EXCLUDES(mu_);
  void Cancel() BALLAST_EXCLUDES(mu_);
  // A Cancel that came too late for its move is for none that follows.
  void ForgetCancel() BALLAST_EXCLUDES(mu_);

 private:
  absl::Status AwaitTurn(size_t done, size_t bytes, absl::Time deadline) BALLAST_EXCLUDES(mu_);

  ChunkCopier& copier_;
  Clock& clock_;
  // Of the rate of the last move; a piece ahead makes up for waits that end late.
  std::optional<TokenBucket> bucket_;
  int64_t rate_ = 0;
  Mutex mu_;
  CondVar changed_;
  bool cancelled_ BALLAST_GUARDED_BY(mu_) = false;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_EXPERT_MOVER_H_
