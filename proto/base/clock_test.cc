#include "proto/base/clock.h"

#include <thread>

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(SimulatedClock, WaiterWakesOnlyWhenItsDeadlineHasCome) {
  SimulatedClock clock;
  Mutex mu;
  CondVar cv;
  const absl::Time deadline = clock.Now() + absl::Seconds(10);
  int wakes = 0;
  std::thread waiter([&] {
    MutexLock lock(mu);
    while (clock.WaitUntil(cv, mu, deadline)) ++wakes;
  });
  clock.AwaitWaiters(1);
  clock.Advance(absl::Seconds(9));
  clock.AwaitWaiters(1);
  clock.Advance(absl::Seconds(1));
  waiter.join();
  EXPECT_GE(clock.Now(), deadline);
  EXPECT_LE(wakes, 1);
}

TEST(SimulatedClock, PastDeadlineDoesNotWait) {
  SimulatedClock clock;
  Mutex mu;
  CondVar cv;
  MutexLock lock(mu);
  EXPECT_FALSE(clock.WaitUntil(cv, mu, clock.Now()));
}

TEST(RealClock, DeadlineEndsTheWait) {
  Mutex mu;
  CondVar cv;
  MutexLock lock(mu);
  const absl::Time deadline = Clock::Real().Now() + absl::Milliseconds(5);
  while (Clock::Real().WaitUntil(cv, mu, deadline)) {
  }
  EXPECT_GE(Clock::Real().Now(), deadline);
}

}  // namespace
}  // namespace ballast
