// Plans as EPLB has them: arrays of physical experts instead of placements. What the C library does, without its
// pointers.
#ifndef BALLAST_CONTROLLER_CAPI_PHYSICAL_H_
#define BALLAST_CONTROLLER_CAPI_PHYSICAL_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ballast {

// The sizes of one call, all at least 1; fields as in ballast_planner_request.
struct PhysicalShape {
  int32_t num_layers = 0;
  int32_t num_experts = 0;
  int32_t num_replicas = 0;
  int32_t num_gpus = 1;
  int32_t slots() const { return num_replicas / num_gpus; }
};

struct PhysicalRequest {
  PhysicalShape shape;
  int32_t num_groups = 1;
  int32_t num_nodes = 1;
  enum class Policy { kCostAware, kEplb } policy = Policy::kCostAware;
  enum class Split { kEqual, kShares } split = Split::kEqual;
  int64_t proposals = 0;
  std::span<const double> weight;     // [layers][experts]
  std::span<const int64_t> previous;  // [layers][replicas], or empty
};

struct PhysicalPlan {
  std::vector<int64_t> phy2log;  // [layers][replicas]
  std::vector<int64_t> rank;     // [layers][replicas]
  std::vector<int64_t> logcnt;   // [layers][experts]
  std::vector<double> shares;    // [layers][replicas]; empty with equal split
};

// InvalidArgument names the field, the value and the limit unless sizes lie in 1 .. 2^20, layers * experts and layers *
// replicas are at most 2^26 and num_replicas is a multiple of num_gpus.
absl::Status Validate(const PhysicalShape& shape);

// The arrays that the C functions of the same names give; see ballast_planner.h. InvalidArgument names the field, the
// value and the limit. `shape` is valid, spans have its sizes.
absl::StatusOr<PhysicalPlan> Rebalance(const PhysicalRequest& request);
absl::Status LogicalToPhysical(const PhysicalShape& shape, std::span<const int64_t> phy2log,
                               std::span<const int64_t> rank, int32_t width, std::span<int64_t> log2phy);
absl::StatusOr<std::vector<double>> SolvePhysicalShares(const PhysicalShape& shape, std::span<const double> weight,
                                                        std::span<const int64_t> phy2log);
// 1 / (replicas of the expert) for every physical expert of a complete map.
std::vector<double> EqualShares(const PhysicalShape& shape, const PhysicalPlan& plan);

// One layer: `rank`, where not empty, is reordered with `phy2log`.
void KeepSlots(int32_t gpus, std::span<const int64_t> previous, std::span<int64_t> phy2log, std::span<int64_t> rank);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CAPI_PHYSICAL_H_
