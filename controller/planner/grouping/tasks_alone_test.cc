#include "controller/planner/grouping/tasks_alone.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "controller/planner/grouping/grouping_test_util.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/placement/quotas.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// [tasks * parts][experts], a task's parts one after the other; all tasks have as many tokens.
std::vector<std::vector<int64_t>> Counts(const LayerRoutes& layer, int64_t parts) {
  std::vector<std::vector<int64_t>> out;
  for (const LayerRoutes::Task& task : layer.tasks) {
    for (int64_t p = 0; p < parts; ++p) {
      std::vector<int64_t>& count = out.emplace_back(layer.experts);
      for (int64_t i = task.tokens * p / parts * layer.top_k; i < task.tokens * (p + 1) / parts * layer.top_k; ++i) {
        if (task.experts[i] >= 0) ++count[task.experts[i]];
      }
    }
  }
  return out;
}

// Beyond what workers may have, whatever the shares: of every set of workers what only they can take is more than they
// may have by the excess at least, and by just that for the worst of the sets.
double BruteForce(const LayerRoutes& layer, const std::vector<std::vector<int32_t>>& workers_of,
                  std::span<const double> part, double limit) {
  double out = 0;
  const auto workers = static_cast<uint32_t>(part.size());
  const int64_t parts = TasksAlone::PartsOfTask(layer.tasks[0].tokens * layer.top_k, static_cast<int32_t>(workers));
  for (const std::vector<int64_t>& count : Counts(layer, parts)) {
    const auto pairs = static_cast<double>(std::accumulate(count.begin(), count.end(), int64_t{0}));
    int64_t most = 0;
    for (uint32_t set = 1; set < 1u << workers; ++set) {
      int64_t beyond = 0;
      for (size_t e = 0; e < count.size(); ++e) {
        const bool inside =
            std::all_of(workers_of[e].begin(), workers_of[e].end(), [&](int32_t w) { return set >> w & 1; });
        if (inside) beyond += count[e];
      }
      for (uint32_t w = 0; w < workers; ++w) {
        if (set >> w & 1) {
          beyond -=
              static_cast<int64_t>(std::max(std::ceil(pairs * part[w]), std::floor((1 + limit) * pairs * part[w])));
        }
      }
      most = std::max(most, beyond);
    }
    out += static_cast<double>(most) / pairs / static_cast<double>(parts);
  }
  return out;
}

TEST(TasksAlone, IsTheLeastExcessWhileReplicasMove) {
  std::mt19937 random(1);
  const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
  for (uint32_t seed = 0; seed < 6; ++seed) {
    // In one part, or in four.
    const int32_t tokens = seed < 3 ? 90 : 450;
    const Routes routes =
        RandomRoutes({.experts = 10, .top_k = 3, .tasks = 3, .tokens = tokens, .community = 3, .together = .8}, seed);
    const LayerRoutes layer = LayerOf(routes, 0);
    const std::vector<double> part =
        seed % 2 == 0 ? std::vector<double>{.2, .2, .2, .2, .2} : std::vector<double>{.3, .1, .2, .15, .25};
    const double limit = .1 * (seed % 3);
    TasksAlone alone(layer, part, limit);
    std::vector<std::vector<int32_t>> workers_of(10);
    const auto any = [&] {
      std::vector<int32_t> out;
      for (int32_t w = 0; w < 5; ++w) {
        if (below(3) == 0) out.push_back(w);
      }
      if (out.empty()) out.push_back(below(5));
      std::shuffle(out.begin(), out.end(), random);
      return out;
    };
    for (int32_t e = 0; e < 10; ++e) {
      workers_of[e] = any();
      alone.Set(e, workers_of[e]);
    }
    EXPECT_NEAR(alone.Excess(), BruteForce(layer, workers_of, part, limit), 1e-9) << "seed " << seed;
    alone.Keep();
    for (int32_t i = 0; i < 200; ++i) {
      const std::vector<std::vector<int32_t>> before = workers_of;
      // Two experts, or one twice.
      for (int32_t n = 0; n < 2; ++n) {
        const int32_t e = below(10);
        workers_of[e] = any();
        alone.Set(e, workers_of[e]);
      }
      ASSERT_NEAR(alone.Excess(), BruteForce(layer, workers_of, part, limit), 1e-9) << "seed " << seed << ", " << i;
      if (below(2) == 0) {
        alone.Keep();
        continue;
      }
      alone.Undo();
      workers_of = before;
      ASSERT_NEAR(alone.Excess(), BruteForce(layer, workers_of, part, limit), 1e-9) << "seed " << seed << ", " << i;
      alone.Keep();
    }
  }
}

TEST(TasksAlone, FewTokensAreNotParted) {
  EXPECT_EQ(TasksAlone::PartsOfTask(0, 16), 1);
  EXPECT_EQ(TasksAlone::PartsOfTask(2047, 16), 1);
  EXPECT_EQ(TasksAlone::PartsOfTask(2048, 16), 2);
  EXPECT_EQ(TasksAlone::PartsOfTask(1'000'000, 16), TasksAlone::kMostParts);
}

// No placement is below the bound, and where one expert is all that counts it is exact.
TEST(LeastTaskMaxVio, NoPlacementIsBelow) {
  std::mt19937 random(2);
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const Routes routes =
        RandomRoutes({.experts = 6, .top_k = 2, .tasks = 3, .tokens = 60, .community = 2, .together = .9}, seed);
    const LayerRoutes layer = LayerOf(routes, 0);
    const std::vector<int32_t> slots = {2, 2, 2, 2};
    const std::vector<uint32_t> speed = seed % 2 == 0 ? std::vector<uint32_t>{} : std::vector<uint32_t>{1, 2, 2, 3};
    const double least = LeastTaskMaxVio(layer, slots, speed);
    for (int32_t i = 0; i < 40; ++i) {
      Packs packs = RandomPacks(6, 4, random());
      for (auto& pack : packs) {
        for (int32_t e = 0; static_cast<int32_t>(pack.size()) < 2; e = (e + 1) % 6) {
          if (std::find(pack.begin(), pack.end(), e) == pack.end() && random() % 3 == 0) pack.push_back(e);
        }
      }
      double worst = 0;
      for (const std::vector<int64_t>& count : Counts(layer, 1)) {
        LayerSolver solver(4, speed);
        const std::vector<double> tokens(count.begin(), count.end());
        worst = std::max(worst, 1 / solver.Solve(ToTable(packs, 6), tokens) - 1);
      }
      EXPECT_GE(worst, least - 1e-6) << "seed " << seed;
    }
  }
  // Task a chooses expert 0 alone, task b expert 1: with two replicas each on four workers each is on half of them.
  Routes routes{1, 2, 1, {{"a", 1, {{0, 0, 0, 0}}}, {"b", 1, {{1, 1}}}}};
  EXPECT_NEAR(LeastTaskMaxVio(LayerOf(routes, 0), std::vector<int32_t>{1, 1, 1, 1}, {}), 1, 1e-6);
  EXPECT_NEAR(LeastTaskMaxVio(LayerOf(routes, 0), std::vector<int32_t>{1, 1, 1, 1}, std::vector<uint32_t>{1, 1, 1, 5}),
              8. / 6 - 1, 1e-6);
  EXPECT_EQ(LeastTaskMaxVio(LayerOf(routes, 0), std::vector<int32_t>{2, 2}, {}), 0);
}

}  // namespace
}  // namespace ballast
