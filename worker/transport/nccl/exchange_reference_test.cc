#include "worker/transport/nccl/exchange_reference.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"
#include "kernels/cpu/test_data.h"

namespace ballast {
namespace {

using internal::FromBf16;
using internal::ToBf16;

constexpr ExchangeShape kShape = {.ranks = 3, .capacity = 9, .top_k = 4, .hidden_size = 16, .groups_per_rank = 5};

ExchangeInput RandomInput(int tokens, int seed) {
  std::minstd_rand random(seed);
  ExchangeInput input;
  input.tokens = tokens;
  for (int i = 0; i < tokens * kShape.hidden_size; ++i) {
    input.rows.push_back(ToBf16(static_cast<float>(random() % 2001) / 1000 - 1));
  }
  for (int i = 0; i < tokens * kShape.top_k; ++i) {
    input.replicas.push_back(static_cast<int32_t>(random() % (kShape.ranks * kShape.groups_per_rank + 1)) - 1);
    input.weights.push_back(static_cast<float>(random() % 1000) / 1000);
  }
  return input;
}

std::vector<uint16_t> Expert(int replica, const std::vector<uint16_t>& row) {
  std::vector<uint16_t> out;
  for (const uint16_t v : row) out.push_back(ToBf16(FromBf16(v) * static_cast<float>(1 + replica)));
  return out;
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(ToBf16(1.0f + 1.0f / 256), 0x3f80);
  EXPECT_EQ(ToBf16(1.0f + 3.0f / 256), 0x3f82);
  EXPECT_EQ(ToBf16(1.0f + 1.5f / 256), 0x3f81);
  EXPECT_EQ(FromBf16(ToBf16(-0.5f)), -0.5f);
  EXPECT_EQ(ToBf16(std::numeric_limits<float>::infinity()), 0x7f80);
}

TEST(ExchangeReference, EveryChoiceArrivesOnceWithItsRow) {
  const std::vector<ExchangeInput> inputs = {RandomInput(9, 1), RandomInput(0, 2), RandomInput(5, 3)};
  int wanted = 0;
  for (const ExchangeInput& input : inputs) {
    for (const int32_t replica : input.replicas) wanted += replica >= 0;
  }
  int got = 0;
  for (int rank = 0; rank < kShape.ranks; ++rank) {
    const ExchangeReceived received = ReferenceDispatch(kShape, inputs, rank);
    for (int slot = 0; slot < kShape.ranks * kShape.capacity; ++slot) {
      const int source = slot / kShape.capacity, token = slot % kShape.capacity;
      bool any = false;
      for (int k = 0; k < kShape.top_k; ++k) {
        const int32_t group = received.groups[slot * kShape.top_k + k];
        if (group == kShape.groups_per_rank) continue;
        any = true;
        ++got;
        ASSERT_LT(token, inputs[source].tokens);
        EXPECT_EQ(inputs[source].replicas[token * kShape.top_k + k], rank * kShape.groups_per_rank + group);
      }
      ASSERT_EQ(received.rows[slot].empty(), !any);
      for (size_t d = 0; d < received.rows[slot].size(); ++d) {
        EXPECT_EQ(received.rows[slot][d], inputs[source].rows[token * kShape.hidden_size + d]);
      }
    }
  }
  EXPECT_EQ(got, wanted);
}

TEST(ExchangeReference, CombineIsTheWeightedSum) {
  const ExchangeInput input = RandomInput(9, 4);
  const std::vector<uint16_t> out = ReferenceCombine(kShape, input, Expert);
  ASSERT_EQ(out.size(), input.rows.size());
  for (int t = 0; t < input.tokens; ++t) {
    for (int d = 0; d < kShape.hidden_size; ++d) {
      double sum = 0, size = 0;
      for (int k = 0; k < kShape.top_k; ++k) {
        const int32_t replica = input.replicas[t * kShape.top_k + k];
        if (replica < 0) continue;
        const double term = static_cast<double>(input.weights[t * kShape.top_k + k]) *
                            FromBf16(input.rows[t * kShape.hidden_size + d]) * (1 + replica);
        sum += term;
        size += std::abs(term);
      }
      // The expert's rounding, the partial sums' and the last.
      EXPECT_NEAR(FromBf16(out[t * kShape.hidden_size + d]), sum, size * 3 / 256);
    }
  }
}

}  // namespace
}  // namespace ballast
