#include "worker/experts/host_tier.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/experts/fake_experts.h"

namespace ballast {
namespace {

TEST(HostTier, FindsWhatItHasLoaded) {
  const FakeExperts source(2, 4, 100);
  std::vector<std::byte> memory(250);
  const auto tier = HostTier::Load(source, {{1, 3}, {0, 2}}, memory);
  ASSERT_TRUE(tier.ok()) << tier.status();
  for (const ExpertId id : {ExpertId{1, 3}, ExpertId{0, 2}}) {
    const std::span<const std::byte> bytes = tier->Find(id);
    ASSERT_EQ(bytes.size(), 100u);
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == source.Value(id); }));
  }
  EXPECT_TRUE(tier->Find({1, 2}).empty());
}

TEST(HostTier, Refusals) {
  FakeExperts source(2, 4, 100);
  std::vector<std::byte> memory(199);
  EXPECT_EQ(HostTier::Load(source, {{1, 3}, {0, 2}}, memory).status(),
            absl::InvalidArgumentError("memory is 199 bytes; 2 experts of 100 are wanted"));
  source.broken = {1, 3};
  const absl::Status status = HostTier::Load(source, {{1, 3}}, memory).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("checksum of layer 1 expert 3 is "));
}

}  // namespace
}  // namespace ballast
