// Group-limited routing: a token's experts come from few of the model's expert groups, so a group is kept whole on a
// node, and a token reaches few nodes.
#ifndef BALLAST_CONTROLLER_PLANNER_NODE_LIMITED_H_
#define BALLAST_CONTROLLER_PLANNER_NODE_LIMITED_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/planner.h"

namespace ballast {

// The node of each group, groups / nodes groups a node: heaviest first into the lightest node with room, as EPLB does,
// and from there two groups change places for as long as that lowers the 8-norm of the nodes' loads. `loads`
// [scenarios][groups]; every scenario's mean counts the same, one without load is ignored. O(groups^2 * scenarios) a
// pass, at most 64 passes.
std::vector<int32_t> GroupsToNodes(std::span<const std::vector<double>> loads, int32_t nodes);

// Another policy, node by node: every layer's groups are packed to the nodes, and `inner` places each node's experts on
// the node's workers, so that all replicas of an expert are on one node. With a placement in force, nodes and the
// workers within them change places such that most replicas stay. Layers that `inner` splits equally are split equally,
// for others the shares are left to be solved. Thread-safe if `inner` is.
class NodeLimitedPolicy final : public PlannerPolicy {
 public:
  // `groups`: the model's expert groups, each of as many experts with consecutive numbers. `inner` outlives this.
  NodeLimitedPolicy(const PlannerPolicy& inner, int32_t groups) : inner_(inner), groups_(groups) {}
  std::string_view name() const override { return inner_.name(); }
  // InvalidArgument unless groups divide the experts, nodes divide the groups, and nodes are consecutive blocks of as
  // many workers each; what `inner` returns.
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override;

 private:
  const PlannerPolicy& inner_;
  const int32_t groups_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_NODE_LIMITED_H_
