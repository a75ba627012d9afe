// File descriptors, and waiting for them.
#ifndef BALLAST_WORKER_TRANSPORT_POLLER_H_
#define BALLAST_WORKER_TRANSPORT_POLLER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace ballast {

// Owns a file descriptor; -1 is none.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { Reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void Reset();

 private:
  int fd_ = -1;
};

// epoll, level-triggered. One thread waits; any thread may add, change and remove.
class Poller {
 public:
  struct Event {
    uint64_t key = 0;
    bool readable = false;
    bool writable = false;
    // The other side is gone or the descriptor has failed.
    bool hung_up = false;
  };

  Poller();

  // `key` comes back with the events; unique within the poller is the caller's care.
  void Add(int fd, uint64_t key, bool readable, bool writable);
  void Change(int fd, uint64_t key, bool readable, bool writable);
  // Before the descriptor is closed.
  void Remove(int fd);

  // Waits until something happens or `timeout` has passed (rounded up to a millisecond; zero looks without waiting,
  // InfiniteDuration waits for ever). Empty after the timeout; may also return empty for no reason. Valid until the
  // next Wait.
  const std::vector<Event>& Wait(absl::Duration timeout);

 private:
  UniqueFd epoll_;
  std::vector<Event> events_;
};

// Wakes a Poller from any thread. Readable from Signal until Clear, so a signal before the wait is not lost.
class WakeFd {
 public:
  WakeFd();
  int fd() const { return fd_.get(); }
  // Async-signal-safe.
  void Signal();
  void Clear();

 private:
  UniqueFd fd_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_POLLER_H_
