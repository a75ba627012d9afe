#include "worker/model/checksum.h"

#include <xxhash.h>

#include <memory>

#include "absl/strings/str_format.h"
#include "proto/base/check.h"

namespace ballast {

std::string Checksum::hex() const { return absl::StrFormat("%016x%016x", high, low); }

Checksum ComputeChecksum(std::initializer_list<std::span<const std::byte>> parts) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), &XXH3_freeState);
  BALLAST_CHECK(state != nullptr);
  XXH3_128bits_reset(state.get());
  for (const std::span<const std::byte> part : parts) XXH3_128bits_update(state.get(), part.data(), part.size());
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return {.low = hash.low64, .high = hash.high64};
}

}  // namespace ballast
