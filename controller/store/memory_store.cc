#include "controller/store/store.h"

namespace ballast {

absl::Status MemoryStore::Apply(std::span<const StoreWrite> writes) {
  MutexLock lock(mu_);
  for (const StoreWrite& write : writes) {
    if (write.value.has_value()) {
      contents_[write.key] = *write.value;
    } else {
      contents_.erase(write.key);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string>> MemoryStore::Get(std::string_view key) const {
  MutexLock lock(mu_);
  const auto it = contents_.find(key);
  return it == contents_.end() ? std::nullopt : std::optional<std::string>(it->second);
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> MemoryStore::List(std::string_view prefix) const {
  MutexLock lock(mu_);
  std::vector<std::pair<std::string, std::string>> found;
  for (auto it = contents_.lower_bound(prefix); it != contents_.end() && it->first.starts_with(prefix); ++it) {
    found.push_back(*it);
  }
  return found;
}

std::map<std::string, std::string, std::less<>> MemoryStore::contents() const {
  MutexLock lock(mu_);
  return contents_;
}

}  // namespace ballast
