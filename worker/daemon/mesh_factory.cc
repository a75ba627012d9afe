#include "worker/daemon/mesh_factory.h"

#include "worker/transport/ucx_transport.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<Transport>> UcxMeshFactory::Connect(const GroupView& view, absl::Time deadline,
                                                                   std::vector<int>& unreachable) {
  unreachable.clear();
  MeshView mesh{.view = view.view, .rank = view.rank};
  for (const GroupMember& member : view.members) {
    mesh.members.push_back({.address = member.data_address, .incarnation = member.incarnation});
  }
  return ConnectUcx(context_, listener_, mesh, deadline, {}, &unreachable);
}

}  // namespace ballast
