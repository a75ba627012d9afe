// Where a worker's expert slots lie: this process's memory (slot_arena.h) or a GPU's (device_slots.h).
#ifndef BALLAST_WORKER_EXPERTS_SLOT_MEMORY_H_
#define BALLAST_WORKER_EXPERTS_SLOT_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/experts/expert_source.h"
#include "worker/model/checksum.h"

namespace ballast {

// Thread-safe: several threads may read slots, and write different ones; who may touch which is the caller's business.
class SlotMemory {
 public:
  virtual ~SlotMemory() = default;

  virtual int32_t slots() const = 0;
  // The bytes of a slot, 64-byte aligned; addresses that only the memory's own processor need be able to use.
  // REQUIRES: 0 <= slot < slots().
  virtual std::span<std::byte> Slot(int32_t slot) const = 0;
  // Fills a slot from the source; returns when it is filled. Errors: the source's, and the memory's own.
  virtual absl::Status Read(const ExpertSource& source, ExpertId expert, int32_t slot) const = 0;
  // What the slot's bytes sum to, as ComputeExpertChecksum has it.
  virtual absl::StatusOr<Checksum> Sum(int32_t slot) const = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_SLOT_MEMORY_H_
