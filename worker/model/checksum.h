#ifndef BALLAST_WORKER_MODEL_CHECKSUM_H_
#define BALLAST_WORKER_MODEL_CHECKSUM_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace ballast {

// XXH3-128 (xxHash 0.8, seed 0): finds every accident, is no defence against forgery.
struct Checksum {
  uint64_t low = 0;
  uint64_t high = 0;
  friend auto operator<=>(const Checksum&, const Checksum&) = default;
  // 32 digits, the canonical (big-endian) form that xxh128sum prints.
  std::string hex() const;
};

// Of the bytes of `parts` one after another: cutting the same bytes differently changes nothing. At the speed of
// memory.
Checksum ComputeChecksum(std::initializer_list<std::span<const std::byte>> parts);
inline Checksum ComputeChecksum(std::span<const std::byte> bytes) { return ComputeChecksum({bytes}); }

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_CHECKSUM_H_
