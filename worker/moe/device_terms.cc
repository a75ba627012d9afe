#include "worker/moe/device_terms.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"

namespace ballast {

absl::StatusOr<DeviceTerms> AgreeOnTerms(std::span<const DeviceOffer> offers) {
  DeviceTerms terms = {.capacity = offers[0].capacity,
                       .exchange_blocks = offers[0].exchange_blocks,
                       .share_slots = offers[0].slot_bytes > 0};
  for (size_t r = 0; r < offers.size(); ++r) {
    const DeviceOffer& offer = offers[r];
    if (offer.capacity < 1 || offer.exchange_blocks < 1) {
      const bool capacity = offer.capacity < 1;
      return absl::InvalidArgumentError(absl::StrCat("rank ", r, ": ", capacity ? "capacity" : "exchange_blocks",
                                                     " is ", capacity ? offer.capacity : offer.exchange_blocks,
                                                     ", has to be at least 1"));
    }
    terms.capacity = std::min(terms.capacity, offer.capacity);
    terms.exchange_blocks = std::min(terms.exchange_blocks, offer.exchange_blocks);
    terms.share_slots &= offer.slot_bytes == offers[0].slot_bytes;
  }
  return terms;
}

}  // namespace ballast
