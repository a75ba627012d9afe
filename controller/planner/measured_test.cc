// The balance that real loads reach: the published algorithms', ours and the proven bounds. docs/planner.md has the
// tables. What is searched is searched on a few layers unless LONG is set.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "controller/formats/load_file.h"
#include "controller/planner/budget.h"
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
      {"prefill_in4096", 144, 288, .8035, .580, .8470, .81},
      {"decode_in1000out1000", 144, 288, .8669, .710, .9449, .88},
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

// Every `step`-th layer, or all in the long form.
LoadMatrix Thin(const LoadMatrix& load, int32_t step) {
  if (RunsLong()) return load;
  LoadMatrix out((load.layers + step - 1) / step, load.experts);
  for (int32_t l = 0; l < out.layers; ++l) {
    const auto row = load.layer(l * step);
    std::copy(row.begin(), row.end(), out.layer(l).begin());
  }
  return out;
}

TEST(DeepSeekR1, EqualSplitOnTheOwnWorkload) {
  BALLAST_REQUIRE_SHARED(data, "data/deepseek_r1_counts");
  const struct {
    int32_t gpus, replicas, step;
    double ours;
  } cases[] = {{32, 288, 16, .999}, {64, 320, 16, .999}, {320, 640, 29, .972}};
  for (const auto& c : cases) {
    for (const char* file : {"prefill_in4096", "decode_in1000out1000"}) {
      PlanRequest request;
      request.scenarios = {{"load", 1, Thin(Read(data + "/" + file + ".json").load, c.step)}};
      const LoadMatrix& load = request.scenarios[0].load;
      request.topology = UniformTopology(c.gpus, 1, c.replicas / c.gpus * load.layers);
      const auto plan = MakePlan(CostAwarePolicy(0, Split::kEqual), request);
      ASSERT_TRUE(plan.ok()) << plan.status();
      const double eplb = PublishedEplb(load, c.gpus, c.replicas).mean;
      const LoadScore& ours = plan->predicted[0];
      std::printf("%-22s %3d GPUs %3d slots, %2d layers: EPLB %.4f  equal split %.4f (%.3f)  bound %.4f\n", file,
                  c.gpus, c.replicas, load.layers, eplb, ours.balancedness, ours.worst, ours.upper_bound);
      EXPECT_GE(ours.balancedness, c.ours);
      EXPECT_GE(ours.balancedness, eplb);
    }
  }
}

// How much of what uniform replication (R = 58) gains over packing alone, both by the published algorithms, is kept.
TEST(DeepSeekR1, FewReplicas) {
  BALLAST_REQUIRE_SHARED(data, "data/deepseek_r1_counts");
  const struct {
    int32_t gpus, each;
    double kept_prefill, kept_decode;
  } cases[] = {{32, 2, .95, .95}, {32, 4, 1, 1}, {64, 8, .97, 1.05}, {64, 12, 1, 1}};
  for (const auto& c : cases) {
    for (const bool prefill : {true, false}) {
      if (!RunsLong() && (c.each != 2 || !prefill)) continue;
      const std::string file = prefill ? "prefill_in4096" : "decode_in1000out1000";
      PlanRequest request;
      request.scenarios = {{"load", 1, Read(data + "/" + file + ".json").load}};
      const LoadMatrix& load = request.scenarios[0].load;
      request.topology = UniformTopology(c.gpus, 1, load.layers * load.experts / c.gpus + c.each);
      request.replicas_per_worker = c.each;
      const auto ours = MakePlan(CostAwarePolicy(), request);
      const auto craft = MakePlan(CraftPolicy(), request);
      ASSERT_TRUE(ours.ok() && craft.ok()) << ours.status() << craft.status();
      const double least = PublishedEplb(load, c.gpus, 256).mean;
      const double most = PublishedEplb(load, c.gpus, c.gpus == 32 ? 288 : 320).mean;
      const auto kept = [&](const Plan& plan) { return (plan.predicted[0].balancedness - least) / (most - least); };
      std::printf("%-22s %3d GPUs R %2d: CRAFT %.4f, %5.1f %%  ours %.4f, %5.1f %%  bound %.4f\n", file.c_str(), c.gpus,
                  c.each, craft->predicted[0].balancedness, 100 * kept(*craft), ours->predicted[0].balancedness,
                  100 * kept(*ours), ours->predicted[0].upper_bound);
      EXPECT_GE(kept(*ours), prefill ? c.kept_prefill : c.kept_decode);
      EXPECT_GT(kept(*ours), kept(*craft));
    }
  }
}

// One placement for six workloads; and for five of them, served to the sixth with shares solved anew.
TEST(DeepSeekR1, ManyWorkloads) {
  BALLAST_REQUIRE_SHARED(data, "data/deepseek_r1_counts");
  std::vector<Scenario> all;
  for (const char* file : {"prefill_in4096", "prefill_in2000out100", "prefill_in1000out1000", "prefill_in1024",
                           "decode_in1000out1000", "decode_in2000out100"}) {
    all.push_back({file, 1, Thin(Read(data + "/" + file + ".json").load, 10)});
  }
  const struct {
    int32_t gpus, slots;
    double equal, solved;
  } cases[] = {{32, 9, .985, .993}, {64, 5, RunsLong() ? .97 : .965, .98}, {32, 10, .985, .998}};
  const auto worst = [](const Plan& plan, double LoadScore::*value) {
    double least = 1;
    for (const LoadScore& score : plan.predicted) least = std::min(least, score.*value);
    return least;
  };
  for (const auto& c : cases) {
    PlanRequest request;
    request.scenarios = all;
    request.topology = UniformTopology(c.gpus, 1, c.slots * all[0].load.layers);
    const auto eplb = MakePlan(EplbPolicy(1, Split::kEqual), request);
    const auto plan = MakePlan(CostAwarePolicy(), request);
    ASSERT_TRUE(plan.ok() && eplb.ok()) << plan.status() << eplb.status();
    std::printf("%d x %d, %d layers: EPLB of the sum %.4f, with shares %.4f  ours %.4f, with shares %.4f\n", c.gpus,
                c.slots, all[0].load.layers, worst(*eplb, &LoadScore::balancedness_equal_split),
                worst(*eplb, &LoadScore::balancedness_solved), worst(*plan, &LoadScore::balancedness_equal_split),
                worst(*plan, &LoadScore::balancedness_solved));
    EXPECT_GE(worst(*plan, &LoadScore::balancedness_equal_split), c.equal);
    EXPECT_GE(worst(*plan, &LoadScore::balancedness_solved), c.solved);
    for (size_t out = 0; RunsLong() && out < all.size(); ++out) {
      request.scenarios = all;
      request.scenarios.erase(request.scenarios.begin() + static_cast<std::ptrdiff_t>(out));
      const auto others = MakePlan(CostAwarePolicy(), request);
      const auto eplb_others = MakePlan(EplbPolicy(1, Split::kEqual), request);
      ASSERT_TRUE(others.ok() && eplb_others.ok()) << others.status();
      const LoadScore unseen = ScoreLoad(others->placement, all[out], request.topology);
      const LoadScore eplb_unseen = ScoreLoad(eplb_others->placement, all[out], request.topology);
      std::printf("  without %-22s EPLB %.4f, with shares %.4f  ours %.4f, with shares %.4f\n", all[out].name.c_str(),
                  eplb_unseen.balancedness_equal_split, eplb_unseen.balancedness_solved,
                  unseen.balancedness_equal_split, unseen.balancedness_solved);
      EXPECT_GT(unseen.balancedness_solved, eplb_unseen.balancedness_equal_split);
    }
  }
}

}  // namespace
}  // namespace ballast
