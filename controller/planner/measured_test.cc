// The balance that real loads reach: the published algorithm's, ours and the proven bounds. docs/measurements.md has
// the tables.
#include <numeric>
#include <string>

#include "controller/formats/load_file.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/test_data.h"

namespace ballast {
namespace {

Scenario Read(const std::string& path) {
  auto file = ReadLoad(path);
  EXPECT_TRUE(file.ok()) << file.status();
  const NamedLoads named[] = {{path, {*std::move(file)}}};
  auto set = MakeLoadSet(named);
  EXPECT_TRUE(set.ok()) << set.status();
  return set->scenarios[0];
}

struct MeanAndWorst {
  double mean = 0;
  double worst = 1;
  void Add(double value, int32_t layers) {
    mean += value / layers;
    worst = std::min(worst, value);
  }
};

// Two replicas of one expert on a GPU allowed, as published.
MeanAndWorst PublishedEplb(const LoadMatrix& load, int32_t gpus, int32_t replicas) {
  MeanAndWorst out;
  for (int32_t l = 0; l < load.layers; ++l) {
    const auto tokens = load.layer(l);
    const std::vector<float> weights(tokens.begin(), tokens.end());
    const std::vector<int32_t> physical = RebalanceExperts(weights, replicas, 1, 1, gpus);
    std::vector<double> count(load.experts);
    for (const int32_t e : physical) ++count[e];
    std::vector<double> loads(gpus);
    for (int32_t p = 0; p < replicas; ++p) loads[p / (replicas / gpus)] += tokens[physical[p]] / count[physical[p]];
    out.Add(Balancedness(loads), load.layers);
  }
  return out;
}

MeanAndWorst Bound(const LoadMatrix& load, int32_t gpus, int32_t replicas) {
  MeanAndWorst out;
  for (int32_t l = 0; l < load.layers; ++l) out.Add(UpperBound(load.layer(l), replicas, gpus), load.layers);
  return out;
}

MeanAndWorst Ours(const LoadMatrix& load, int32_t gpus, int32_t replicas) {
  PlanRequest request;
  request.scenarios = {{"load", 1, load}};
  request.topology = UniformTopology(gpus, 1, replicas / gpus * load.layers);
  const auto plan = MakePlan(CostAwarePolicy(), request);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return {plan->predicted[0].balancedness, plan->predicted[0].worst};
}

TEST(DeepSeekR1, BalanceOnTheOwnWorkload) {
  BALLAST_REQUIRE_SHARED(data, "data/deepseek_r1_counts");
  const struct {
    const char* file;
    int32_t gpus, replicas;
    double eplb, eplb_worst, bound, ours;
  } cases[] = {
      {"prefill_in4096", 32, 288, .9939, 0, 1, .99995},
      {"decode_in1000out1000", 32, 288, .9930, 0, 1, .99995},
      {"prefill_in4096", 64, 320, .9845, .966, 1, .99995},
      {"decode_in1000out1000", 64, 320, .9792, .965, 1, .99995},
      {"prefill_in4096", 144, 288, .8035, .580, .8470, .805},
      {"decode_in1000out1000", 144, 288, .8669, .710, .9449, .869},
      {"prefill_in4096", 320, 320, .5346, .424, .5346, .534},
      {"decode_in1000out1000", 320, 320, .6040, .498, .6040, .603},
      {"prefill_in4096", 320, 640, .9409, .891, 1, .99995},
      {"decode_in1000out1000", 320, 640, .9675, .935, 1, .99995},
  };
  for (const auto& c : cases) {
    const LoadMatrix load = Read(data + "/" + c.file + ".json").load;
    ASSERT_EQ(load.layers, 58);
    const MeanAndWorst eplb = PublishedEplb(load, c.gpus, c.replicas);
    const MeanAndWorst bound = Bound(load, c.gpus, c.replicas);
    const MeanAndWorst ours = Ours(load, c.gpus, c.replicas);
    std::printf("%-22s %3d GPUs %3d slots: EPLB %.4f (%.3f)  shares %.4f (%.3f)  bound %.4f (%.3f)\n", c.file, c.gpus,
                c.replicas, eplb.mean, eplb.worst, ours.mean, ours.worst, bound.mean, bound.worst);
    EXPECT_NEAR(eplb.mean, c.eplb, 5.1e-5);
    if (c.eplb_worst > 0) {
      EXPECT_NEAR(eplb.worst, c.eplb_worst, 5.1e-4);
    }
    EXPECT_NEAR(bound.mean, c.bound, 5.1e-5);
    EXPECT_GE(ours.mean, c.ours);
    EXPECT_LE(ours.mean, bound.mean + 1e-9);
  }
}

}  // namespace
}  // namespace ballast
