// A store for tests.
#ifndef BALLAST_CONTROLLER_STORE_FLAKY_STORE_H_
#define BALLAST_CONTROLLER_STORE_FLAKY_STORE_H_

#include <atomic>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/store/store.h"
#include "proto/base/mutex.h"

namespace ballast {

// In memory; writes nothing while it is broken, and while it is held lets one batch through at a time. Thread-safe.
class FlakyStore final : public Store {
 public:
  absl::Status Apply(std::span<const StoreWrite> writes) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    ++waiting_;
    changed_.NotifyAll();
    while (held_ && let_ == 0) changed_.Wait(mu_);
    --waiting_;
    if (let_ > 0) --let_;
    changed_.NotifyAll();
    return broken ? absl::UnavailableError("disk full") : store_.Apply(writes);
  }
  absl::StatusOr<std::optional<std::string>> Get(std::string_view key) const override { return store_.Get(key); }
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> List(std::string_view prefix) const override {
    return store_.List(prefix);
  }
  std::map<std::string, std::string, std::less<>> contents() const { return store_.contents(); }

  void Hold() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    held_ = true;
  }
  // Until somebody's batch waits.
  void AwaitHeld() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    while (waiting_ == 0) changed_.Wait(mu_);
  }
  // Lets the batch that waits through, to fail if the store is broken now, and holds the next one.
  void LetOne() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    let_ = 1;
    changed_.NotifyAll();
    while (let_ > 0) changed_.Wait(mu_);
  }
  void Release() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    held_ = false;
    changed_.NotifyAll();
  }

  std::atomic<bool> broken = false;

 private:
  MemoryStore store_;
  Mutex mu_;
  CondVar changed_;
  int waiting_ BALLAST_GUARDED_BY(mu_) = 0;
  int let_ BALLAST_GUARDED_BY(mu_) = 0;
  bool held_ BALLAST_GUARDED_BY(mu_) = false;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_STORE_FLAKY_STORE_H_
