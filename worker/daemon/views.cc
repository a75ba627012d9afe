#include "worker/daemon/views.h"

#include <algorithm>
#include <vector>

namespace ballast {

GroupView ToGroupView(const v1::View& view, const std::string& own_name) {
  GroupView out{.view = ViewId(view.view())};
  for (const v1::Member& member : view.members()) {
    if (member.worker() == own_name) out.rank = static_cast<int32_t>(out.members.size());
    out.members.push_back({.worker = member.worker(),
                           .incarnation = Incarnation(member.incarnation()),
                           .data_address = member.data_address(),
                           .node = member.node(),
                           .speed = std::max<uint32_t>(1, member.speed())});
  }
  return out;
}

int CountMissing(const Placement& placement, const v1::View& view) {
  std::vector<bool> live(placement.workers.size());
  for (size_t i = 0; i < live.size(); ++i) {
    live[i] = std::any_of(view.members().begin(), view.members().end(),
                          [&](const v1::Member& member) { return member.worker() == placement.workers[i]; });
  }
  std::vector<bool> held(static_cast<size_t>(placement.num_layers) * placement.num_experts);
  for (const Replica& replica : placement.replicas) {
    if (live[replica.worker]) {
      held[static_cast<size_t>(replica.expert.layer) * placement.num_experts + replica.expert.expert] = true;
    }
  }
  return static_cast<int>(std::count(held.begin(), held.end(), false));
}

}  // namespace ballast
