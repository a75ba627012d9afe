#include "proto/base/clock.h"

#include <algorithm>
#include <chrono>

#include "absl/time/clock.h"

namespace ballast {
namespace {

class RealClock final : public Clock {
 public:
  absl::Time Now() override { return start_wall_ + absl::FromChrono(std::chrono::steady_clock::now() - start_); }

  bool WaitUntil(CondVar& cv, Mutex& mu, absl::Time deadline) BALLAST_REQUIRES(mu) override {
    if (deadline == absl::InfiniteFuture()) {
      cv.Wait(mu);
      return true;
    }
    const absl::Duration left = deadline - Now();
    if (left <= absl::ZeroDuration()) return false;
    // An hour at most: chrono's sums overflow on far deadlines, and waking early is allowed.
    cv.WaitFor(mu, absl::ToChronoMicroseconds(std::min(left, absl::Hours(1))));
    return Now() < deadline;
  }

 private:
  // Wall time at start plus steady time since: an operator who sets the clock back moves no deadline.
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const absl::Time start_wall_ = absl::Now();
};

}  // namespace

Clock& Clock::Real() {
  static RealClock& clock = *new RealClock;
  return clock;
}

absl::Time SimulatedClock::Now() {
  MutexLock lock(mu_);
  return now_;
}

bool SimulatedClock::WaitUntil(CondVar& cv, Mutex& mu, absl::Time deadline) {
  {
    MutexLock lock(mu_);
    if (now_ >= deadline) return false;
    waiters_.push_back({&cv, &mu});
    waiters_changed_.NotifyAll();
  }
  cv.Wait(mu);
  MutexLock lock(mu_);
  auto it = std::find_if(waiters_.begin(), waiters_.end(), [&](const Waiter& w) { return w.cv == &cv && w.mu == &mu; });
  waiters_.erase(it);
  return now_ < deadline;
}

void SimulatedClock::Advance(absl::Duration by) {
  std::vector<Waiter> waiters;
  {
    MutexLock lock(mu_);
    now_ += by;
    waiters = waiters_;
  }
  for (const Waiter& w : waiters) {
    // Taking the waiter's mutex makes sure that it is already inside its wait.
    MutexLock lock(*w.mu);
    w.cv->NotifyAll();
  }
}

void SimulatedClock::AwaitWaiters(int count) {
  MutexLock lock(mu_);
  while (static_cast<int>(waiters_.size()) < count) waiters_changed_.Wait(mu_);
}

}  // namespace ballast
