#include "worker/model/checksum.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_format.h"
#include "proto/base/check.h"

namespace ballast {

std::string Checksum::hex() const { return absl::StrFormat("%016x%016x", high, low); }

namespace {

class Hasher {
 public:
  Hasher() : state_(XXH3_createState(), &XXH3_freeState) {
    BALLAST_CHECK(state_ != nullptr);
    XXH3_128bits_reset(state_.get());
  }
  void Add(std::span<const std::byte> bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }
  // Of what was added since the last Finish.
  Checksum Finish() {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    XXH3_128bits_reset(state_.get());
    return {.low = hash.low64, .high = hash.high64};
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

void AppendLittleEndian(uint64_t value, std::vector<std::byte>& bytes) {
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<std::byte>(value >> 8 * i));
}

}  // namespace

Checksum ComputeChecksum(std::initializer_list<std::span<const std::byte>> parts) {
  Hasher hasher;
  for (const std::span<const std::byte> part : parts) hasher.Add(part);
  return hasher.Finish();
}

Checksum ComputeExpertChecksum(std::initializer_list<std::span<const std::byte>> parts) {
  size_t bytes = 0;
  for (const std::span<const std::byte> part : parts) bytes += part.size();
  const size_t chunks = std::max<size_t>(1, bytes / kExpertChunkBytes);
  std::vector<std::byte> digests;
  digests.reserve(16 * chunks + kExpertDigestAlign);
  Hasher hasher;
  size_t room = chunks > 1 ? kExpertChunkBytes : bytes;  // of the chunk
  const auto finish = [&] {
    const Checksum chunk = hasher.Finish();
    AppendLittleEndian(chunk.low, digests);
    AppendLittleEndian(chunk.high, digests);
    const size_t done = digests.size() / 16;
    room = done + 1 < chunks ? kExpertChunkBytes : bytes - done * kExpertChunkBytes;
  };
  for (std::span<const std::byte> part : parts) {
    while (!part.empty()) {
      const size_t take = std::min(room, part.size());
      hasher.Add(part.first(take));
      part = part.subspan(take);
      room -= take;
      if (room == 0 && digests.size() / 16 + 1 < chunks) finish();
    }
  }
  finish();
  digests.resize((digests.size() + kExpertDigestAlign - 1) / kExpertDigestAlign * kExpertDigestAlign);
  hasher.Add(digests);
  return hasher.Finish();
}

}  // namespace ballast
