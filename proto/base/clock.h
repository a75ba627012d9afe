// The seam for time: the clock and every timed wait go through it, so that tests move time by hand.
#ifndef BALLAST_PROTO_BASE_CLOCK_H_
#define BALLAST_PROTO_BASE_CLOCK_H_

#include <vector>

#include "absl/time/time.h"
#include "proto/base/mutex.h"

namespace ballast {

// Thread-safe. Components that decide take `absl::Time now` as an argument instead; only the thin loops around them
// hold a Clock.
class Clock {
 public:
  virtual ~Clock() = default;

  // Wall time that never goes backwards within a process: what deadlines, leases and logs use.
  virtual absl::Time Now() = 0;

  // Waits on `cv` with `mu` held until notified or `deadline` (absl::InfiniteFuture() waits for the notification
  // alone). False once `deadline` has come. May wake for no reason.
  virtual bool WaitUntil(CondVar& cv, Mutex& mu, absl::Time deadline) BALLAST_REQUIRES(mu) = 0;

  // The machine's clock; lives for ever.
  static Clock& Real();
};

// A clock that moves only when told. Useful for: tests of loops that wait. Waiters wake in AdvanceTo.
class SimulatedClock final : public Clock {
 public:
  explicit SimulatedClock(absl::Time start = absl::FromUnixSeconds(1'000'000'000)) : now_(start) {}

  absl::Time Now() override BALLAST_EXCLUDES(mu_);
  bool WaitUntil(CondVar& cv, Mutex& mu, absl::Time deadline) BALLAST_REQUIRES(mu) override;

  void Advance(absl::Duration by) BALLAST_EXCLUDES(mu_);
  // Blocks until at least `count` threads wait in WaitUntil; lets a test advance time only when its loop is parked.
  void AwaitWaiters(int count) BALLAST_EXCLUDES(mu_);

 private:
  struct Waiter {
    CondVar* cv;
    Mutex* mu;
  };
  Mutex mu_;
  CondVar waiters_changed_;
  absl::Time now_ BALLAST_GUARDED_BY(mu_);
  std::vector<Waiter> waiters_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_CLOCK_H_
