#ifndef BALLAST_WORKER_EXPERTS_DEVICE_COPIER_H_
#define BALLAST_WORKER_EXPERTS_DEVICE_COPIER_H_

#include <cuda_runtime_api.h>

#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/experts/expert_mover.h"

namespace ballast {

// Copies with a GPU's copy engines, on a stream of the lowest priority: among this GPU's memory, memory of others that
// is mapped here, and pinned host memory (from pageable memory too, but then Start waits). One thread, with the GPU
// that was current at Create being current.
class DeviceCopier final : public ChunkCopier {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceCopier>> Create();
  ~DeviceCopier() override;
  DeviceCopier(const DeviceCopier&) = delete;
  DeviceCopier& operator=(const DeviceCopier&) = delete;

  absl::Status Start(const std::byte* from, std::byte* to, size_t bytes) override;
  // Looks again and again for up to 300 us, since a wake-up takes tens of them, then sleeps. A move with a limit, as
  // beside serving, finds its copies done.
  absl::Status AwaitAllBut(int left) override;

  cudaStream_t stream() const { return stream_; }

 private:
  DeviceCopier() = default;

  cudaStream_t stream_ = nullptr;
  // Of the copies under way, the oldest first; and what is left over from others.
  std::deque<cudaEvent_t> ends_;
  std::vector<cudaEvent_t> spare_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_DEVICE_COPIER_H_
