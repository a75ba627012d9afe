// A store for tests.
#ifndef BALLAST_CONTROLLER_STORE_FLAKY_STORE_H_
#define BALLAST_CONTROLLER_STORE_FLAKY_STORE_H_

#include <atomic>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/store/store.h"

namespace ballast {

// In memory; writes nothing while it is broken. Thread-safe.
class FlakyStore final : public Store {
 public:
  absl::Status Apply(std::span<const StoreWrite> writes) override {
    return broken ? absl::UnavailableError("disk full") : store_.Apply(writes);
  }
  absl::StatusOr<std::optional<std::string>> Get(std::string_view key) const override { return store_.Get(key); }
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> List(std::string_view prefix) const override {
    return store_.List(prefix);
  }
  std::atomic<bool> broken = false;

 private:
  MemoryStore store_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_STORE_FLAKY_STORE_H_
