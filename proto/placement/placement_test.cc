#include "proto/placement/placement.h"

#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

// Two layers of two experts on two workers, expert 0 of layer 1 on both.
Placement Sound() {
  Placement p;
  p.num_layers = 2;
  p.num_experts = 2;
  p.workers = {"a", "b"};
  p.replicas = {{{0, 0}, 0, 0}, {{0, 1}, 1, 0}, {{1, 0}, 0, 1}, {{1, 0}, 1, 2, 3}, {{1, 1}, 1, 1}};
  p.task_homes = {{"", {{0, 1, .5}}}, {"chat", {{1, 3, 1.25}, {0, 1, .75}}}};
  return p;
}

TEST(Validate, AcceptsASoundPlacement) {
  const SlotCapacity capacity[] = {{4, 2}, {5, 2}};
  EXPECT_TRUE(Validate(Sound(), capacity).ok()) << Validate(Sound(), capacity);
}

TEST(Validate, NamesWhatIsWrong) {
  const struct {
    std::function<void(Placement&)> spoil;
    const char* message;
  } cases[] = {
      {[](Placement& p) { p.replicas.pop_back(); }, "layer 1 expert 1 has no replica"},
      {[](Placement& p) { p.replicas[2].slot = 0; }, "worker 0 slot 0 is used twice"},
      {[](Placement& p) { p.replicas[3].slot = 5; }, "the arena has 5 slots"},
      {[](Placement& p) { p.replicas[3].slot = -1; }, "slots count from 0"},
      {[](Placement& p) { p.replicas[3].weight = 0; }, "must be at least 1"},
      {[](Placement& p) { p.replicas[2].weight = p.replicas[3].weight = 1u << 31; }, "sum to 4294967296"},
      {[](Placement& p) { p.replicas[4].worker = 2; }, "there are 2 workers"},
      {[](Placement& p) { p.replicas[4].expert.expert = 2; }, "2 layers of 2 experts"},
      {[](Placement& p) { p.replicas[3].worker = 0; }, "holds it twice"},
      {[](Placement& p) { std::swap(p.replicas[0], p.replicas[1]); }, "not sorted"},
      {[](Placement& p) { p.workers[1] = "a"; }, "named twice"},
      {[](Placement& p) { p.num_layers = 0; }, "at least 1"},
      {[](Placement& p) { p.task_homes[0].homes.clear(); }, "homes of task '': there are none"},
      {[](Placement& p) { p.task_homes[1].homes[1].worker = 2; },
       "homes of task 'chat': worker 2; there are 2 workers"},
      {[](Placement& p) { p.task_homes[1].homes[1].worker = 1; }, "homes of task 'chat': worker 1 is named twice"},
      {[](Placement& p) { p.task_homes[1].homes[0].weight = 0; }, "must be at least 1"},
      {[](Placement& p) { p.task_homes[1].task = ""; }, "tasks are sorted, each once"},
  };
  const SlotCapacity capacity[] = {{4, 2}, {5, 2}};
  for (const auto& c : cases) {
    Placement p = Sound();
    c.spoil(p);
    EXPECT_THAT(std::string(Validate(p, capacity).message()), HasSubstr(c.message));
  }
  const SlotCapacity tight[] = {{4, 2}, {5, 3}};
  EXPECT_THAT(std::string(Validate(Sound(), tight).message()), HasSubstr("the limit is 2 (5 less 3 for staging)"));
}

TEST(ByLayer, GroupsReplicasByExpert) {
  const auto layers = ByLayer(Sound());
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_EQ(layers[1].begin, (std::vector<int32_t>{0, 2, 3}));
  EXPECT_EQ(layers[1].replicas[1].weight, 3u);
}

}  // namespace
}  // namespace ballast
