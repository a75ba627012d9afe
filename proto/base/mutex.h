// The one mutex of this tree: std::mutex with clang's thread-safety annotations.
//
// std::mutex and std::condition_variable rather than absl::Mutex, because ThreadSanitizer sees them without a rebuilt
// library. `make check` compiles every source with clang's -Wthread-safety.
//
//   class Counter {
//    public:
//     void Add(int n) BALLAST_EXCLUDES(mu_) { MutexLock lock(mu_); total_ += n; }
//    private:
//     Mutex mu_;
//     int total_ BALLAST_GUARDED_BY(mu_) = 0;
//   };
#ifndef BALLAST_PROTO_BASE_MUTEX_H_
#define BALLAST_PROTO_BASE_MUTEX_H_

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define BALLAST_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define BALLAST_THREAD_ANNOTATION(x)
#endif

#define BALLAST_GUARDED_BY(x) BALLAST_THREAD_ANNOTATION(guarded_by(x))
#define BALLAST_PT_GUARDED_BY(x) BALLAST_THREAD_ANNOTATION(pt_guarded_by(x))
#define BALLAST_REQUIRES(...) BALLAST_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define BALLAST_EXCLUDES(...) BALLAST_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define BALLAST_ACQUIRE(...) BALLAST_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define BALLAST_RELEASE(...) BALLAST_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define BALLAST_NO_THREAD_SAFETY_ANALYSIS BALLAST_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace ballast {

class BALLAST_THREAD_ANNOTATION(capability("mutex")) Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() BALLAST_ACQUIRE() { mu_.lock(); }
  void Unlock() BALLAST_RELEASE() { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class BALLAST_THREAD_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mu) BALLAST_ACQUIRE(mu) : mu_(mu) { mu_.Lock(); }
  ~MutexLock() BALLAST_RELEASE() { mu_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// Waits may wake for no reason: wait in a loop that tests the condition. Deadlines go through Clock (clock.h).
class CondVar {
 public:
  void Wait(Mutex& mu) BALLAST_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // False when `timeout` passed by the machine's own clock. Only Clock implementations call it.
  template <typename Duration>
  bool WaitFor(Mutex& mu, Duration timeout) BALLAST_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    const bool woken = cv_.wait_for(lock, timeout) == std::cv_status::no_timeout;
    lock.release();
    return woken;
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_MUTEX_H_
