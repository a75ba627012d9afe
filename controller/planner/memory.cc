#include "controller/planner/memory.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

absl::Status AtLeast(const char* field, int64_t value, int64_t least) {
  if (value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; must be at least ", least));
}

}  // namespace

int64_t BytesOf(int64_t replicas, int64_t expert_bytes) {
  int64_t bytes = 0;
  return __builtin_mul_overflow(replicas, expert_bytes, &bytes) ? std::numeric_limits<int64_t>::max() : bytes;
}

absl::StatusOr<int32_t> ReplicasForBytes(int64_t bytes, int64_t expert_bytes) {
  BALLAST_RETURN_IF_ERROR(AtLeast("bytes for replicas", bytes, 0));
  BALLAST_RETURN_IF_ERROR(AtLeast("expert bytes", expert_bytes, 1));
  return static_cast<int32_t>(std::min<int64_t>(bytes / expert_bytes, std::numeric_limits<int32_t>::max()));
}

absl::StatusOr<MemoryChoice> ChooseReplicas(const MemoryRule& rule,
                                            const std::function<absl::StatusOr<double>(int32_t)>& balancedness) {
  BALLAST_RETURN_IF_ERROR(AtLeast("KV bytes", rule.kv_bytes, 1));
  BALLAST_RETURN_IF_ERROR(AtLeast("expert bytes", rule.expert_bytes, 1));
  BALLAST_RETURN_IF_ERROR(AtLeast("KV bytes needed", rule.kv_bytes_needed, 0));
  BALLAST_RETURN_IF_ERROR(AtLeast("most replicas", rule.most_replicas, 0));
  const auto needed = static_cast<double>(rule.kv_bytes_needed > 0 ? rule.kv_bytes_needed : rule.kv_bytes);
  const auto memory = [&](int64_t replicas) {
    return static_cast<double>(rule.kv_bytes - replicas * rule.expert_bytes) / needed;
  };
  MemoryChoice choice;
  const auto look = [&](int64_t replicas) -> absl::StatusOr<MemoryPoint> {
    MemoryPoint point;
    point.replicas = static_cast<int32_t>(replicas);
    BALLAST_ASSIGN_OR_RETURN(point.balancedness, balancedness(point.replicas));
    point.goodput = std::min({1.0, point.balancedness, memory(replicas)});
    choice.tried.push_back(point);
    return point;
  };
  // The first R where memory is what binds.
  int64_t below = -1;
  int64_t from = std::min<int64_t>(rule.most_replicas, rule.kv_bytes / rule.expert_bytes) + 1;
  while (below + 1 < from) {
    const int64_t middle = below + (from - below) / 2;
    BALLAST_ASSIGN_OR_RETURN(const MemoryPoint point, look(middle));
    (point.balancedness >= std::min(1.0, memory(middle)) ? from : below) = middle;
  }
  std::sort(choice.tried.begin(), choice.tried.end(),
            [](const MemoryPoint& a, const MemoryPoint& b) { return a.replicas < b.replicas; });
  choice.best = *std::max_element(choice.tried.begin(), choice.tried.end(),
                                  [](const MemoryPoint& a, const MemoryPoint& b) { return a.goodput < b.goodput; });
  return choice;
}

}  // namespace ballast
