#include "controller/capi/physical.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Policy = PhysicalRequest::Policy;
using Split = PhysicalRequest::Split;

// Mean load of a GPU over that of the busiest, averaged over layers.
double Level(const PhysicalShape& shape, std::span<const double> weight, const PhysicalPlan& plan,
             std::span<const double> shares) {
  double sum = 0;
  for (int32_t l = 0; l < shape.num_layers; ++l) {
    std::vector<double> load(shape.num_gpus);
    for (int32_t p = 0; p < shape.num_replicas; ++p) {
      const size_t i = static_cast<size_t>(l) * shape.num_replicas + p;
      load[p / shape.slots()] += weight[l * shape.num_experts + plan.phy2log[i]] * shares[i];
    }
    const double most = *std::max_element(load.begin(), load.end());
    sum += most == 0 ? 1 : std::accumulate(load.begin(), load.end(), 0.0) / shape.num_gpus / most;
  }
  return sum / shape.num_layers;
}

std::vector<double> Lognormal(std::mt19937& random, size_t n, double skew = 1.2) {
  std::lognormal_distribution<double> tokens(6, skew);
  std::vector<double> out(n);
  for (double& t : out) t = tokens(random);
  return out;
}

// What holds for every plan.
void ExpectSound(const PhysicalRequest& request, const PhysicalPlan& plan) {
  const PhysicalShape& shape = request.shape;
  ASSERT_EQ(plan.phy2log.size(), static_cast<size_t>(shape.num_layers) * shape.num_replicas);
  for (int32_t l = 0; l < shape.num_layers; ++l) {
    std::vector<std::set<int64_t>> ranks(shape.num_experts);
    std::vector<std::set<int32_t>> nodes(request.num_groups);
    for (int32_t p = 0; p < shape.num_replicas; ++p) {
      const size_t i = static_cast<size_t>(l) * shape.num_replicas + p;
      const int64_t e = plan.phy2log[i];
      ASSERT_GE(e, 0);
      ASSERT_LT(e, shape.num_experts);
      ASSERT_TRUE(ranks[e].insert(plan.rank[i]).second) << "layer " << l << " expert " << e;
      if (request.num_groups % request.num_nodes == 0) {
        const int32_t gpu = p / shape.slots();
        nodes[e / (shape.num_experts / request.num_groups)].insert(gpu / (shape.num_gpus / request.num_nodes));
      }
    }
    for (int32_t e = 0; e < shape.num_experts; ++e) {
      const int64_t count = plan.logcnt[static_cast<size_t>(l) * shape.num_experts + e];
      ASSERT_GE(count, 1);
      ASSERT_EQ(static_cast<int64_t>(ranks[e].size()), count);
      ASSERT_EQ(*ranks[e].rbegin(), count - 1);
    }
    for (const auto& of_group : nodes) ASSERT_LE(of_group.size(), 1u) << "layer " << l;
  }
}

TEST(Rebalance, RandomRequestsGiveSoundPlans) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 400; ++trial) {
    const auto draw = [&](int32_t most) { return static_cast<int32_t>(1 + random() % most); };
    PhysicalRequest request;
    request.num_nodes = draw(3);
    request.num_groups = random() % 2 ? request.num_nodes * draw(3) : draw(4);
    const int32_t gpus = request.num_nodes * draw(3);
    const int32_t experts = request.num_groups * draw(4);
    const int32_t slots = (experts + gpus - 1) / gpus + static_cast<int32_t>(random() % 4);
    request.shape = {draw(3), experts, gpus * slots, gpus};
    std::vector<double> weight = Lognormal(random, static_cast<size_t>(request.shape.num_layers) * experts, 2);
    for (double& t : weight) t = random() % 4 == 0 ? 0 : t;
    if (trial % 10 == 0) std::fill(weight.begin(), weight.end(), 0);
    request.weight = weight;
    request.policy = random() % 3 ? Policy::kCostAware : Policy::kEplb;
    request.split = random() % 2 ? Split::kEqual : Split::kShares;
    request.proposals = 500;
    std::vector<int64_t> previous;
    if (random() % 2) {
      previous.resize(static_cast<size_t>(request.shape.num_layers) * request.shape.num_replicas);
      for (int64_t& e : previous) e = static_cast<int64_t>(random() % (experts + 1)) - 1;
      request.previous = previous;
    }
    ASSERT_TRUE(Validate(request.shape).ok());
    const auto plan = Rebalance(request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectSound(request, *plan);
    const auto shares = SolvePhysicalShares(request.shape, weight, plan->phy2log);
    ASSERT_TRUE(shares.ok()) << shares.status();
    ASSERT_EQ(plan->shares.empty(), request.split == PhysicalRequest::Split::kEqual);
    if (!plan->shares.empty()) {
      ASSERT_NEAR(Level(request.shape, weight, *plan, plan->shares), Level(request.shape, weight, *plan, *shares),
                  1e-7);
    }
    std::vector<double> sum(plan->logcnt.size());
    for (size_t i = 0; i < shares->size(); ++i) {
      ASSERT_GE((*shares)[i], 0);
      sum[i / request.shape.num_replicas * experts + plan->phy2log[i]] += (*shares)[i];
    }
    for (const double s : sum) ASSERT_NEAR(s, 1, 1e-9);
    ASSERT_GE(Level(request.shape, weight, *plan, *shares) + 1e-9,
              Level(request.shape, weight, *plan, EqualShares(request.shape, *plan)));
    EXPECT_EQ(Rebalance(request)->phy2log, plan->phy2log);
  }
}

TEST(Rebalance, SharesAreExactlyLevelAndSearchBeatsEplb) {
  std::mt19937 random(2);
  const std::vector<double> weight = Lognormal(random, 2 * 128);
  PhysicalRequest request;
  request.shape = {2, 128, 16 * 9, 16};
  request.weight = weight;
  request.policy = Policy::kEplb;
  const auto eplb = Rebalance(request);
  request.policy = Policy::kCostAware;
  const auto equal = Rebalance(request);
  request.split = Split::kShares;
  const auto level = Rebalance(request);
  ASSERT_TRUE(eplb.ok() && equal.ok() && level.ok());
  const double of_eplb = Level(request.shape, weight, *eplb, EqualShares(request.shape, *eplb));
  EXPECT_GT(Level(request.shape, weight, *equal, EqualShares(request.shape, *equal)), of_eplb);
  EXPECT_NEAR(Level(request.shape, weight, *level, level->shares), 1, 1e-7);
}

TEST(Rebalance, NoLayerIsLessLevelThanEplbsWithEqualSplit) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    PhysicalRequest request;
    const auto gpus = static_cast<int32_t>(2 + random() % 6);
    const auto experts = static_cast<int32_t>(gpus * (1 + random() % 6));
    request.shape = {1, experts, experts + gpus * static_cast<int32_t>(random() % 3), gpus};
    const std::vector<double> weight = Lognormal(random, experts, 2);
    request.weight = weight;
    request.proposals = 2000;
    request.policy = Policy::kEplb;
    const auto eplb = Rebalance(request);
    request.policy = Policy::kCostAware;
    const auto ours = Rebalance(request);
    ASSERT_TRUE(eplb.ok() && ours.ok());
    ExpectSound(request, *ours);
    EXPECT_GE(Level(request.shape, weight, *ours, EqualShares(request.shape, *ours)),
              Level(request.shape, weight, *eplb, EqualShares(request.shape, *eplb)) - 1e-7);
  }
}

TEST(Rebalance, MoreSlotsThanExpertsAreSecondCopies) {
  for (const Split split : {Split::kEqual, Split::kShares}) {
    PhysicalRequest request;
    request.shape = {1, 3, 10, 2};
    const std::vector<double> weight = {5, 1, 3};
    request.weight = weight;
    request.split = split;
    const auto plan = Rebalance(request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectSound(request, *plan);
    EXPECT_NEAR(Level(request.shape, weight, *plan, EqualShares(request.shape, *plan)), 1, 1e-12);
  }
}

TEST(Rebalance, ReplicasThatStayKeepTheirSlots) {
  std::mt19937 random(3);
  const std::vector<double> before = Lognormal(random, 64);
  std::vector<double> after = before;
  for (double& t : after) t *= 1 + .02 * static_cast<double>(random() % 10);
  for (const Policy policy : {Policy::kCostAware, Policy::kEplb}) {
    PhysicalRequest request;
    request.shape = {1, 64, 80, 8};
    request.policy = policy;
    request.split = Split::kShares;
    request.weight = before;
    const auto first = Rebalance(request);
    ASSERT_TRUE(first.ok()) << first.status();
    request.previous = first->phy2log;
    EXPECT_EQ(Rebalance(request)->phy2log, first->phy2log);
    request.weight = after;
    const auto second = Rebalance(request);
    ASSERT_TRUE(second.ok()) << second.status();
    ExpectSound(request, *second);
    for (int32_t g = 0; g < 8; ++g) {
      for (int32_t s = g * 10; s < g * 10 + 10; ++s) {
        const auto now = second->phy2log.begin() + g * 10;
        const bool stays = std::find(now, now + 10, first->phy2log[s]) != now + 10;
        const bool only =
            std::count(first->phy2log.begin() + g * 10, first->phy2log.begin() + g * 10 + 10, first->phy2log[s]) == 1;
        if (stays && only) {
          EXPECT_EQ(second->phy2log[s], first->phy2log[s]) << "slot " << s;
        }
      }
    }
  }
}

TEST(KeepSlots, MovesOnlyWhatMust) {
  const auto keep = [](int32_t gpus, std::vector<int64_t> previous, std::vector<int64_t> now) {
    std::vector<int64_t> rank(now.size());
    std::iota(rank.begin(), rank.end(), 0);
    const std::vector<int64_t> before = now;
    KeepSlots(gpus, previous, now, rank);
    for (size_t i = 0; i < now.size(); ++i) EXPECT_EQ(now[i], before[rank[i]]);
    return now;
  };
  EXPECT_THAT(keep(2, {0, 1, 2, 3, 4, 5, 6, 7}, {1, 5, 0, 4, 6, 2, 7, 3}), ElementsAre(0, 1, 5, 4, 2, 3, 6, 7));
  EXPECT_THAT(keep(1, {3, 3, 1}, {1, 3, 3}), ElementsAre(3, 3, 1));
  EXPECT_THAT(keep(1, {3, -1, 3}, {2, 3, -1}), ElementsAre(3, 2, -1));
  EXPECT_THAT(keep(3, {0, 1, 0, 1, 0, 1}, {0, 0, 1, 1, 2, 0}), ElementsAre(0, 0, 1, 1, 0, 2));
}

TEST(LogicalToPhysical, FollowsTheRanks) {
  const PhysicalShape shape{1, 2, 4, 2};
  const std::vector<int64_t> map = {1, 0, -1, 1};
  std::vector<int64_t> out(4, 7);
  ASSERT_TRUE(LogicalToPhysical(shape, map, {}, 2, out).ok());
  EXPECT_THAT(out, ElementsAre(1, -1, 0, 3));
  ASSERT_TRUE(LogicalToPhysical(shape, map, std::vector<int64_t>{1, 0, 0, 0}, 2, out).ok());
  EXPECT_THAT(out, ElementsAre(1, -1, 3, 0));
  EXPECT_THAT(LogicalToPhysical(shape, map, {}, 1, out).ToString(),
              HasSubstr("width: 1; layer 0 has a replica of rank 1"));
  EXPECT_THAT(out, ElementsAre(1, -1, 3, 0));
}

TEST(SolvePhysicalShares, CopiesOnOneGpuShareEqually) {
  const PhysicalShape shape{1, 2, 6, 2};
  // Expert 0 has 90 tokens, twice on GPU 0 and once on GPU 1; expert 1 has 10 on GPU 1; the last slot is empty.
  const std::vector<double> weight = {90, 10};
  const auto shares = SolvePhysicalShares(shape, weight, std::vector<int64_t>{0, 0, -1, 0, 1, -1});
  ASSERT_TRUE(shares.ok()) << shares.status();
  const double half = 50.0 / 90 / 2;
  EXPECT_NEAR((*shares)[0], half, 1e-9);
  EXPECT_NEAR((*shares)[1], half, 1e-9);
  EXPECT_EQ((*shares)[2], 0);
  EXPECT_NEAR((*shares)[3], 40.0 / 90, 1e-9);
  EXPECT_NEAR((*shares)[4], 1, 1e-9);
  EXPECT_THAT(SolvePhysicalShares(shape, weight, std::vector<int64_t>{0, 0, 0, 0, 0, 0}).status().ToString(),
              HasSubstr("phy2log[0]: logical expert 1 is missing"));
}

TEST(Rebalance, SaysWhatIsWrong) {
  const std::vector<double> weight(12, 1);
  const auto error = [&](PhysicalShape shape, int32_t groups, int32_t nodes, double load = 1) {
    std::vector<double> loads = weight;
    loads[3] = load;
    PhysicalRequest request;
    request.shape = shape;
    request.num_groups = groups;
    request.num_nodes = nodes;
    request.weight = loads;
    absl::Status status = Validate(shape);
    if (status.ok()) status = Rebalance(request).status();
    return status.ToString();
  };
  EXPECT_THAT(error({0, 12, 16, 8}, 1, 1), HasSubstr("num_layers: 0; must lie in 1 .. 1048576"));
  EXPECT_THAT(error({1, 12, 16, -8}, 1, 1), HasSubstr("num_gpus: -8; must lie in 1 .."));
  EXPECT_THAT(error({1 << 20, 12, 1 << 20, 8}, 1, 1), HasSubstr("num_replicas: 1048576; in 1048576 layers"));
  EXPECT_THAT(error({1, 12, 15, 8}, 1, 1), HasSubstr("num_replicas: 15; must be a multiple of num_gpus, 8"));
  EXPECT_THAT(error({1, 12, 8, 8}, 1, 1), HasSubstr("num_replicas: 8; must be at least num_experts, 12"));
  EXPECT_THAT(error({1, 12, 16, 8}, 0, 1), HasSubstr("num_groups: 0"));
  EXPECT_THAT(error({1, 12, 16, 8}, 5, 1), HasSubstr("num_groups: 5; must divide num_experts, 12"));
  EXPECT_THAT(error({1, 12, 16, 8}, 3, 3), HasSubstr("num_nodes: 3; must divide num_gpus, 8"));
  EXPECT_THAT(error({1, 12, 16, 8}, 1, 1, -1), HasSubstr("weight[0][3]: -1; must be finite"));
  EXPECT_THAT(error({1, 12, 16, 8}, 1, 1, std::numeric_limits<double>::quiet_NaN()), HasSubstr("weight[0][3]: nan"));
  // As EPLB: where groups do not divide by nodes, neither matters.
  EXPECT_EQ(error({1, 12, 16, 8}, 5, 3), "OK");
}

}  // namespace
}  // namespace ballast
