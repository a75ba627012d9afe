#include "controller/sim/mix_replay.h"

#include <algorithm>
#include <vector>

#include "controller/planner/grouping/grouping_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

MixReplayOptions Options() {
  MixReplayOptions options;
  options.topology = UniformTopology(4, 1, 5 * 2);
  options.slots_per_layer = 5;
  options.expert_bytes = 1000;
  options.load = {.window = absl::Seconds(120), .bucket = absl::Seconds(10), .max_tasks = 8, .max_routes = 128};
  options.planner.limits = {.maxvio = .1, .task_maxvio = .5};
  options.planner.proposals = 8000;
  return options;
}

struct World {
  Routes served, held_out;
};

World MakeWorld() {
  const Routes all = RandomRoutes(
      {.layers = 2, .experts = 16, .top_k = 3, .tasks = 4, .tokens = 2400, .community = 4, .together = .8}, 21);
  World out{all, all};
  for (size_t f = 0; f < all.tasks.size(); ++f) {
    for (int32_t l = 0; l < 2; ++l) {
      const std::vector<int32_t>& experts = all.tasks[f].experts[l];
      const auto middle = experts.begin() + static_cast<ptrdiff_t>(experts.size() / 2);
      out.served.tasks[f].experts[l].assign(experts.begin(), middle);
      out.held_out.tasks[f].experts[l].assign(middle, experts.end());
    }
  }
  return out;
}

// Two tasks give way to the two others, between one bucket and the next.
TEST(MixReplay, ASuddenShiftIsRecoveredFromWithinTwoWindows) {
  const World world = MakeWorld();
  const MixReplayOptions options = Options();
  const TaskMix before = {{"task0", .45}, {"task1", .45}, {"task2", .05}, {"task3", .05}};
  const TaskMix after = {{"task0", .05}, {"task1", .05}, {"task2", .45}, {"task3", .45}};
  std::vector<TaskMix> schedule(24, before);
  schedule.insert(schedule.end(), 36, after);
  const auto steps = ReplayMix(world.served, world.held_out, schedule, options);
  ASSERT_TRUE(steps.ok()) << steps.status();
  // One plan, from nothing, for a mix that stays.
  EXPECT_TRUE((*steps)[0].planned);
  EXPECT_EQ((*steps)[0].moves, 0);
  int plans = 0;
  for (int b = 12; b < 24; ++b) plans += (*steps)[b].planned;
  EXPECT_EQ(plans, 0);
  int64_t moves = 0;
  for (int b = 24; b < 60; ++b) {
    plans += (*steps)[b].planned;
    moves += (*steps)[b].moves;
  }
  EXPECT_GE(plans, 1);
  EXPECT_LE(plans, 4);
  EXPECT_GT(moves, 0);
  // From two windows on: as good as a plan for this mix alone, and level.
  const auto own = OwnPlan(world.served, world.held_out, after, options);
  ASSERT_TRUE(own.ok()) << own.status();
  for (int b = 48; b < 60; ++b) {
    EXPECT_LE((*steps)[b].score.hops, 1.05 * own->hops) << "bucket " << b;
    EXPECT_LE((*steps)[b].score.maxvio, std::max(.15, own->maxvio + .05)) << "bucket " << b;
    EXPECT_EQ((*steps)[b].planned, false) << "bucket " << b;
  }
}

TEST(MixReplay, TheSameTwiceIsTheSame) {
  const World world = MakeWorld();
  const std::vector<TaskMix> schedule(3, {{"task0", .5}, {"task3", .5}});
  const auto a = ReplayMix(world.served, world.held_out, schedule, Options());
  const auto b = ReplayMix(world.served, world.held_out, schedule, Options());
  ASSERT_TRUE(a.ok());
  ASSERT_TRUE(b.ok());
  for (size_t i = 0; i < a->size(); ++i) {
    EXPECT_EQ((*a)[i].score.hops, (*b)[i].score.hops);
    EXPECT_EQ((*a)[i].score.maxvio, (*b)[i].score.maxvio);
  }
}

}  // namespace
}  // namespace ballast
