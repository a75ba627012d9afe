#include "kernels/cuda/tokens.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

TEST(CudaGroupPairsTest, IsAStableCountingSort) {
  std::mt19937 random(1);
  for (const int experts : {1, 5, 64, 256, 1024}) {
    for (const int pairs : {0, 1, 3, 17, 64, 129, 1000, 4096, 4097, 131072}) {
      SCOPED_TRACE(testing::Message() << experts << " experts, " << pairs << " pairs");
      // About a quarter of the experts has no replica here.
      std::vector<int32_t> group_of(experts, -1);
      int groups = 0;
      for (int e = 0; e < experts; ++e) {
        if (e == 0 || random() % 4 != 0) group_of[e] = groups++;
      }
      std::shuffle(group_of.begin(), group_of.end(), random);
      std::vector<int32_t> ids(pairs);
      for (int32_t& id : ids) id = std::min<uint64_t>(random() % experts, random() % experts);  // skewed

      std::vector<std::vector<int32_t>> members(groups);
      for (int p = 0; p < pairs; ++p) {
        if (group_of[ids[p]] >= 0) members[group_of[ids[p]]].push_back(p);
      }
      std::vector<int32_t> begin = {0}, order, row_of(pairs, -1);
      for (const std::vector<int32_t>& group : members) {
        for (const int32_t pair : group) {
          row_of[pair] = static_cast<int32_t>(order.size());
          order.push_back(pair);
        }
        begin.push_back(static_cast<int32_t>(order.size()));
      }
      order.resize(pairs, 0x55555555);

      DeviceArray<int32_t> device_ids(ids), device_group_of(group_of);
      DeviceArray<int32_t> device_begin(groups + 1), device_order(pairs), device_row_of(pairs);
      device_begin.Fill(0x55);
      device_order.Fill(0x55);
      device_row_of.Fill(0x55);
      DeviceArray<uint8_t> workspace(GroupPairsWorkspaceBytes(pairs, groups));
      const absl::Status status = GroupPairs({device_ids.data(), pairs, device_group_of.data(), experts, groups,
                                              device_begin.data(), device_order.data(), device_row_of.data()},
                                             workspace.data(), nullptr);
      ASSERT_TRUE(status.ok()) << status;
      CheckCuda(cudaDeviceSynchronize());
      ASSERT_EQ(device_begin.Read(), begin);
      ASSERT_EQ(device_order.Read(), order);
      ASSERT_EQ(device_row_of.Read(), row_of);
    }
  }
}

// To nearest, ties to even, as the kernel does.
using internal::ToBf16;

TEST(CudaCombineRowsTest, AddsInTheOrderOfExperts) {
  std::mt19937 random(2);
  std::uniform_real_distribution<float> uniform(0, 1);
  for (const int top_k : {1, 2, 8, 32}) {
    for (const int tokens : {1, 3, 17, 129}) {
      for (const int hidden : {8, 72, 2048, 7168}) {
        const int pairs = tokens * top_k, experts = 64;
        std::vector<int32_t> ids, row_of(pairs);
        for (int t = 0; t < tokens; ++t) {
          std::vector<int32_t> all(experts);
          std::iota(all.begin(), all.end(), 0);
          std::shuffle(all.begin(), all.end(), random);
          ids.insert(ids.end(), all.begin(), all.begin() + top_k);
        }
        std::iota(row_of.begin(), row_of.end(), 0);
        std::shuffle(row_of.begin(), row_of.end(), random);
        for (int32_t& row : row_of) {
          if (random() % 5 == 0) row = -1;
        }
        std::vector<float> weights(pairs);
        for (float& weight : weights) weight = uniform(random);
        DeviceArray<uint16_t> rows(static_cast<size_t>(pairs) * hidden), out(static_cast<size_t>(tokens) * hidden);
        CheckCuda(FillUniformBf16(rows.data(), rows.size(), 3, 1, nullptr));
        out.Fill(0xff);
        DeviceArray<int32_t> device_ids(ids), device_row_of(row_of);
        DeviceArray<float> device_weights(weights);
        const absl::Status status = CombineRows({rows.data(), device_row_of.data(), device_ids.data(),
                                                 device_weights.data(), tokens, top_k, hidden, out.data()},
                                                nullptr);
        ASSERT_TRUE(status.ok()) << status;
        CheckCuda(cudaDeviceSynchronize());
        const std::vector<uint16_t> host_rows = rows.Read(), got = out.Read();
        for (int t = 0; t < tokens; ++t) {
          std::vector<int> choices(top_k);
          std::iota(choices.begin(), choices.end(), t * top_k);
          std::sort(choices.begin(), choices.end(), [&](int a, int b) { return ids[a] < ids[b]; });
          for (int d = 0; d < hidden; ++d) {
            float sum = 0;
            for (const int j : choices) {
              if (row_of[j] < 0) continue;
              sum = std::fma(weights[j], FromBf16(host_rows[static_cast<size_t>(row_of[j]) * hidden + d]), sum);
            }
            ASSERT_EQ(got[static_cast<size_t>(t) * hidden + d], ToBf16(sum)) << "token " << t << ", column " << d;
          }
        }
      }
    }
  }
}

TEST(CudaTokensTest, ErrorsNameFieldValueAndLimit) {
  GroupPairsArgs group;
  group.num_experts = 4;
  group.num_groups = 1025;
  EXPECT_EQ(GroupPairs(group, nullptr, nullptr).message(), "num_groups is 1025, has to be 1 to 1024");
  CombineArgs combine;
  combine.top_k = 33;
  EXPECT_EQ(CombineRows(combine, nullptr).message(), "top_k is 33, has to be 1 to 32");
}

}  // namespace
}  // namespace ballast
