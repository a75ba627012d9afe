// Which slot each group of a layer's rows belongs to: what the kernels read in place of a replica table.
#ifndef BALLAST_WORKER_EXPERTS_GROUP_SLOTS_H_
#define BALLAST_WORKER_EXPERTS_GROUP_SLOTS_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/placement/placement.h"

namespace ballast {

// [layers][groups_per_rank]: a worker's replicas of a layer are its groups, by ascending expert; 0 for groups that the
// layer does not have. A worker that is not in the placement has none.
// InvalidArgument: a layer has more than groups_per_rank; names it.
absl::StatusOr<std::vector<int32_t>> GroupSlots(const Placement& placement, std::string_view worker,
                                                int groups_per_rank);

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_GROUP_SLOTS_H_
