#include "kernels/cpu/thread_pool.h"

#include "proto/base/check.h"

namespace ballast {

ThreadPool::ThreadPool(int threads) {
  BALLAST_CHECK(threads >= 1) << "threads=" << threads;
  helpers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { Help(); });
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  work_.NotifyAll();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::Drain(const FunctionRef<void(int)>& body, int n) {
  for (int i = next_.fetch_add(1, std::memory_order_relaxed); i < n;
       i = next_.fetch_add(1, std::memory_order_relaxed)) {
    body(i);
  }
}

void ThreadPool::ParallelFor(int n, FunctionRef<void(int)> body) {
  if (helpers_.empty() || n <= 1) {
    for (int i = 0; i < n; ++i) body(i);
    return;
  }
  {
    MutexLock lock(mu_);
    BALLAST_CHECK(body_ == nullptr) << "ParallelFor called while another loop runs";
    body_ = &body;
    size_ = n;
    next_.store(0, std::memory_order_relaxed);
    ++generation_;
  }
  if (n - 1 >= static_cast<int>(helpers_.size())) {
    work_.NotifyAll();
  } else {
    for (int i = 1; i < n; ++i) work_.NotifyOne();
  }
  Drain(body, n);
  MutexLock lock(mu_);
  // Closed first: a helper that wakes from now on finds nothing and is not waited for.
  body_ = nullptr;
  while (active_ > 0) idle_.Wait(mu_);
}

void ThreadPool::Help() {
  uint64_t done = 0;
  MutexLock lock(mu_);
  for (;;) {
    while (!stop_ && (body_ == nullptr || generation_ == done)) work_.Wait(mu_);
    if (stop_) return;
    done = generation_;
    ++active_;
    const FunctionRef<void(int)>* body = body_;
    const int n = size_;
    mu_.Unlock();
    Drain(*body, n);
    mu_.Lock();
    if (--active_ == 0) idle_.NotifyOne();
  }
}

}  // namespace ballast
