#include "worker/experts/device_copier.h"

#include <thread>

#include "absl/time/clock.h"
#include "kernels/cuda/status.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr absl::Duration kPatience = absl::Microseconds(300);

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCopier>> DeviceCopier::Create() {
  std::unique_ptr<DeviceCopier> copier(new DeviceCopier);
  int least = 0, greatest = 0;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "a copier's stream"));
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithPriority(&copier->stream_, cudaStreamNonBlocking, least), "a copier's stream"));
  return copier;
}

DeviceCopier::~DeviceCopier() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  for (const cudaEvent_t event : ends_) cudaEventDestroy(event);
  for (const cudaEvent_t event : spare_) cudaEventDestroy(event);
  cudaStreamDestroy(stream_);
}

absl::Status DeviceCopier::Start(const std::byte* from, std::byte* to, size_t bytes) {
  if (spare_.empty()) {
    cudaEvent_t event;
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "a copy's event"));
    spare_.push_back(event);
  }
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "a copy"));
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(spare_.back(), stream_), "a copy's event"));
  ends_.push_back(spare_.back());
  spare_.pop_back();
  return absl::OkStatus();
}

absl::Status DeviceCopier::AwaitAllBut(int left) {
  while (ends_.size() > static_cast<size_t>(left)) {
    const absl::Time asleep = absl::Now() + kPatience;
    cudaError_t error;
    while ((error = cudaEventQuery(ends_.front())) == cudaErrorNotReady && absl::Now() < asleep) {
      std::this_thread::yield();
    }
    if (error == cudaErrorNotReady) error = cudaEventSynchronize(ends_.front());
    const absl::Status status = CudaStatus(error, "a copy");
    spare_.push_back(ends_.front());
    ends_.pop_front();
    BALLAST_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

}  // namespace ballast
