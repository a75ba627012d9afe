// The threads of the CPU kernels: one owner, a few helpers, nobody spins.
#ifndef BALLAST_KERNELS_CPU_THREAD_POOL_H_
#define BALLAST_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "kernels/function_ref.h"
#include "proto/base/mutex.h"

namespace ballast {

// Runs loops over `threads` threads, the caller's among them. One thread at a time may call ParallelFor (the step
// thread); helpers are parked on a condition variable between loops.
//
// Kernels hand out work in items whose results do not depend on which thread runs them, or on how many threads there
// are; that is what keeps `exact` results equal for every pool size.
class ThreadPool {
 public:
  // At least 1. `threads - 1` helper threads are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls body(0) ... body(n - 1), each once, in any order, on any of the threads; returns when all have returned.
  // With one thread or one item everything runs on the caller. Never waits for a helper that has not started on an
  // item, so a machine with fewer free cores than threads loses nothing but the wake-up. Not reentrant: body must not
  // call it. A wake-up costs 5 to 50 us: do work of less than about 30 us without it.
  void ParallelFor(int n, FunctionRef<void(int)> body) BALLAST_EXCLUDES(mu_);

 private:
  void Help() BALLAST_EXCLUDES(mu_);
  void Drain(const FunctionRef<void(int)>& body, int n);

  Mutex mu_;
  CondVar work_;
  CondVar idle_;
  // The loop that is open to helpers; null when none is.
  const FunctionRef<void(int)>* body_ BALLAST_GUARDED_BY(mu_) = nullptr;
  int size_ BALLAST_GUARDED_BY(mu_) = 0;
  uint64_t generation_ BALLAST_GUARDED_BY(mu_) = 0;
  int active_ BALLAST_GUARDED_BY(mu_) = 0;
  bool stop_ BALLAST_GUARDED_BY(mu_) = false;
  std::atomic<int> next_{0};
  std::vector<std::thread> helpers_;
};

}  // namespace ballast

#endif  // BALLAST_KERNELS_CPU_THREAD_POOL_H_
