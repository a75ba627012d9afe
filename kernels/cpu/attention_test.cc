#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/test_data.h"

namespace ballast {
namespace {

using internal::RandomFloats;

// Blocks begin with another layer's part.
constexpr size_t kOffset = 48;

struct Cache {
  Cache(const AttentionShape& shape, int positions) {
    const int count = (positions + kKvBlockPositions - 1) / kKvBlockPositions;
    // What no position has written yet must not be seen.
    storage.assign(count * (kOffset + shape.block_floats()), std::numeric_limits<float>::quiet_NaN());
    // Blocks lie in falling order, as after a while in a pool.
    for (int i = 0; i < count; ++i) blocks.push_back(count - 1 - i);
    layer = {.data = storage.data() + kOffset, .stride = kOffset + shape.block_floats(), .blocks = blocks.data()};
  }
  std::vector<float> storage;
  std::vector<int32_t> blocks;
  KvLayer layer;
};

class AttendRowsTest : public testing::TestWithParam<AttentionShape> {};

TEST_P(AttendRowsTest, MatchesReferenceAndDependsOnTheRowAlone) {
  const AttentionShape shape = GetParam();
  const int positions = 75, kv_width = shape.num_kv_heads * shape.head_dim, width = shape.num_heads * shape.head_dim;
  const std::vector<float> keys = RandomFloats(positions * kv_width, 1), values = RandomFloats(positions * kv_width, 2);
  const std::vector<float> queries = RandomFloats(positions * width, 3);
  std::vector<float> expected(positions * width);
  for (int t = 0; t < positions; ++t) {
    for (int h = 0; h < shape.num_heads; ++h) {
      const int kv = h / (shape.num_heads / shape.num_kv_heads) * shape.head_dim;
      std::vector<double> score(t + 1);
      double top = -1e300, sum = 0;
      for (int p = 0; p <= t; ++p) {
        for (int d = 0; d < shape.head_dim; ++d) {
          score[p] += static_cast<double>(queries[t * width + h * shape.head_dim + d]) * keys[p * kv_width + kv + d];
        }
        score[p] /= std::sqrt(static_cast<double>(shape.head_dim));
        top = std::max(top, score[p]);
      }
      for (double& s : score) sum += s = std::exp(s - top);
      for (int d = 0; d < shape.head_dim; ++d) {
        double out = 0;
        for (int p = 0; p <= t; ++p) out += score[p] / sum * values[p * kv_width + kv + d];
        expected[t * width + h * shape.head_dim + d] = static_cast<float>(out);
      }
    }
  }
  // One row at a time, as the cache grows.
  std::vector<float> single(positions * width);
  {
    Cache cache(shape, positions);
    for (int t = 0; t < positions; ++t) {
      StoreKeyValue(shape, keys.data() + t * kv_width, values.data() + t * kv_width, t, cache.layer);
      AttendRows(shape, queries.data() + t * width, width, 1, t, cache.layer, single.data() + t * width, width);
    }
  }
  EXPECT_LT(internal::RelativeError(std::span<const float>(single), std::span<const float>(expected)), 1e-6);
  // In chunks, later keys already there.
  for (int chunk : {2, 3, 5, 16, 31, 75}) {
    Cache cache(shape, positions);
    for (int t = 0; t < positions; ++t) {
      StoreKeyValue(shape, keys.data() + t * kv_width, values.data() + t * kv_width, t, cache.layer);
    }
    std::vector<float> out(positions * width);
    for (int t = 0; t < positions; t += chunk) {
      AttendRows(shape, queries.data() + t * width, width, std::min(chunk, positions - t), t, cache.layer,
                 out.data() + t * width, width);
    }
    ASSERT_EQ(std::memcmp(out.data(), single.data(), out.size() * sizeof(float)), 0) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttendRowsTest,
                         testing::Values(AttentionShape{3, 3, 64}, AttentionShape{4, 2, 64}, AttentionShape{4, 1, 16},
                                         AttentionShape{6, 2, 80}, AttentionShape{1, 1, 128}));

TEST(RotaryTableTest, MatchesReference) {
  const int dim = 64;
  const RotaryTable table(dim, 10000, 600);
  for (int position : {0, 1, 17, 599}) {
    const std::vector<float> start = RandomFloats(dim, position);
    std::vector<float> x = start;
    table.Rotate(x.data(), position);
    for (int i = 0; i < dim / 2; ++i) {
      const double angle = position * std::pow(10000.0, -2.0 * i / dim);
      EXPECT_NEAR(x[i], start[i] * std::cos(angle) - start[i + dim / 2] * std::sin(angle), 2e-4);
      EXPECT_NEAR(x[i + dim / 2], start[i + dim / 2] * std::cos(angle) + start[i] * std::sin(angle), 2e-4);
    }
  }
}

}  // namespace
}  // namespace ballast
