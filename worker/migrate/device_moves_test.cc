#include "worker/migrate/device_moves.h"

#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

// Copies at once; may be told to do something first.
class FakeCopier final : public ChunkCopier {
 public:
  absl::Status Start(const std::byte* from, std::byte* to, size_t bytes) override {
    if (before) before();
    std::memcpy(to, from, bytes);
    ++copies;
    return absl::OkStatus();
  }
  absl::Status AwaitAllBut(int left) override {
    if (left == 0 && at_end) at_end();
    return absl::OkStatus();
  }

  std::function<void()> before, at_end;
  int copies = 0;
};

constexpr size_t kBytes = 700'000, kStride = 700'160;

// Expert 0 of layer 0 on `a` in slot 2, expert 1 on `b` in slot 1.
Placement InForce() {
  Placement p{.epoch = Epoch(1), .num_layers = 1, .num_experts = 2, .workers = {"a", "b"}};
  p.replicas = {{.expert = {0, 0}, .worker = 0, .slot = 2}, {.expert = {0, 1}, .worker = 1, .slot = 1}};
  return p;
}

class DeviceMovesTest : public testing::Test {
 protected:
  DeviceMovesTest() {
    for (size_t i = 0; i < peer_.size(); ++i) peer_[i] = static_cast<std::byte>(i * 31 >> 3);
    moves_.SetPeers({{"b:1", {.worker = "b", .slots = peer_.data()}}});
  }
  absl::Status Pull(const std::string& address, int32_t expert) {
    return moves_.Pull(address, {0, expert}, slot_, 0, absl::InfiniteFuture());
  }

  std::vector<std::byte> peer_ = std::vector<std::byte>(3 * kStride);
  std::vector<std::byte> staging_ = std::vector<std::byte>(kBytes, std::byte{7});
  std::vector<std::byte> slot_ = std::vector<std::byte>(kBytes);
  FakeCopier copier_;
  int bound_ = 0;
  DeviceMoves moves_{copier_, [this] { ++bound_; }, InForce, staging_, kStride, Clock::Real()};
};

TEST_F(DeviceMovesTest, PullsFromTheSlotOfThePlacementInForce) {
  EXPECT_EQ(Pull("b:1", 1), absl::OkStatus());
  EXPECT_EQ(std::memcmp(slot_.data(), peer_.data() + kStride, kBytes), 0);
  EXPECT_EQ(bound_, 1);
}

TEST_F(DeviceMovesTest, WhatIsNotWithinReachIsNotFound) {
  EXPECT_EQ(Pull("c:1", 1).message(), "the slots of c:1 are not within direct reach");
  EXPECT_EQ(Pull("b:1", 0).message(), "b has no replica of layer 0 expert 0 in the placement in force");
  moves_.ForgetPeers();
  EXPECT_EQ(Pull("b:1", 1).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(copier_.copies, 0);
}

TEST_F(DeviceMovesTest, UploadsWhatIsStaged) {
  EXPECT_EQ(moves_.Upload(slot_, 0, absl::InfiniteFuture()), absl::OkStatus());
  EXPECT_EQ(slot_, staging_);
}

TEST_F(DeviceMovesTest, CancelEndsTheMoveUnderWayAlone) {
  // Nothing is under way.
  moves_.Cancel();
  EXPECT_EQ(Pull("b:1", 1), absl::OkStatus());
  copier_.before = [this] { moves_.Cancel(); };
  // In pieces of 256 KiB, of which the first is copied.
  EXPECT_EQ(moves_.Pull("b:1", {0, 1}, slot_, 1'000'000, absl::InfiniteFuture()).code(), absl::StatusCode::kCancelled);
  copier_.before = nullptr;
  EXPECT_EQ(Pull("b:1", 1), absl::OkStatus());
}

// The move has looked for the last time, so that it ends well; so does the next.
TEST_F(DeviceMovesTest, ACancelThatComesTooLateEndsNoOtherMove) {
  copier_.at_end = [this] { moves_.Cancel(); };
  EXPECT_EQ(Pull("b:1", 1), absl::OkStatus());
  copier_.at_end = nullptr;
  EXPECT_EQ(Pull("b:1", 1), absl::OkStatus());
  copier_.at_end = [this] { moves_.Cancel(); };
  EXPECT_EQ(moves_.Upload(slot_, 0, absl::InfiniteFuture()), absl::OkStatus());
  copier_.at_end = nullptr;
  EXPECT_EQ(moves_.Upload(slot_, 0, absl::InfiniteFuture()), absl::OkStatus());
}

TEST_F(DeviceMovesTest, SlotsAreAWorkersOwn) {
  EXPECT_EQ(SlotOf(InForce(), "a", {0, 0}), 2);
  EXPECT_EQ(SlotOf(InForce(), "b", {0, 0}), std::nullopt);
  EXPECT_EQ(SlotOf(InForce(), "c", {0, 1}), std::nullopt);
}

}  // namespace
}  // namespace ballast
