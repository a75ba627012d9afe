#include "proto/placement/convert.h"

#include "gtest/gtest.h"

namespace ballast {
namespace {

Placement Example() {
  return {.epoch = Epoch(7),
          .shares_version = SharesVersion(3),
          .num_layers = 1,
          .num_experts = 2,
          .workers = {"a", "b"},
          .replicas = {{{0, 0}, 0, 4, 1}, {{0, 0}, 1, 2, 5}, {{0, 1}, 1, 0, 9}},
          .task_homes = {{"", {{0, 1, .5}}}, {"chat", {{1, 3, 1.25}, {0, 1, .75}}}}};
}

TEST(PlacementConvertTest, ThereAndBack) {
  const absl::StatusOr<Placement> back = FromProto(ToProto(Example()));
  ASSERT_EQ(back.status(), absl::OkStatus());
  EXPECT_EQ(*back, Example());
}

TEST(PlacementConvertTest, SortsAndChecks) {
  v1::Placement message = ToProto(Example());
  message.mutable_replicas()->SwapElements(0, 2);
  ASSERT_EQ(FromProto(message).status(), absl::OkStatus());
  EXPECT_EQ(*FromProto(message), Example());
  message.mutable_replicas(0)->set_worker(2);
  EXPECT_EQ(FromProto(message).status().code(), absl::StatusCode::kInvalidArgument);
  message.mutable_replicas()->DeleteSubrange(0, 1);
  EXPECT_EQ(FromProto(message).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ballast
