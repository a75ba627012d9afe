#include "worker/experts/group_slots.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"

namespace ballast {

absl::StatusOr<std::vector<int32_t>> GroupSlots(const Placement& placement, std::string_view worker,
                                                int groups_per_rank) {
  std::vector<Replica> own;
  for (const Replica& replica : placement.replicas) {
    if (placement.workers[replica.worker] == worker) own.push_back(replica);
  }
  std::sort(own.begin(), own.end(), [](const Replica& a, const Replica& b) { return a.expert < b.expert; });
  std::vector<int32_t> slots(static_cast<size_t>(placement.num_layers) * groups_per_rank, 0);
  std::vector<int> used(placement.num_layers, 0);
  for (const Replica& replica : own) {
    const int32_t layer = replica.expert.layer;
    if (used[layer] == groups_per_rank) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " has more than ", groups_per_rank, " replicas on ", std::string(worker)));
    }
    slots[static_cast<size_t>(layer) * groups_per_rank + used[layer]++] = replica.slot;
  }
  return slots;
}

}  // namespace ballast
