// The GPUs of a view: a communicator, and which of its members' expert slots are within direct reach.
#ifndef BALLAST_WORKER_MOE_DEVICE_MESH_H_
#define BALLAST_WORKER_MOE_DEVICE_MESH_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/moe/device_terms.h"
#include "worker/step/group_view.h"
#include "worker/transport/nccl/communicator.h"
#include "worker/transport/transport.h"

namespace ballast {

struct DeviceMesh {
  std::unique_ptr<NcclCommunicator> communicator;
  DeviceTerms terms;
  // [ranks], where each rank's slots are seen from here; empty when the ranks' slots are of different sizes, not of
  // NcclMemory, or not within direct reach.
  std::vector<const std::byte*> slots;
};

// What ConnectDevices receives into and sends from.
using DeviceMeshBuffers = std::vector<std::byte>;

// Every member calls it, on the step thread, with the GPU current that it is to use. The communicator's id and each
// member's offer, of which the size of `slots` (of NcclMemory; empty: not shared) is part, travel over the view's own
// mesh. Errors: the transport's and the communicator's; what another member could not do, with its rank; as
// AgreeOnTerms. `buffers` live as long as the transport, `interrupted` (see NcclCommunicator::Create) as long as the
// result.
absl::StatusOr<DeviceMesh> ConnectDevices(const GroupView& view, Transport& transport, std::span<std::byte> slots,
                                          int capacity, DeviceMeshBuffers& buffers, absl::Time deadline,
                                          const std::atomic<bool>& interrupted);

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_DEVICE_MESH_H_
