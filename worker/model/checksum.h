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

// An expert's, in two levels so that a GPU computes it at the speed of its memory (XXH3 alone is one long chain): of
// the digests of chunks of kExpertChunkBytes, each the 16 bytes of `low` and `high` in little-endian order, with zeros
// up to a multiple of kExpertDigestAlign bytes. What the last chunk leaves over belongs to it.
inline constexpr size_t kExpertChunkBytes = 16384;
inline constexpr size_t kExpertDigestAlign = 256;
Checksum ComputeExpertChecksum(std::initializer_list<std::span<const std::byte>> parts);
inline Checksum ComputeExpertChecksum(std::span<const std::byte> bytes) { return ComputeExpertChecksum({bytes}); }

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_CHECKSUM_H_
