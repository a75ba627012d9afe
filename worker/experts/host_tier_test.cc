#include "worker/experts/host_tier.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

// Experts whose bytes are their own number. Useful for: tiers without a checkpoint.
class FakeExperts final : public ExpertSource {
 public:
  int32_t num_layers() const override { return 2; }
  int32_t num_experts() const override { return 4; }
  size_t expert_bytes() const override { return 100; }
  absl::Status Read(ExpertId expert, std::span<std::byte> out) const override {
    std::fill(out.begin(), out.end(), Value(expert));
    if (expert == broken) out[50] = std::byte{0xff};
    return absl::OkStatus();
  }
  absl::StatusOr<Checksum> ExpectedChecksum(ExpertId expert) const override {
    return ComputeExpertChecksum(std::vector<std::byte>(expert_bytes(), Value(expert)));
  }
  static std::byte Value(ExpertId id) { return static_cast<std::byte>(id.layer * 4 + id.expert + 1); }

  ExpertId broken{-1, -1};
};

TEST(HostTier, FindsWhatItHasLoaded) {
  const FakeExperts source;
  std::vector<std::byte> memory(250);
  const auto tier = HostTier::Load(source, {{1, 3}, {0, 2}}, memory);
  ASSERT_TRUE(tier.ok()) << tier.status();
  for (const ExpertId id : {ExpertId{1, 3}, ExpertId{0, 2}}) {
    const std::span<const std::byte> bytes = tier->Find(id);
    ASSERT_EQ(bytes.size(), 100u);
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == FakeExperts::Value(id); }));
  }
  EXPECT_TRUE(tier->Find({1, 2}).empty());
}

TEST(HostTier, Refusals) {
  FakeExperts source;
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
