#ifndef BALLAST_WORKER_DAEMON_MESH_FACTORY_H_
#define BALLAST_WORKER_DAEMON_MESH_FACTORY_H_

#include <memory>
#include <vector>

#include "worker/step/step_engine.h"
#include "worker/transport/mesh_listener.h"
#include "worker/transport/ucx.h"

namespace ballast {

// Meshes between processes: UCX, joined through the worker's data port.
class UcxMeshFactory final : public TransportFactory {
 public:
  // `listener` must outlive it.
  UcxMeshFactory(std::shared_ptr<UcxContext> context, MeshListener& listener)
      : context_(std::move(context)), listener_(listener) {}

  absl::StatusOr<std::unique_ptr<Transport>> Connect(const GroupView& view, absl::Time deadline,
                                                     std::vector<int>& unreachable) override;
  void Cancel(ViewId view) override { listener_.Abandon(view); }

 private:
  const std::shared_ptr<UcxContext> context_;
  MeshListener& listener_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_MESH_FACTORY_H_
