#ifndef BALLAST_WORKER_EXPERTS_SLOT_ARENA_H_
#define BALLAST_WORKER_EXPERTS_SLOT_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "worker/experts/slot_memory.h"

namespace ballast {

// One allocation cut into equal slots, each 64-byte aligned; transparent huge pages where the kernel has them to give.
class SlotArena final : public SlotMemory {
 public:
  // ResourceExhausted names the bytes that could not be had; InvalidArgument when they overflow or are none.
  static absl::StatusOr<SlotArena> Create(int32_t slots, size_t slot_bytes);
  SlotArena(SlotArena&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        mapped_bytes_(other.mapped_bytes_),
        slots_(other.slots_),
        slot_bytes_(other.slot_bytes_),
        stride_(other.stride_) {}
  SlotArena& operator=(SlotArena&&) = delete;
  ~SlotArena() override;

  int32_t slots() const override { return slots_; }
  std::span<std::byte> Slot(int32_t slot) const override { return {data_ + stride_ * slot, slot_bytes_}; }
  absl::Status Read(const ExpertSource& source, ExpertId expert, int32_t slot) const override {
    return source.Read(expert, Slot(slot));
  }
  absl::StatusOr<Checksum> Sum(int32_t slot) const override { return ComputeExpertChecksum(Slot(slot)); }

 private:
  SlotArena(std::byte* data, size_t mapped_bytes, int32_t slots, size_t slot_bytes, size_t stride)
      : data_(data), mapped_bytes_(mapped_bytes), slots_(slots), slot_bytes_(slot_bytes), stride_(stride) {}

  std::byte* data_;
  size_t mapped_bytes_;
  int32_t slots_;
  size_t slot_bytes_;
  size_t stride_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_SLOT_ARENA_H_
