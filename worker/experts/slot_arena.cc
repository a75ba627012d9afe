#include "worker/experts/slot_arena.h"

#include <sys/mman.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr size_t kSlotAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

absl::StatusOr<SlotArena> SlotArena::Create(int32_t slots, size_t slot_bytes) {
  if (slots < 1 || slot_bytes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("an arena of ", slots, " slots of ", slot_bytes, " bytes: both must be at least 1"));
  }
  if (slot_bytes > std::numeric_limits<size_t>::max() / 2 / static_cast<size_t>(slots) - kHugePage) {
    return absl::InvalidArgumentError(
        absl::StrCat("an arena of ", slots, " slots of ", slot_bytes, " bytes: more than an address space"));
  }
  const size_t stride = (slot_bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
  const size_t bytes = stride * static_cast<size_t>(slots);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", slots, " slots: ", bytes, " bytes"));
  }
  // Only a wish: without huge pages everything works as well.
  if (bytes >= kHugePage) static_cast<void>(madvise(data, bytes, MADV_HUGEPAGE));
  return SlotArena(static_cast<std::byte*>(data), bytes, slots, slot_bytes, stride);
}

SlotArena::~SlotArena() {
  if (data_ != nullptr) BALLAST_CHECK(munmap(data_, mapped_bytes_) == 0) << "munmap of " << mapped_bytes_ << " bytes";
}

}  // namespace ballast
