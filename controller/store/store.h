// Where the controller keeps what a restart must not forget: keys and values, written in atomic batches.
#ifndef BALLAST_CONTROLLER_STORE_STORE_H_
#define BALLAST_CONTROLLER_STORE_STORE_H_

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/base/mutex.h"

namespace ballast {

// Sets a key, or deletes it (no error when it is absent).
struct StoreWrite {
  std::string key;
  std::optional<std::string> value;
};

// Thread-safe; calls may block for the medium. Applying one batch twice is the same as once.
//
// Errors of every call:
//   Unavailable  the medium cannot be read or written now (full, I/O error). Apply changed nothing; retry.
//   DataLoss     what is stored is damaged. Restore a backup.
class Store {
 public:
  virtual ~Store() = default;

  // All of `writes`, in order, or none. Durable when it returns OK: a crash of the process or the machine keeps it.
  virtual absl::Status Apply(std::span<const StoreWrite> writes) = 0;

  // Nothing when the key is absent.
  virtual absl::StatusOr<std::optional<std::string>> Get(std::string_view key) const = 0;

  // Every pair whose key starts with `prefix`, sorted by key (bytewise).
  virtual absl::StatusOr<std::vector<std::pair<std::string, std::string>>> List(std::string_view prefix) const = 0;
};

// Keeps everything in memory. Useful for: tests, which copy its contents to stand for a crash.
class MemoryStore final : public Store {
 public:
  MemoryStore() = default;
  explicit MemoryStore(std::map<std::string, std::string, std::less<>> contents) : contents_(std::move(contents)) {}

  absl::Status Apply(std::span<const StoreWrite> writes) override BALLAST_EXCLUDES(mu_);
  absl::StatusOr<std::optional<std::string>> Get(std::string_view key) const override BALLAST_EXCLUDES(mu_);
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> List(std::string_view prefix) const override
      BALLAST_EXCLUDES(mu_);

  std::map<std::string, std::string, std::less<>> contents() const BALLAST_EXCLUDES(mu_);

 private:
  mutable Mutex mu_;
  std::map<std::string, std::string, std::less<>> contents_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_STORE_STORE_H_
