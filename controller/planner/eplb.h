// The planner that every engine has: DeepSeek's EPLB as published (github.com/deepseek-ai/EPLB, eplb.py), the baseline
// that others are measured against.
#ifndef BALLAST_CONTROLLER_PLANNER_EPLB_H_
#define BALLAST_CONTROLLER_PLANNER_EPLB_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/packs.h"
#include "controller/planner/planner.h"

namespace ballast {

// The published functions, on one layer, with the published arithmetic (float) and tie order (the lower index first).

struct Packing {
  std::vector<int32_t> pack;          // [items]
  std::vector<int32_t> rank_in_pack;  // [items]
};
// Heaviest first into the lightest pack that has room; every pack gets weights.size() / packs items.
Packing BalancedPacking(std::span<const float> weights, int32_t packs);

struct Replication {
  std::vector<int32_t> expert;  // [replicas]: 0 .. experts - 1, then the copies in the order they were given
  std::vector<int32_t> rank;    // [replicas]: which copy of its expert it is
  std::vector<int32_t> count;   // [experts]
};
// Gives every replica beyond the first to the expert with most tokens a replica.
Replication ReplicateExperts(std::span<const float> weights, int32_t replicas);

// physical_to_logical of one layer: [replicas], gpus blocks of replicas / gpus. Hierarchical (groups to nodes, replicas
// within nodes, then to GPUs) when groups divide by nodes, else global. Needs weights to divide by groups, gpus by
// nodes and replicas by gpus; the caller sees to it. May put two replicas of an expert on one GPU.
// `rank` [replicas], where not null, gets which copy of its expert each one is, from 0: the published order of
// logical_to_physical.
std::vector<int32_t> RebalanceExperts(std::span<const float> weights, int32_t replicas, int32_t groups, int32_t nodes,
                                      int32_t gpus, std::vector<int32_t>* rank = nullptr);

// One layer by the global form, experts made distinct within a worker as EplbPolicy does. slots <= experts.
Packs EplbPacks(std::span<const double> tokens, int32_t workers, int32_t slots);

// EPLB for Ballast's placements: on the blend of the scenarios, as many slots a layer on every worker as the request
// allows. Where the published algorithm puts an expert twice on one worker, the second copy changes places with the
// replica of nearest weight on a worker without that expert, or, if every worker has it, gives its slot to the expert
// with most tokens a replica. Packs, which have no order of their own, go to the workers that hold most of them already
// (nodes first where hierarchical), so that less moves. Speeds of workers are not considered.
class EplbPolicy final : public PlannerPolicy {
 public:
  // How an expert's tokens are split over its replicas: with shares solved for the load, or equally as published.
  using Split = ballast::Split;
  // `groups`: the model's expert groups (group-limited routing); 1 for none, then the global form.
  explicit EplbPolicy(int32_t groups = 1, Split split = Split::kSolved) : groups_(groups), split_(split) {}
  std::string_view name() const override { return "eplb"; }
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override;
  Split split(const PlanRequest& /*request*/) const override { return split_; }

 private:
  const int32_t groups_;
  const Split split_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_EPLB_H_
