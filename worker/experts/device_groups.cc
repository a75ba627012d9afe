#include "worker/experts/device_groups.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"
#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<DeviceGroups>> DeviceGroups::Create(int layers, int groups_per_rank) {
  if (layers < 1 || groups_per_rank < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers is ", layers, " and groups_per_rank ", groups_per_rank, ": both must be at least 1"));
  }
  const size_t words = static_cast<size_t>(layers) * groups_per_rank;
  BALLAST_ASSIGN_OR_RETURN(PinnedMemory staging, PinnedMemory::Allocate(words * sizeof(int32_t)));
  std::unique_ptr<DeviceGroups> groups(new DeviceGroups(words, groups_per_rank, std::move(staging)));
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaMalloc(reinterpret_cast<void**>(&groups->device_), words * sizeof(int32_t)), "the groups' slots"));
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemset(groups->device_, 0, words * sizeof(int32_t)), "the groups' slots"));
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaEventCreateWithFlags(&groups->copied_, cudaEventDisableTiming | cudaEventBlockingSync), "a flip's event"));
  return groups;
}

DeviceGroups::~DeviceGroups() {
  if (copied_ != nullptr) {
    cudaEventSynchronize(copied_);
    cudaEventDestroy(copied_);
  }
  cudaFree(device_);
}

absl::Status DeviceGroups::Flip(std::span<const int32_t> slots, cudaStream_t stream) {
  if (slots.size() != words_) {
    return absl::InvalidArgumentError(absl::StrCat("slots has ", slots.size(), " numbers, not ", words_));
  }
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(copied_), "the flip before"));
  std::memcpy(staging_.bytes().data(), slots.data(), slots.size_bytes());
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(device_, staging_.bytes().data(), slots.size_bytes(), cudaMemcpyHostToDevice, stream), "a flip"));
  return CudaStatus(cudaEventRecord(copied_, stream), "a flip");
}

}  // namespace ballast
