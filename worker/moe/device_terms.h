// What the GPUs of a view tell each other of themselves, and what all of them go by then. Pure.
#ifndef BALLAST_WORKER_MOE_DEVICE_TERMS_H_
#define BALLAST_WORKER_MOE_DEVICE_TERMS_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace ballast {

// One rank's.
struct DeviceOffer {
  // Of the slots that others may copy from; 0: none.
  uint64_t slot_bytes = 0;
  // The most rows that it takes in a step, as its --capacity has it.
  int32_t capacity = 0;
  // Blocks of the exchange's kernels that its GPU runs at once: they wait for each other.
  int32_t exchange_blocks = 0;
};

// The same on every rank, whatever its own offer: a rank writes into the others' memory by its own layout of it, and
// waits for as many signals as the others have blocks.
struct DeviceTerms {
  // The least: no rank brings more rows to a step than the leader announces, which is the least too.
  int capacity = 0;
  int exchange_blocks = 0;
  // All have slots of one size.
  bool share_slots = false;
};

// `offers` by rank, at least one. InvalidArgument names the rank, the field, its value and its limit.
absl::StatusOr<DeviceTerms> AgreeOnTerms(std::span<const DeviceOffer> offers);

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_DEVICE_TERMS_H_
