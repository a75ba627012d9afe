#include "kernels/cuda/router.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

uint16_t ToBf16(float v) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16); }

struct Choices {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

// One token, in float64.
Choices Reference(const CudaRouterRule& rule, const std::vector<double>& logits, const std::vector<float>& bias) {
  const int e = rule.num_experts;
  std::vector<double> scores(e);
  double sum = 0;
  for (int i = 0; i < e; ++i) {
    scores[i] = rule.score == RouterScore::kSoftmax ? std::exp(logits[i]) : 1 / (1 + std::exp(-logits[i]));
    sum += scores[i];
  }
  if (rule.score == RouterScore::kSoftmax) {
    for (double& score : scores) score /= sum;
  }
  std::vector<double> biased = scores;
  for (int i = 0; i < e && !bias.empty(); ++i) biased[i] += bias[i];
  const auto best = [](const std::vector<double>& values, int count) {
    std::vector<int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
    order.resize(count);
    return order;
  };
  if (rule.num_groups > 1) {
    const int size = e / rule.num_groups;
    std::vector<double> groups;
    for (int g = 0; g < rule.num_groups; ++g) {
      std::vector<double> own(biased.begin() + g * size, biased.begin() + (g + 1) * size);
      std::sort(own.rbegin(), own.rend());
      groups.push_back(own[0] + own[1]);
    }
    const std::vector<int32_t> kept = best(groups, rule.top_groups);
    for (int i = 0; i < e; ++i) {
      if (std::find(kept.begin(), kept.end(), i / size) == kept.end())
        biased[i] = -std::numeric_limits<double>::infinity();
    }
  }
  Choices choices;
  choices.ids = best(biased, rule.top_k);
  double total = 0;
  for (const int32_t id : choices.ids) total += scores[id];
  for (const int32_t id : choices.ids) {
    choices.weights.push_back((rule.renormalize ? scores[id] / total : scores[id]) * rule.scale);
  }
  return choices;
}

void VerifyGroups(const std::vector<int32_t>& ids, const std::vector<int32_t>& group_of, int groups,
                  const std::vector<int32_t>& begin, const std::vector<int32_t>& order,
                  const std::vector<int32_t>& row_of) {
  int row = 0;
  for (int g = 0; g < groups; ++g) {
    ASSERT_EQ(begin[g], row) << "group " << g;
    for (size_t pair = 0; pair < ids.size(); ++pair) {
      if (group_of[ids[pair]] != g) continue;
      ASSERT_EQ(row_of[pair], row);
      ASSERT_EQ(order[row++], static_cast<int32_t>(pair));
    }
  }
  ASSERT_EQ(begin[groups], row);
  for (size_t pair = 0; pair < ids.size(); ++pair) {
    if (group_of[ids[pair]] < 0) {
      ASSERT_EQ(row_of[pair], -1);
    }
  }
}

// Inputs are small multiples of powers of two, so that logits are exact in any order of summation, and ties are ties.
void RunCase(const CudaRouterRule& rule, int tokens, int hidden, int tasks) {
  SCOPED_TRACE(testing::Message() << rule.num_experts << " experts, top " << rule.top_k << ", " << tokens
                                  << " tokens of " << hidden);
  std::mt19937 random(1 + tokens);
  const int e = rule.num_experts, k = rule.top_k;
  std::vector<float> x(static_cast<size_t>(tokens) * hidden), w(static_cast<size_t>(e) * hidden);
  // About 64 terms a logit are not zero, whatever the size.
  for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 5) - 2);
  for (float& v : w) v = static_cast<int>(random() % hidden) < 64 ? 0.0625f * (static_cast<int>(random() % 5) - 2) : 0;
  const bool sigmoid = rule.score == RouterScore::kSigmoid;
  // Distinct by more than rounding, but for ties.
  std::vector<float> bias;
  for (int i = 0; sigmoid && i < e; ++i) bias.push_back(0.125f * (random() % 4));
  std::vector<int32_t> task(tokens);
  for (int32_t& t : task) t = static_cast<int32_t>(random() % tasks);
  const auto bf16 = [](const std::vector<float>& values) {
    std::vector<uint16_t> converted;
    for (const float v : values) converted.push_back(ToBf16(v));
    return converted;
  };
  DeviceArray<uint16_t> device_x(bf16(x)), device_w(bf16(w));
  DeviceArray<float> device_bias(bias), weights(static_cast<size_t>(tokens) * k);
  DeviceArray<int32_t> device_task(task), ids(static_cast<size_t>(tokens) * k);
  DeviceArray<uint64_t> counts(static_cast<size_t>(tasks) * e), mass(static_cast<size_t>(tasks) * e);
  counts.Fill(0);
  mass.Fill(0);
  // About a quarter of the experts has no replica here.
  std::vector<int32_t> group_of(e, -1);
  int groups = 0;
  for (int i = 0; i < e; ++i) {
    if (i == 0 || random() % 4 != 0) group_of[i] = groups++;
  }
  std::shuffle(group_of.begin(), group_of.end(), random);
  DeviceArray<int32_t> device_group_of(group_of), begin(groups + 1), order(ids.size()), row_of(ids.size());
  const GroupPairsArgs group = {
      ids.data(),   static_cast<int>(ids.size()), device_group_of.data(), e, groups, begin.data(), order.data(),
      row_of.data()};
  DeviceArray<uint8_t> workspace(RouteTokensWorkspaceBytes(rule, tokens)),
      group_workspace(RouteAndGroupWorkspaceBytes(rule, tokens, groups));
  workspace.Fill(0xff);
  group_workspace.Fill(0);
  RouteTokensArgs args;
  args.rule = rule;
  args.hidden = device_x.data();
  args.router_weights = device_w.data();
  args.bias = sigmoid ? device_bias.data() : nullptr;
  args.num_tokens = tokens;
  args.hidden_size = hidden;
  args.ids = ids.data();
  args.weights = weights.data();
  args.task = device_task.data();
  args.num_tasks = tasks;
  args.counts = counts.data();
  args.gate_mass = mass.data();
  for (int run = 0; run < 2; ++run) {
    ids.Fill(0xff);
    weights.Fill(0xff);
    const absl::Status status = run == 0 ? RouteTokens(args, workspace.data(), nullptr)
                                         : RouteAndGroup(args, group, group_workspace.data(), nullptr);
    ASSERT_TRUE(status.ok()) << status;
    CheckCuda(cudaDeviceSynchronize());
  }
  VerifyGroups(ids.Read(), group_of, groups, begin.Read(), order.Read(), row_of.Read());
  const std::vector<int32_t> got_ids = ids.Read();
  const std::vector<float> got_weights = weights.Read();
  std::vector<uint64_t> wanted_counts(counts.size());
  std::vector<double> wanted_mass(mass.size());
  for (int t = 0; t < tokens; ++t) {
    std::vector<double> logits(e);
    for (int i = 0; i < e; ++i) {
      for (int h = 0; h < hidden; ++h) {
        logits[i] +=
            static_cast<double>(x[static_cast<size_t>(t) * hidden + h]) * w[static_cast<size_t>(i) * hidden + h];
      }
    }
    const Choices wanted = Reference(rule, logits, bias);
    for (int j = 0; j < k; ++j) {
      const size_t at = static_cast<size_t>(t) * k + j;
      ASSERT_EQ(got_ids[at], wanted.ids[j]) << "token " << t << ", choice " << j;
      ASSERT_NEAR(got_weights[at], wanted.weights[j], 2e-6 * rule.scale) << "token " << t << ", choice " << j;
      wanted_counts[task[t] * e + wanted.ids[j]] += 2;
      wanted_mass[task[t] * e + wanted.ids[j]] += 2 * got_weights[at];
    }
  }
  EXPECT_EQ(counts.Read(), wanted_counts);
  const std::vector<uint64_t> got_mass = mass.Read();
  for (size_t i = 0; i < got_mass.size(); ++i) EXPECT_NEAR(got_mass[i] * 0x1p-32, wanted_mass[i], 1e-5);
}

TEST(CudaRouterTest, Softmax) {
  for (const bool renormalize : {false, true}) {
    for (const auto& [experts, top_k] : std::vector<std::pair<int, int>>{
             {1, 1}, {8, 2}, {16, 1}, {32, 4}, {60, 4}, {64, 8}, {128, 8}, {256, 8}, {384, 8}, {512, 32}}) {
      CudaRouterRule rule;
      rule.num_experts = experts;
      rule.top_k = top_k;
      rule.renormalize = renormalize;
      for (const int tokens : {1, 3, 17, 64, 129, 1000}) RunCase(rule, tokens, 256, 3);
    }
  }
}

TEST(CudaRouterTest, Sizes) {
  CudaRouterRule rule;
  rule.num_experts = 64;
  rule.top_k = 6;
  for (const int hidden : {8, 72, 2048, 7168}) RunCase(rule, 33, hidden, 1);
  for (const int tokens : {512, 513, 1000, 4096, 16384}) {
    RunCase(rule, tokens, 136, 2);
    RunCase(rule, tokens, 136, 40);  // more cells than fit in shared memory
  }
}

TEST(CudaRouterTest, GroupedSigmoid) {
  CudaRouterRule rule;
  rule.score = RouterScore::kSigmoid;
  rule.num_experts = 256;
  rule.top_k = 8;
  rule.renormalize = true;
  rule.scale = 2.5f;
  rule.num_groups = 8;
  rule.top_groups = 4;
  for (const int tokens : {1, 3, 17, 64, 129, 1000}) RunCase(rule, tokens, 512, 2);
  rule.num_experts = 64;
  rule.num_groups = 32;
  rule.top_groups = 5;
  RunCase(rule, 100, 64, 1);
  rule.num_groups = 1;
  rule.num_experts = 384;
  RunCase(rule, 100, 64, 1);
}

// Of one shape, in steps of any number of tokens.
void CheckRowInvariant(int experts, int top_k, int hidden) {
  const int most = 1500;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(static_cast<size_t>(most) * hidden), w(static_cast<size_t>(experts) * hidden);
  for (uint16_t& v : x) v = ToBf16(normal(random));
  for (uint16_t& v : w) v = ToBf16(0.02f * normal(random));
  const DeviceArray<uint16_t> device_x(x), device_w(w);
  std::vector<int32_t> group_of(experts);
  std::iota(group_of.begin(), group_of.end(), 0);
  const DeviceArray<int32_t> device_group_of(group_of);
  RouteTokensArgs args;
  args.rule.num_experts = experts;
  args.rule.top_k = top_k;
  args.rule.renormalize = true;
  args.router_weights = device_w.data();
  args.hidden_size = hidden;
  args.row_invariant = true;
  std::vector<int32_t> all_ids;
  std::vector<float> all_weights;
  for (const int tokens : {1500, 600, 129, 17, 8, 1}) {
    const int first = tokens == most ? 0 : 3, pairs = tokens * top_k;
    DeviceArray<int32_t> ids(pairs), begin(experts + 1), order(pairs), row_of(pairs);
    DeviceArray<float> weights(pairs);
    DeviceArray<uint8_t> workspace(RouteAndGroupWorkspaceBytes(args.rule, tokens, experts));
    workspace.Fill(0);
    args.hidden = device_x.data() + first * hidden;
    args.num_tokens = tokens;
    args.ids = ids.data();
    args.weights = weights.data();
    const absl::Status status = RouteAndGroup(
        args, {ids.data(), pairs, device_group_of.data(), experts, experts, begin.data(), order.data(), row_of.data()},
        workspace.data(), nullptr);
    ASSERT_TRUE(status.ok()) << status;
    CheckCuda(cudaDeviceSynchronize());
    if (tokens == most) {
      all_ids = ids.Read();
      all_weights = weights.Read();
    }
    const auto id = all_ids.begin() + first * top_k;
    const auto weight = all_weights.begin() + first * top_k;
    EXPECT_EQ(ids.Read(), std::vector<int32_t>(id, id + pairs)) << tokens << " tokens";
    EXPECT_EQ(weights.Read(), std::vector<float>(weight, weight + pairs)) << tokens << " tokens";
  }
}

TEST(CudaRouterTest, RowInvariant_ATokenDependsOnItselfAlone) {
  CheckRowInvariant(128, 8, 2048);
  for (const int experts : {8, 16, 33, 64, 256, 512}) {
    SCOPED_TRACE(experts);
    CheckRowInvariant(experts, 2, 512);
  }
}

TEST(CudaRouterTest, ErrorsNameFieldValueAndLimit) {
  CudaRouterRule rule;
  rule.num_experts = 600;
  EXPECT_EQ(CheckRouterRule(rule).message(), "num_experts is 600, has to be 1 to 512");
  rule.num_experts = 16;
  rule.top_k = 17;
  EXPECT_EQ(CheckRouterRule(rule).message(), "top_k is 17, has to be 1 to 16");
  rule.score = RouterScore::kSigmoid;
  rule.num_experts = 64;
  rule.num_groups = 16;
  rule.top_groups = 2;
  EXPECT_EQ(CheckRouterRule(rule).message(), "top_k is 17, has to be at most the top groups' 8");
  rule.num_groups = 3;
  EXPECT_EQ(CheckRouterRule(rule).message(), "num_groups is 3, has to be 1, 2, 4, 8, 16 or 32");
}

}  // namespace
}  // namespace ballast
