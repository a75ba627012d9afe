#include "worker/model/checksum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>
#include <vector>

namespace ballast {
namespace {

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// What xxh128sum (xxHash 0.8) prints.
TEST(Checksum, IsXxh128) {
  EXPECT_EQ(ComputeChecksum(Bytes("")).hex(), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(ComputeChecksum(Bytes("ballast")).hex(), "63e5bc02cda073d52edd7c797db72850");
}

TEST(Checksum, PartsDoNotMatter) {
  EXPECT_EQ(ComputeChecksum({Bytes("bal"), Bytes(""), Bytes("last")}), ComputeChecksum(Bytes("ballast")));
  EXPECT_NE(ComputeChecksum(Bytes("ballasT")), ComputeChecksum(Bytes("ballast")));
}

// Chunk by chunk, then of the digests.
Checksum PlainExpertChecksum(std::span<const std::byte> bytes) {
  const size_t chunks = std::max<size_t>(1, bytes.size() / kExpertChunkBytes);
  std::vector<std::byte> digests;
  for (size_t i = 0; i < chunks; ++i) {
    const size_t begin = i * kExpertChunkBytes, end = i + 1 < chunks ? begin + kExpertChunkBytes : bytes.size();
    const Checksum chunk = ComputeChecksum(bytes.subspan(begin, end - begin));
    for (const uint64_t half : {chunk.low, chunk.high}) {
      for (int b = 0; b < 8; ++b) digests.push_back(static_cast<std::byte>(half >> 8 * b));
    }
  }
  digests.resize((digests.size() + 255) / 256 * 256);
  return ComputeChecksum(digests);
}

TEST(ExpertChecksum, IsOfTheChunksDigests) {
  for (const size_t size : {0, 1, 384, 16383, 16384, 16385, 32767, 32768, 100000, 17 * 16384}) {
    std::vector<std::byte> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * i >> 3);
    const std::span<const std::byte> all = bytes;
    EXPECT_EQ(ComputeExpertChecksum(all), PlainExpertChecksum(all)) << size;
    const size_t a = size / 3, b = size / 2;
    EXPECT_EQ(ComputeExpertChecksum({all.first(a), all.subspan(a, b - a), all.subspan(b)}), ComputeExpertChecksum(all))
        << size;
    if (size == 0) continue;
    const Checksum before = ComputeExpertChecksum(all);
    bytes.back() ^= std::byte{1};
    EXPECT_NE(ComputeExpertChecksum(all), before) << size;
  }
}

}  // namespace
}  // namespace ballast
