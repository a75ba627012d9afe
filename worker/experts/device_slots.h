// Expert slots in a GPU's memory.
#ifndef BALLAST_WORKER_EXPERTS_DEVICE_SLOTS_H_
#define BALLAST_WORKER_EXPERTS_DEVICE_SLOTS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/base/mutex.h"
#include "worker/experts/slot_memory.h"

namespace ballast {

// Host memory that a GPU's copy engines reach by themselves, at the full speed of the bus.
class PinnedMemory {
 public:
  // ResourceExhausted, and what CudaStatus has.
  static absl::StatusOr<PinnedMemory> Allocate(size_t bytes);
  std::span<std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { cudaFreeHost(p); }
  };
  PinnedMemory(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::unique_ptr<std::byte, Free> data_;
  size_t size_;
};

// ComputeExpertChecksum of bytes in device memory; returns when it is done. Any thread.
using DeviceChecksum = std::function<absl::StatusOr<Checksum>(std::span<const std::byte>)>;

struct DeviceSlotsOptions {
  int32_t slots = 0;
  size_t slot_bytes = 0;
  // Device memory for the slots, StrideBytes() * slots long and 256-byte aligned, which outlives them; null: their own.
  // Memory of NcclCommunicator::AllocateShared lets the other GPUs of the node copy from here.
  std::byte* memory = nullptr;
  // Null: the bytes are copied to the host and summed there, at the speed of the bus.
  DeviceChecksum checksum;
};

// All of it with the GPU that was current at Create, whatever is current.
class DeviceSlots final : public SlotMemory {
 public:
  // InvalidArgument names the field, its value and its limits; ResourceExhausted: no memory.
  static absl::StatusOr<std::unique_ptr<DeviceSlots>> Create(DeviceSlotsOptions options);
  ~DeviceSlots() override;
  DeviceSlots(const DeviceSlots&) = delete;
  DeviceSlots& operator=(const DeviceSlots&) = delete;

  // From one slot to the next.
  static size_t StrideBytes(size_t slot_bytes) { return (slot_bytes + 255) / 256 * 256; }

  int32_t slots() const override { return options_.slots; }
  std::span<std::byte> Slot(int32_t slot) const override {
    return {memory_ + StrideBytes(options_.slot_bytes) * slot, options_.slot_bytes};
  }
  // All by way of one buffer on the host, one call at a time.
  absl::Status Read(const ExpertSource& source, ExpertId expert, int32_t slot) const override BALLAST_EXCLUDES(mu_);
  absl::StatusOr<Checksum> Sum(int32_t slot) const override BALLAST_EXCLUDES(mu_);
  // A copy of a slot's bytes in host memory, slot_bytes long.
  absl::Status CopyOut(std::span<const std::byte> slot, std::span<std::byte> host) const BALLAST_EXCLUDES(mu_);

 private:
  DeviceSlots(DeviceSlotsOptions options, PinnedMemory buffer)
      : options_(std::move(options)), memory_(options_.memory), buffer_(std::move(buffer)) {}

  absl::Status Copy(std::byte* to, const std::byte* from) const BALLAST_REQUIRES(mu_);

  const DeviceSlotsOptions options_;
  int device_ = 0;
  std::byte* memory_;
  cudaStream_t stream_ = nullptr;
  mutable Mutex mu_;
  const PinnedMemory buffer_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_DEVICE_SLOTS_H_
