#include "controller/sim/mix_replay.h"

#include <algorithm>
#include <limits>
#include <string>
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

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

constexpr RouteShape kShape{
    .layers = 2, .experts = 16, .top_k = 3, .tasks = 4, .tokens = 2400, .community = 4, .together = .8};

World MakeWorld(const RouteShape& shape = kShape, uint32_t seed = 21) {
  const Routes all = RandomRoutes(shape, seed);
  World out{all, all};
  for (size_t f = 0; f < all.tasks.size(); ++f) {
    for (int32_t l = 0; l < all.layers; ++l) {
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
  // From nothing first.
  EXPECT_TRUE((*steps)[0].planned);
  EXPECT_EQ((*steps)[0].moves, 0);
  // Once the window is half full the plan is settled, and as good as one from everything.
  const auto own_before = OwnPlan(world.served, world.held_out, before, options);
  ASSERT_TRUE(own_before.ok()) << own_before.status();
  EXPECT_LE((*steps)[23].score.hops, 1.05 * own_before->hops);
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

// Once the window is full of a mix: never much more than a plan for this mix alone, whatever the first one's routes and
// the shifts before it were.
TEST(MixReplay, StaysWithinFivePercentOfTheMixesOwnPlan) {
  const struct {
    RouteShape shape;
    int32_t workers, slots;
    double maxvio;
  } families[] = {
      {kShape, 4, 5, kNoLimit},
      {kShape, 4, 6, .3},
      {{.layers = 2, .experts = 16, .top_k = 2, .tasks = 4, .tokens = 2400, .community = 4, .together = .9},
       4,
       4,
       kNoLimit},
      {{.layers = 2, .experts = 24, .top_k = 3, .tasks = 3, .tokens = 2400, .community = 6, .together = .6}, 4, 8, .2},
      {{.layers = 1, .experts = 32, .top_k = 4, .tasks = 4, .tokens = 2400, .community = 4, .together = .8},
       8,
       5,
       kNoLimit},
      {{.layers = 1, .experts = 32, .top_k = 4, .tasks = 4, .tokens = 2400, .community = 8, .together = .4}, 8, 6, .2},
  };
  for (const auto& family : families) {
    for (const uint32_t seed : {31, 32, 33}) {
      const World world = MakeWorld(family.shape, seed);
      MixReplayOptions options = Options();
      options.topology = UniformTopology(family.workers, 1, family.slots * family.shape.layers);
      options.slots_per_layer = family.slots;
      options.planner.limits = {.maxvio = family.maxvio};
      std::vector<TaskMix> schedule;
      const int32_t tasks = family.shape.tasks;
      for (int32_t f = 0; f < tasks; ++f) {
        TaskMix mix;
        for (int32_t g = 0; g < tasks; ++g) mix["task" + std::to_string(g)] = f == g ? .7 : .3 / (tasks - 1);
        schedule.insert(schedule.end(), 24, mix);
      }
      const auto steps = ReplayMix(world.served, world.held_out, schedule, options);
      ASSERT_TRUE(steps.ok()) << steps.status();
      for (int32_t f = 0; f < tasks; ++f) {
        const int32_t last = 24 * f + 23;
        const auto own = OwnPlan(world.served, world.held_out, schedule[last], options);
        ASSERT_TRUE(own.ok()) << own.status();
        EXPECT_LE((*steps)[last].score.hops, 1.05 * own->hops)
            << family.shape.experts << " experts, seed " << seed << ", mix " << f;
      }
    }
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
