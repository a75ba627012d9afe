#include "worker/experts/group_slots.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

Placement Some() {
  Placement p{.epoch = Epoch(1), .shares_version = SharesVersion(1), .num_layers = 3, .num_experts = 4};
  p.workers = {"a", "b"};
  p.replicas = {{.expert = {0, 3}, .worker = 0, .slot = 7},
                {.expert = {0, 1}, .worker = 0, .slot = 2},
                {.expert = {0, 0}, .worker = 1, .slot = 9},
                {.expert = {2, 2}, .worker = 0, .slot = 1},
                {.expert = {2, 0}, .worker = 1, .slot = 3}};
  return p;
}

TEST(GroupSlots, ByLayerAndExpert) {
  EXPECT_THAT(GroupSlots(Some(), "a", 2).value(), ElementsAre(2, 7, 0, 0, 1, 0));
  EXPECT_THAT(GroupSlots(Some(), "b", 1).value(), ElementsAre(9, 0, 3));
  EXPECT_THAT(GroupSlots(Some(), "c", 1).value(), ElementsAre(0, 0, 0));
}

TEST(GroupSlots, TooManyReplicas) {
  EXPECT_EQ(GroupSlots(Some(), "a", 1).status(), absl::InvalidArgumentError("layer 0 has more than 1 replicas on a"));
}

}  // namespace
}  // namespace ballast
