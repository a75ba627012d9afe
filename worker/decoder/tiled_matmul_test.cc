#include "worker/decoder/tiled_matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/test_data.h"

namespace ballast {
namespace {

using internal::RandomFloats;

TEST(TiledMatmulTest, MatchesReference) {
  for (const auto& [inputs, outputs] : {std::pair{1, 1}, {3, 17}, {17, 3}, {192, 576}, {64, 4100}, {1024, 300}}) {
    const std::vector<float> weights = RandomFloats(static_cast<size_t>(inputs) * outputs, 1);
    auto matmul = TiledMatmul::Create(weights, outputs, inputs, 1);
    ASSERT_TRUE(matmul.ok()) << matmul.status();
    for (int rows : {4, 12}) {
      const std::vector<float> x = RandomFloats(rows * inputs, 2);
      std::vector<float> y(rows * outputs), expected(rows * outputs);
      (*matmul)->Run(x.data(), rows, y.data());
      for (int r = 0; r < rows; ++r) {
        for (int n = 0; n < outputs; ++n) {
          double sum = 0;
          for (int k = 0; k < inputs; ++k) sum += static_cast<double>(x[r * inputs + k]) * weights[n * inputs + k];
          expected[r * outputs + n] = static_cast<float>(sum);
        }
      }
      EXPECT_LT(internal::RelativeError(std::span<const float>(y), std::span<const float>(expected)), 1e-6)
          << inputs << "x" << outputs << " chunks " << (*matmul)->num_chunks();
    }
  }
}

// What `exact` rests on: the place in the tile, the neighbours, the number of tiles and threads change no bit.
TEST(TiledMatmulTest, RowsBitsDependOnTheRowAlone) {
  for (const auto& [inputs, outputs] : {std::pair{192, 576}, {192, 192}, {256, 512}, {192, 4096}, {100, 36}}) {
    auto matmul = TiledMatmul::Create(RandomFloats(static_cast<size_t>(inputs) * outputs, 1), outputs, inputs, 4);
    ASSERT_TRUE(matmul.ok()) << matmul.status();
    EXPECT_TRUE((*matmul)->RowInvariant()) << (*matmul)->fingerprint();
    const std::vector<float> row = RandomFloats(inputs, 3);
    std::vector<float> first;
    for (int threads : {1, 4}) {
      ThreadPool pool(threads);
      for (int rows : {4, 8, 64}) {
        for (int at = 0; at < rows; ++at) {
          std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * inputs, at), y(rows * outputs);
          std::copy(row.begin(), row.end(), x.begin() + at * inputs);
          (*matmul)->RunOnPool(x.data(), rows, y.data(), pool);
          if (first.empty()) first.assign(y.begin(), y.begin() + outputs);
          ASSERT_EQ(std::memcmp(first.data(), y.data() + at * outputs, outputs * sizeof(float)), 0)
              << inputs << "x" << outputs << " row " << at << " of " << rows << ", " << threads << " threads";
        }
      }
    }
  }
}

TEST(TiledMatmulTest, NonFiniteNeighboursChangeNothing) {
  const int inputs = 64, outputs = 70;
  auto matmul = TiledMatmul::Create(RandomFloats(inputs * outputs, 1), outputs, inputs, 1);
  ASSERT_TRUE(matmul.ok());
  const std::vector<float> row = RandomFloats(inputs, 3);
  std::vector<float> clean(4 * inputs), dirty(4 * inputs, std::nanf("")), y(4 * outputs), z(4 * outputs);
  std::copy(row.begin(), row.end(), clean.begin() + inputs);
  std::copy(row.begin(), row.end(), dirty.begin() + inputs);
  (*matmul)->Run(clean.data(), 4, y.data());
  (*matmul)->Run(dirty.data(), 4, z.data());
  EXPECT_EQ(std::memcmp(&y[outputs], &z[outputs], outputs * sizeof(float)), 0);
}

}  // namespace
}  // namespace ballast
