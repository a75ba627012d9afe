#include "worker/daemon/memory_limit.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "absl/strings/str_split.h"

namespace ballast {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// The number after `key` in a file of "KEY NUMBER" lines, with an empty key the file's only number. Nothing: no such
// file, no such key, or no number ("max").
std::optional<int64_t> Number(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string found;
    if (!key.empty()) words >> found;
    if (int64_t number = 0; found == key && words >> number) return number;
  }
  return std::nullopt;
}

// Of one control group; version 1 and 2 name their files differently. A group without a limit has kNone.
int64_t LeftIn(const std::string& folder, const char* limit_file, const char* usage_file, const char* inactive) {
  const auto limit = Number(folder + limit_file, "");
  const auto used = Number(folder + usage_file, "");
  if (!limit || !used) return kNone;
  const int64_t files = Number(folder + "/memory.stat", inactive).value_or(0);
  return std::max<int64_t>(0, *limit - (*used - std::min(files, *used)));
}

}  // namespace

int64_t AvailableMemoryBytes(const std::string& root) {
  int64_t left = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  if (const auto kib = Number(root + "/proc/meminfo", "MemAvailable:")) left = *kib * 1024;
  // "0::/a/b" of version 2, "7:memory:/a/b" of version 1.
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const bool version1 = parts[1] == "memory";
    if (!version1 && !parts[1].empty()) continue;
    const std::string tree = root + (version1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup");
    // Up to the root: each has its limit. A container whose root is its own group sees that as "/", or a path that is
    // not there.
    for (std::string path = parts[2] == "/" ? "" : parts[2];; path.erase(path.rfind('/'))) {
      left = std::min(left, version1 ? LeftIn(tree + path, "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                              "total_inactive_file")
                                     : LeftIn(tree + path, "/memory.max", "/memory.current", "inactive_file"));
      if (path.rfind('/') == std::string::npos) break;
    }
  }
  return left;
}

}  // namespace ballast
