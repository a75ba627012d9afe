#include "worker/experts/device_slots.h"

#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// Makes a GPU current for as long as it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    cudaGetDevice(&before_);
    cudaSetDevice(device);
  }
  ~CurrentDevice() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

}  // namespace

absl::StatusOr<PinnedMemory> PinnedMemory::Allocate(size_t bytes) {
  void* data = nullptr;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&data, bytes, cudaHostAllocDefault),
                                     absl::StrCat("pinning ", bytes, " bytes of host memory")));
  return PinnedMemory(static_cast<std::byte*>(data), bytes);
}

absl::StatusOr<std::unique_ptr<DeviceSlots>> DeviceSlots::Create(DeviceSlotsOptions options) {
  const size_t limit = std::numeric_limits<size_t>::max() / 2;
  if (options.slots < 1)
    return absl::InvalidArgumentError(absl::StrCat("slots is ", options.slots, ", not at least 1"));
  if (options.slot_bytes < 1 || options.slot_bytes > limit / static_cast<size_t>(options.slots)) {
    return absl::InvalidArgumentError(absl::StrCat("slot_bytes is ", options.slot_bytes, ", not between 1 and ",
                                                   limit / static_cast<size_t>(options.slots)));
  }
  BALLAST_ASSIGN_OR_RETURN(PinnedMemory buffer, PinnedMemory::Allocate(options.slot_bytes));
  std::unique_ptr<DeviceSlots> slots(new DeviceSlots(std::move(options), std::move(buffer)));
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&slots->device_), "expert slots"));
  if (slots->memory_ == nullptr) {
    const size_t bytes = StrideBytes(slots->options_.slot_bytes) * slots->options_.slots;
    void* memory = nullptr;
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&memory, bytes), absl::StrCat(bytes, " bytes of expert slots")));
    slots->memory_ = static_cast<std::byte*>(memory);
  }
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&slots->stream_, cudaStreamNonBlocking), "the slots' stream"));
  return slots;
}

DeviceSlots::~DeviceSlots() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  if (options_.memory == nullptr) cudaFree(memory_);
}

absl::Status DeviceSlots::Copy(std::byte* to, const std::byte* from) const {
  const CurrentDevice current(device_);
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(to, from, options_.slot_bytes, cudaMemcpyDefault, stream_), "copying an expert"));
  return CudaStatus(cudaStreamSynchronize(stream_), "copying an expert");
}

absl::Status DeviceSlots::Read(const ExpertSource& source, ExpertId expert, int32_t slot) const {
  MutexLock lock(mu_);
  BALLAST_RETURN_IF_ERROR(source.Read(expert, buffer_.bytes()));
  return Copy(Slot(slot).data(), buffer_.bytes().data());
}

absl::StatusOr<Checksum> DeviceSlots::Sum(int32_t slot) const {
  if (options_.checksum != nullptr) {
    const CurrentDevice current(device_);
    return options_.checksum(Slot(slot));
  }
  MutexLock lock(mu_);
  BALLAST_RETURN_IF_ERROR(Copy(buffer_.bytes().data(), Slot(slot).data()));
  return ComputeExpertChecksum(buffer_.bytes());
}

absl::Status DeviceSlots::CopyOut(std::span<const std::byte> slot, std::span<std::byte> host) const {
  MutexLock lock(mu_);
  BALLAST_RETURN_IF_ERROR(Copy(buffer_.bytes().data(), slot.data()));
  std::memcpy(host.data(), buffer_.bytes().data(), host.size());
  return absl::OkStatus();
}

}  // namespace ballast
