#include "worker/model/checksum.h"

#include <gtest/gtest.h>

#include <string_view>

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

}  // namespace
}  // namespace ballast
