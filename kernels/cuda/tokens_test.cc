#include "kernels/cuda/tokens.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

TEST(CudaGroupPairsTest, IsAStableCountingSort) {
  std::mt19937 random(1);
  for (const int experts : {1, 5, 64, 256, 1024}) {
    for (const int pairs : {0, 1, 3, 17, 64, 129, 1000, 1024, 1025, 4097, 131072}) {
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

// The code of the e4m3 number nearest to v, ties to even.
uint8_t ToE4m3(float v) {
  static const std::vector<float> kNumbers = [] {
    std::vector<float> numbers;
    for (int code = 0; code < 127; ++code) {
      const int exponent = code >> 3, mantissa = code & 7;
      numbers.push_back(exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
    }
    return numbers;
  }();
  const float magnitude = std::fabs(v);
  const auto above = std::lower_bound(kNumbers.begin(), kNumbers.end() - 1, magnitude);
  int code = static_cast<int>(above - kNumbers.begin());
  if (code > 0) {
    const float up = *above - magnitude, down = magnitude - kNumbers[code - 1];
    if (down < up || (down == up && code % 2 != 0)) --code;
  }
  return static_cast<uint8_t>(code | (std::signbit(v) ? 0x80 : 0));
}

TEST(CudaQuantizeRowsTest, IsDivisionByScalesAndRounding) {
  for (const int rows : {0, 1, 3, 129}) {
    for (const int hidden : {16, 128, 144, 2048, 7168}) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << hidden);
      const size_t count = static_cast<size_t>(rows) * hidden, blocks = (hidden + kScaleBlock - 1) / kScaleBlock;
      DeviceArray<uint16_t> x(count);
      CheckCuda(FillUniformBf16(x.data(), count, 4, 3, nullptr));
      // One block of zeros.
      if (count > 0) CheckCuda(cudaMemset(x.data() + (rows - 1) * hidden, 0, 2 * std::min(hidden, kScaleBlock)));
      DeviceArray<uint8_t> out(count);
      DeviceArray<float> scales(rows * blocks);
      out.Fill(0xff);
      scales.Fill(0xff);
      ASSERT_TRUE(QuantizeRows({x.data(), rows, hidden, out.data(), scales.data()}, nullptr).ok());
      CheckCuda(cudaDeviceSynchronize());
      const std::vector<uint16_t> from = x.Read();
      const std::vector<uint8_t> got = out.Read();
      const std::vector<float> got_scales = scales.Read();
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        for (size_t b = 0; b < blocks; ++b) {
          const size_t first = r * hidden + b * kScaleBlock, end = std::min(first + kScaleBlock, (r + 1) * hidden);
          float largest = 0;
          for (size_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(FromBf16(from[i])));
          const float scale = largest > 0 ? largest / 448 : 1;
          ASSERT_EQ(got_scales[r * blocks + b], scale);
          for (size_t i = first; i < end; ++i) {
            ASSERT_EQ(got[i], ToE4m3(FromBf16(from[i]) / scale)) << "row " << r << ", column " << i - r * hidden;
          }
        }
      }
    }
  }
}

// As no router chooses, but a caller may: all of them are added, in the order of choices.
TEST(CudaCombineRowsTest, AnExpertThatWasChosenTwiceIsAddedTwice) {
  constexpr int kTopK = 5, kHidden = 8;
  const std::vector<float> values = {1, 2, 4, 8, 16};
  std::vector<uint16_t> host_rows;
  for (const float value : values) host_rows.insert(host_rows.end(), kHidden, ToBf16(value));
  const DeviceArray<uint16_t> rows(host_rows);
  DeviceArray<uint16_t> out(kHidden);
  const DeviceArray<int32_t> row_of({0, 1, 2, 3, 4}), ids({7, 3, 7, 3, 7});
  const DeviceArray<float> weights({1, 1, 1, 1, 1});
  const absl::Status status =
      CombineRows({rows.data(), row_of.data(), ids.data(), weights.data(), 1, kTopK, kHidden, out.data()}, nullptr);
  ASSERT_TRUE(status.ok()) << status;
  CheckCuda(cudaDeviceSynchronize());
  for (const uint16_t v : out.Read()) EXPECT_EQ(FromBf16(v), 31);
}

TEST(CudaTokensTest, ErrorsNameFieldValueAndLimit) {
  GroupPairsArgs group;
  group.num_experts = 4;
  group.num_groups = 1025;
  EXPECT_EQ(GroupPairs(group, nullptr, nullptr).message(), "num_groups is 1025, has to be 1 to 1024");
  EXPECT_EQ(QuantizeRows({nullptr, 1, 24, nullptr, nullptr}, nullptr).message(),
            "hidden_size is 24, has to be a positive multiple of 16");
  CombineArgs combine;
  combine.top_k = 33;
  EXPECT_EQ(CombineRows(combine, nullptr).message(), "top_k is 33, has to be 1 to 32");
}

}  // namespace
}  // namespace ballast
