#include "controller/planner/eplb.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "controller/planner/packs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

const std::vector<std::vector<float>> kPublishedWeights = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                                           {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};

TEST(RebalanceExperts, GivesThePublishedExample) {
  EXPECT_THAT(RebalanceExperts(kPublishedWeights[0], 16, 4, 2, 8),
              ElementsAre(5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1));
  EXPECT_THAT(RebalanceExperts(kPublishedWeights[1], 16, 4, 2, 8),
              ElementsAre(7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1));
}

TEST(RebalanceExperts, NumbersCopiesInThePublishedOrder) {
  std::vector<int32_t> rank;
  RebalanceExperts(kPublishedWeights[0], 16, 4, 2, 8, &rank);
  EXPECT_THAT(rank, ElementsAre(0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0));
  RebalanceExperts(kPublishedWeights[1], 16, 4, 2, 8, &rank);
  EXPECT_THAT(rank, ElementsAre(0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0));
}

TEST(RebalanceExperts, GroupsThatDoNotDivideByNodesAreGlobal) {
  EXPECT_EQ(RebalanceExperts(kPublishedWeights[0], 16, 3, 2, 8), RebalanceExperts(kPublishedWeights[0], 16, 1, 1, 8));
}

// Written from the published description without its data structures: plain scans for the least and the most.
std::vector<int32_t> PlainGlobal(std::vector<float> weights, int32_t replicas, int32_t gpus) {
  const auto experts = static_cast<int32_t>(weights.size());
  std::vector<int32_t> expert(experts);
  std::iota(expert.begin(), expert.end(), 0);
  std::vector<int32_t> count(experts, 1);
  while (static_cast<int32_t>(expert.size()) < replicas) {
    int32_t most = 0;
    for (int32_t e = 1; e < experts; ++e) {
      if (weights[e] / static_cast<float>(count[e]) > weights[most] / static_cast<float>(count[most])) most = e;
    }
    expert.push_back(most);
    ++count[most];
  }
  std::vector<int32_t> order(replicas);
  std::iota(order.begin(), order.end(), 0);
  const auto part = [&](int32_t p) { return weights[expert[p]] / static_cast<float>(count[expert[p]]); };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return part(a) > part(b); });
  const int32_t each = replicas / gpus;
  std::vector<std::vector<int32_t>> packs(gpus);
  std::vector<float> load(gpus);
  for (int32_t i = 0; i < replicas; ++i) {
    const int32_t p = order[i];
    int32_t to = -1;
    if (each == 1) {
      to = p;
    } else {
      for (int32_t g = 0; g < gpus; ++g) {
        if (static_cast<int32_t>(packs[g].size()) < each && (to < 0 || load[g] < load[to])) to = g;
      }
    }
    packs[to].push_back(expert[p]);
    load[to] += part(p);
  }
  std::vector<int32_t> out;
  for (const auto& pack : packs) out.insert(out.end(), pack.begin(), pack.end());
  return out;
}

TEST(RebalanceExperts, EqualsThePlainAlgorithmWithManyTies) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 2000; ++trial) {
    const int32_t gpus = 1 + random() % 6;
    const int32_t each = 1 + random() % 4;
    const int32_t experts = 1 + random() % (gpus * each);
    std::vector<float> weights(experts);
    for (float& w : weights) w = static_cast<float>(random() % (trial % 2 == 0 ? 4 : 1000));
    ASSERT_EQ(RebalanceExperts(weights, gpus * each, 1, 1, gpus), PlainGlobal(weights, gpus * each, gpus));
  }
}

// Vectors of another engine's C++ balancer; with all loads zero it spreads evenly, see the policy's test below.
TEST(ReplicateExperts, GivesTheExpectedCounts) {
  EXPECT_THAT(ReplicateExperts(std::vector<float>{1, 2, 3, 4}, 4).count, ElementsAre(1, 1, 1, 1));
  EXPECT_THAT(ReplicateExperts(std::vector<float>{1, 4, 2, 1}, 8).count, ElementsAre(1, 4, 2, 1));
  EXPECT_THAT(ReplicateExperts(std::vector<float>{10, 5, 2, 15, 8}, 9).count, ElementsAre(2, 1, 1, 3, 2));
  EXPECT_THAT(ReplicateExperts(std::vector<float>{0, 10, 0}, 4).count, ElementsAre(1, 2, 1));
  const Replication r = ReplicateExperts(std::vector<float>{3, 9}, 4);
  EXPECT_THAT(r.expert, ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(r.rank, ElementsAre(0, 0, 1, 2));
}

PlanRequest Request(std::vector<std::vector<double>> tokens, int32_t workers, int32_t nodes, int32_t slots) {
  PlanRequest request;
  Scenario s{"load", 1, LoadMatrix(static_cast<int32_t>(tokens.size()), static_cast<int32_t>(tokens[0].size()))};
  for (size_t l = 0; l < tokens.size(); ++l) std::copy(tokens[l].begin(), tokens[l].end(), s.load.layer(l).begin());
  request.topology = UniformTopology(workers, nodes, slots * static_cast<int32_t>(tokens.size()));
  request.scenarios.push_back(std::move(s));
  return request;
}

std::vector<int32_t> Counts(const DispatchTable& table) {
  std::vector<int32_t> counts;
  for (int32_t e = 0; e < table.num_experts(); ++e) counts.push_back(table.begin[e + 1] - table.begin[e]);
  return counts;
}

TEST(EplbPolicy, PlacesThePublishedExampleOnNodes) {
  const auto request = Request({{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86}}, 8, 2, 2);
  const auto layers = EplbPolicy(4).Place(request);
  ASSERT_TRUE(layers.ok()) << layers.status();
  // Expert 5 on workers 0 and 1, as in [5, 6 | 5, 7 | 8, 4 | 3, 4 || ...].
  const DispatchTable& t = (*layers)[0];
  EXPECT_THAT(std::vector<int32_t>(t.rank.begin() + t.begin[5], t.rank.begin() + t.begin[6]), ElementsAre(0, 1));
  EXPECT_THAT(Counts(t), ElementsAre(1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1));
}

TEST(EplbPolicy, NeverPutsAnExpertTwiceOnAWorker) {
  // All zero: the published rule gives expert 0 every spare replica.
  const auto layers = EplbPolicy().Place(Request({{0, 0, 0, 0}}, 2, 1, 3));
  ASSERT_TRUE(layers.ok()) << layers.status();
  EXPECT_THAT(Counts((*layers)[0]), ElementsAre(2, 2, 1, 1));
  std::mt19937 random(2);
  for (int trial = 0; trial < 3000; ++trial) {
    const int32_t workers = 1 + random() % 6;
    const int32_t experts = 1 + random() % 12;
    const int32_t slots = (experts + workers - 1) / workers + random() % 3;
    std::vector<double> tokens(experts);
    for (double& t : tokens) t = random() % 3 == 0 ? 0 : random() % (trial % 2 ? 10 : 100000);
    if (trial % 5 == 0) tokens[random() % experts] = 1e9;
    const auto request = Request({tokens, tokens}, workers, 1, slots);
    const auto plan = MakePlan(EplbPolicy(), request);
    ASSERT_TRUE(plan.ok()) << plan.status();  // MakePlan validates
    ASSERT_GE(plan->predicted[0].balancedness_solved, plan->predicted[0].balancedness_equal_split - 1e-9);
    ASSERT_LE(plan->predicted[0].balancedness_solved, plan->predicted[0].upper_bound + 1e-9);
  }
}

TEST(EplbPolicy, SaysWhatIsWrong) {
  const auto few = EplbPolicy().Place(Request({{1, 2, 3, 4, 5}}, 2, 1, 2));
  EXPECT_THAT(few.status().ToString(), HasSubstr("4 a layer on 2 workers; a layer has 5 experts"));
  const auto groups = EplbPolicy(2).Place(Request({{1, 2, 3}}, 2, 1, 2));
  EXPECT_THAT(groups.status().ToString(), HasSubstr("groups: 2; must divide the 3 experts"));
  auto large = Request({{1, 2}}, 2, 1, 2);
  large.slots_per_layer = 3;
  EXPECT_THAT(EplbPolicy().Place(large).status().ToString(), HasSubstr("worker 'w0' has room for 2"));
}

int64_t Stays(const Packs& packs, const DispatchTable& current) {
  int64_t stays = 0;
  for (size_t w = 0; w < packs.size(); ++w) {
    for (const int32_t e : packs[w]) {
      stays += std::count(current.rank.begin() + current.begin[e], current.rank.begin() + current.begin[e + 1],
                          static_cast<int32_t>(w));
    }
  }
  return stays;
}

TEST(Relabel, KeepsAsMuchAsAnyOrderOfPacks) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 500; ++trial) {
    const int32_t workers = 1 + random() % 5;
    const int32_t experts = 4 + random() % 6;
    const auto draw = [&] {
      Packs packs(workers);
      for (auto& pack : packs) {
        std::vector<int32_t> all(experts);
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), random);
        pack.assign(all.begin(), all.begin() + 3);
      }
      return packs;
    };
    const DispatchTable current = ToTable(draw(), experts);
    const Packs packs = draw();
    const Packs relabelled = Relabel(packs, current, workers);
    int64_t most = 0;
    std::vector<int32_t> order(workers);
    std::iota(order.begin(), order.end(), 0);
    do {
      Packs other(workers);
      for (int32_t p = 0; p < workers; ++p) other[order[p]] = packs[p];
      most = std::max(most, Stays(other, current));
    } while (std::next_permutation(order.begin(), order.end()));
    ASSERT_EQ(Stays(relabelled, current), most);
    EXPECT_THAT(Packs(relabelled), ::testing::UnorderedElementsAreArray(packs));
  }
}

TEST(Relabel, KeepsNodesTogetherInBlocks) {
  // Packs 0, 1 are one node's: they may go to workers 2, 3 together or stay.
  const Packs packs = {{0, 1}, {2, 3}, {4, 5}, {6, 7}};
  const DispatchTable current = ToTable({{6, 7}, {4, 1}, {2, 3}, {0, 5}}, 8);
  EXPECT_THAT(Relabel(packs, current, 2),
              ElementsAre(ElementsAre(6, 7), ElementsAre(4, 5), ElementsAre(2, 3), ElementsAre(0, 1)));
  EXPECT_EQ(Relabel(packs, ToTable(packs, 8), 2), packs);
}

TEST(Relabel, LargeOnesKeepWhatIsUnchanged) {
  Packs packs(300);
  for (int32_t w = 0; w < 300; ++w) packs[w] = {w};
  Packs turned(packs.rbegin(), packs.rend());
  EXPECT_EQ(Relabel(turned, ToTable(packs, 300), 300), packs);
}

}  // namespace
}  // namespace ballast
