#ifndef BALLAST_WORKER_EXPERTS_SLOT_ARENA_H_
#define BALLAST_WORKER_EXPERTS_SLOT_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/statusor.h"

namespace ballast {

// One allocation cut into equal slots, each 64-byte aligned; transparent huge pages where the kernel has them to give.
class SlotArena {
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
  ~SlotArena();

  int32_t slots() const { return slots_; }
  // REQUIRES: 0 <= slot < slots().
  std::span<std::byte> Slot(int32_t slot) const { return {data_ + stride_ * slot, slot_bytes_}; }

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
