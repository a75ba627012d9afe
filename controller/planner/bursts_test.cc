#include "controller/planner/bursts.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "controller/planner/eplb.h"
#include "controller/planner/planner.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// Holders by expert, weights 1.
DispatchTable Table(const std::vector<std::vector<int32_t>>& holders) {
  DispatchTable table;
  table.begin.push_back(0);
  for (const auto& at : holders) {
    table.rank.insert(table.rank.end(), at.begin(), at.end());
    table.begin.push_back(static_cast<int32_t>(table.rank.size()));
  }
  table.weight.assign(table.rank.size(), 1);
  return table;
}

TEST(StepLoad, Table) {
  const struct {
    const char* what;
    std::vector<std::vector<int32_t>> holders;
    std::vector<double> tokens;
    std::vector<double> speed;
    double burstiness;
    double want;
  } cases[] = {
      // Two workers of 10: t = sqrt(2 ln 2) / 5, each worker at 10 + t / 2 * 25, the soft maximum ln 2 / t above.
      {"an expert each", {{0}, {1}}, {10, 10}, {1, 1}, .25, 10 + 5 * std::sqrt(2 * std::log(2))},
      // The same tokens by two experts each: a variance half as large.
      {"two each", {{0}, {0}, {1}, {1}}, {5, 5, 5, 5}, {1, 1}, .25, 10 + 5 * std::sqrt(std::log(2))},
      {"both on both", {{0, 1}, {0, 1}}, {10, 10}, {1, 1}, .25, 10 + 5 * std::sqrt(std::log(2))},
      {"twice as fast", {{0}, {1}}, {20, 20}, {2, 2}, .25, 10 + 5 * std::sqrt(2 * std::log(2))},
      {"no tokens", {{0}, {1}}, {0, 0}, {1, 1}, .25, 0},
  };
  for (const auto& c : cases) {
    EXPECT_NEAR(BusiestInStep(Table(c.holders), c.tokens, c.speed, c.burstiness), c.want, 1e-9) << c.what;
  }
  // Next to no bursts: the mean's busiest.
  EXPECT_NEAR(BusiestInStep(Table({{0}, {1}}), std::vector<double>{10, 5}, std::vector<double>{1, 1}, 1e-9), 10, 1e-6);
  // By weights.
  DispatchTable weighted = Table({{0, 1}});
  weighted.weight = {3, 1};
  EXPECT_NEAR(SumOfSquares(weighted, std::vector<double>{8}, std::vector<double>{1, 1}, false), 36 + 4, 1e-9);
  EXPECT_NEAR(SumOfSquares(weighted, std::vector<double>{8}, std::vector<double>{1, 1}, true), 16 + 16, 1e-9);
}

// Against steps that are drawn: never below, and not far above.
TEST(StepLoad, BoundsTheBusiestOfDrawnSteps) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 40; ++trial) {
    const int32_t workers = 4 + trial % 3 * 14;
    const double theta = trial % 2 == 0 ? .3 : .5;
    const std::vector<double> speed(workers, 1);
    std::vector<std::vector<int32_t>> holders(8 * workers);
    std::vector<double> tokens;
    std::lognormal_distribution<double> skew(3, .3);
    for (size_t e = 0; e < holders.size(); ++e) {
      const auto first = static_cast<int32_t>(e) % workers;
      holders[e].push_back(first);
      if (random() % 4 == 0) holders[e].push_back((first + 1) % workers);
      std::sort(holders[e].begin(), holders[e].end());
      tokens.push_back(skew(random));
    }
    const DispatchTable table = Table(holders);
    const Topology topology = UniformTopology(workers, 1, 64);
    std::gamma_distribution<double> factor(1 / (theta * theta), theta * theta);
    double sum = 0;
    constexpr int kSteps = 1000;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<double> drawn = tokens;
      for (double& t : drawn) t *= factor(random);
      const std::vector<double> loads = WorkerLoads(table, drawn, topology);
      sum += *std::max_element(loads.begin(), loads.end());
    }
    const double bound = BusiestInStep(table, tokens, speed, theta * theta);
    EXPECT_GE(bound, .99 * sum / kSteps) << workers << " workers";
    EXPECT_LE(bound, 1.3 * sum / kSteps) << workers << " workers";
  }
}

class Steps {
 public:
  explicit Steps(uint64_t seed) : random_(seed), parts_(2, 64) {
    for (int32_t l = 0; l < 2; ++l) {
      for (int32_t e = 0; e < 64; ++e) parts_.layer(l)[e] = std::pow(1 + (e * 7 + l) % 64, -.7);
      const double sum = std::accumulate(parts_.layer(l).begin(), parts_.layer(l).end(), 0.0);
      for (double& p : parts_.layer(l)) p /= sum;
    }
  }
  LoadMatrix& parts() { return parts_; }
  // Layer 1 has half of the deviation.
  LoadMatrix Draw(double tokens, double theta) {
    LoadMatrix out(2, 64);
    for (int32_t l = 0; l < 2; ++l, theta /= 2) {
      std::gamma_distribution<double> factor(theta > 0 ? 1 / (theta * theta) : 1, theta * theta);
      for (int32_t e = 0; e < 64; ++e) {
        const double mean = parts_.layer(l)[e] * tokens * (theta > 0 ? factor(random_) : 1);
        out.layer(l)[e] = static_cast<double>(std::poisson_distribution<int64_t>(mean)(random_));
      }
    }
    return out;
  }

 private:
  std::mt19937_64 random_;
  LoadMatrix parts_;
};

TEST(BurstMeter, MeasuresBursts) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    for (const double theta : {.1, .5}) {
      Steps steps(seed);
      BurstMeter meter;
      EXPECT_THAT(meter.Burstiness(), SizeIs(0));
      // Steps need not be of one size.
      for (int i = 0; i < 400; ++i) meter.Add(steps.Draw(i % 3 == 0 ? 8'192 : 32'768, theta));
      const std::vector<double> measured = meter.Burstiness();
      ASSERT_THAT(measured, SizeIs(2));
      // Parts of a sum vary a little less than counts.
      EXPECT_NEAR(std::sqrt(measured[0]), theta, .15 * theta);
      EXPECT_NEAR(std::sqrt(measured[1]), theta / 2, .15 * theta / 2);
    }
  }
}

TEST(BurstMeter, TakesNothingElseForBursts) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::mt19937_64 wander(seed);
    const struct {
      const char* what;
      std::function<void(Steps&, int)> before_step;
    } cases[] = {
        {"sampling", [](Steps&, int) {}},
        {"changes that stay, at every other step",
         [](Steps& s, int i) {
           if (i % 2 == 0) std::swap(s.parts().layer(0)[i * 5 % 64], s.parts().layer(0)[(i * 11 + 3) % 64]);
         }},
        {"parts that wander",
         [&wander](Steps& s, int) {
           for (double& p : s.parts().tokens) p *= 1 + .05 * std::normal_distribution<double>()(wander);
         }},
        {"one odd step",
         [](Steps& s, int i) {
           if (i == 100) std::swap(s.parts().layer(0)[0], s.parts().layer(0)[40]);
           if (i == 101) std::swap(s.parts().layer(0)[0], s.parts().layer(0)[40]);
         }},
        {"a layer without tokens",
         [](Steps& s, int) {
           for (double& p : s.parts().layer(1)) p = 0;
         }},
    };
    for (const auto& c : cases) {
      Steps steps(seed);
      BurstMeter meter;
      for (int i = 0; i < 200; ++i) {
        c.before_step(steps, i);
        meter.Add(steps.Draw(16'384, 0));
        EXPECT_THAT(meter.Burstiness(), Each(0)) << c.what << ", seed " << seed << ", step " << i;
      }
    }
  }
}

TEST(BurstMeter, ForgetsWhatIsLongAgo) {
  Steps steps(1);
  BurstMeter meter({.memory_steps = 50});
  for (int i = 0; i < 100; ++i) meter.Add(steps.Draw(16'384, .5));
  EXPECT_GT(meter.Burstiness()[0], .2);
  for (int i = 0; i < 300; ++i) meter.Add(steps.Draw(16'384, 0));
  EXPECT_LT(meter.Burstiness()[0], .002);
}

// One layer, experts two on each of four workers with a free slot each, the means level: only bursts speak for more
// replicas of the hot one.
PlanRequest HotExpert() {
  PlanRequest request;
  LoadMatrix load(1, 8);
  load.tokens = {800, 200, 500, 500, 500, 500, 500, 500};
  request.scenarios = {{"load", 1, load}};
  request.topology = UniformTopology(4, 1, 3);
  Placement placement;
  placement.num_layers = 1;
  placement.num_experts = 8;
  for (const TopologyWorker& w : request.topology.workers) placement.workers.push_back(w.name);
  for (int32_t e = 0; e < 8; ++e) placement.replicas.push_back({{0, e}, e / 2, e % 2, 1});
  request.current = placement;
  request.move_budget.max_moves = 8;
  return request;
}

TEST(MakePlan, BurstsSpeakForReplicas) {
  PlanRequest request = HotExpert();
  const EplbPolicy policy(1, Split::kEqual);
  const auto by_means = MakePlan(policy, request);
  ASSERT_TRUE(by_means.ok()) << by_means.status();
  EXPECT_EQ(by_means->moves, 0);
  request.scenarios[0].burstiness = {0};
  const auto calm = MakePlan(policy, request);
  ASSERT_TRUE(calm.ok()) << calm.status();
  EXPECT_EQ(calm->moves, 0);
  EXPECT_EQ(calm->objective, by_means->objective);

  request.scenarios[0].burstiness = {.25};
  const auto plan = MakePlan(policy, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->moves, 0);
  EXPECT_GT(plan->gain, .03);
  EXPECT_GT(plan->gain_tokens, 0);
  EXPECT_TRUE(plan->gate.worth) << plan->gate.reason;
  EXPECT_TRUE(Validate(plan->placement).ok());
  const auto hot = std::count_if(plan->placement.replicas.begin(), plan->placement.replicas.end(),
                                 [](const Replica& r) { return r.expert.expert == 0; });
  EXPECT_GE(hot, 2);
  EXPECT_LT(plan->predicted[0].busiest_in_step, plan->current[0].busiest_in_step);
  EXPECT_GT(plan->predicted[0].busiest_in_step, plan->predicted[0].busiest);
  // Soon nothing gains any more.
  double objective = plan->objective;
  request.current = plan->placement;
  for (int again = 0;; ++again) {
    ASSERT_LT(again, 5);
    const auto next = MakePlan(policy, request);
    ASSERT_TRUE(next.ok()) << next.status();
    if (next->moves == 0) break;
    EXPECT_LT(next->objective, objective);
    objective = next->objective;
    request.current = next->placement;
  }

  // Shares that are solved for the load are planned for as without.
  PlanRequest shares = HotExpert();
  const auto without = MakePlan(EplbPolicy(1, Split::kSolved), shares);
  shares.scenarios[0].burstiness = {.25};
  const auto with = MakePlan(EplbPolicy(1, Split::kSolved), shares);
  ASSERT_TRUE(without.ok() && with.ok());
  EXPECT_EQ(with->placement, without->placement);
  EXPECT_EQ(with->objective, without->objective);
}

// Workers far above the others: nearly the whole of the soft maximum is theirs, and goes where they are relieved.
TEST(MakePlan, BurstsDoNotHideWhatRelievesTheBusiest) {
  constexpr int32_t kWorkers = 64;
  const EplbPolicy policy(1, Split::kEqual);
  std::mt19937 random(1);
  for (const int32_t holders : {1, 2, 3, 4, 1, 2, 3, 4}) {
    const int32_t experts = kWorkers + 1 - holders;
    PlanRequest request;
    LoadMatrix load(1, experts);
    for (double& t : load.tokens) t = static_cast<double>(1000 + random() % 100);
    load.tokens[0] *= 8;
    request.scenarios = {{"load", 1, load}};
    request.topology = UniformTopology(kWorkers, 1, 3);
    Placement placement;
    placement.num_layers = 1;
    placement.num_experts = experts;
    for (const TopologyWorker& w : request.topology.workers) placement.workers.push_back(w.name);
    for (int32_t h = 0; h < holders; ++h) placement.replicas.push_back({{0, 0}, h == 0 ? 0 : experts - 1 + h, 0, 1});
    for (int32_t e = 1; e < experts; ++e) placement.replicas.push_back({{0, e}, e, 0, 1});
    request.current = placement;
    // Too few to place the layer anew.
    request.move_budget.max_moves = 24;
    const auto by_means = MakePlan(policy, request);
    ASSERT_TRUE(by_means.ok()) << by_means.status();
    for (const double burstiness : {.0025, .01, .04}) {
      request.scenarios[0].burstiness = {burstiness};
      const auto plan = MakePlan(policy, request);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_GT(plan->predicted[0].balancedness, .9 * by_means->predicted[0].balancedness)
          << holders << " holders, burstiness " << burstiness << ", " << plan->moves << " moves";
    }
  }
}

TEST(Validate, ChecksBurstiness) {
  const struct {
    std::vector<double> burstiness;
    const char* error;
  } cases[] = {{{.25, .25}, "scenario 'load': burstiness of 2 layers; the load has 1"},
               {{-.1}, "layer 0: burstiness -0.1; must be at least 0"},
               {{NAN}, "layer 0: burstiness nan; must be at least 0"},
               {{1e7}, "at most 1e+06"}};
  for (const auto& c : cases) {
    PlanRequest request = HotExpert();
    request.scenarios[0].burstiness = c.burstiness;
    EXPECT_THAT(std::string(Validate(request).message()), HasSubstr(c.error));
  }
}

}  // namespace
}  // namespace ballast
