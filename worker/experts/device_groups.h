#ifndef BALLAST_WORKER_EXPERTS_DEVICE_GROUPS_H_
#define BALLAST_WORKER_EXPERTS_DEVICE_GROUPS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/experts/device_slots.h"

namespace ballast {

// The placement in force as kernels see it: GroupSlots() of every layer in device memory, always at the same place, so
// that a captured graph serves one epoch after another. One thread, and one stream, on which the graphs run too.
class DeviceGroups {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceGroups>> Create(int layers, int groups_per_rank);
  ~DeviceGroups();
  DeviceGroups(const DeviceGroups&) = delete;
  DeviceGroups& operator=(const DeviceGroups&) = delete;

  // [groups_per_rank] slots of a layer.
  const int32_t* layer(int layer) const { return device_ + static_cast<size_t>(layer) * groups_per_rank_; }

  // What is enqueued on the stream from now on sees `slots`, [layers][groups_per_rank]; what was before does not. Waits
  // only where the flip before this one has not been reached yet. InvalidArgument: another size.
  absl::Status Flip(std::span<const int32_t> slots, cudaStream_t stream);

 private:
  DeviceGroups(size_t words, int groups_per_rank, PinnedMemory staging)
      : words_(words), groups_per_rank_(groups_per_rank), staging_(std::move(staging)) {}

  const size_t words_;
  const int groups_per_rank_;
  // What the last flip copies from, until `copied_`.
  const PinnedMemory staging_;
  int32_t* device_ = nullptr;
  cudaEvent_t copied_ = nullptr;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_DEVICE_GROUPS_H_
