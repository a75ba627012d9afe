// Each instruction set's table against plain references, and against each other.
#include "kernels/cpu/isa.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "kernels/cpu/test_data.h"
#include "kernels/elementwise.h"
#include "kernels/fingerprint.h"

namespace ballast::internal {
namespace {

// Those that this machine runs.
std::vector<Isa> Available() {
  std::vector<Isa> out;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (KernelsFor(isa) != nullptr) out.push_back(isa);
  }
  return out;
}

class IsaTest : public testing::TestWithParam<Isa> {
 protected:
  std::vector<float> Multiply(const std::vector<float>& x, int rows, int k, const std::vector<uint16_t>& weights,
                              int outputs) {
    std::vector<const float*> row(rows);
    for (int r = 0; r < rows; ++r) row[r] = x.data() + static_cast<size_t>(r) * k;
    std::vector<float> packed(rows * PackedWidth(k)), out(static_cast<size_t>(rows) * outputs);
    kernels_->pack_rows(row.data(), rows, k, packed.data());
    kernels_->matmul(packed.data(), rows, k, weights.data(), outputs, out.data(), outputs);
    return out;
  }
  const IsaKernels* const kernels_ = KernelsFor(GetParam());
};

TEST_P(IsaTest, MatmulMatchesReferenceAtAwkwardSizes) {
  for (int k : {1, 3, 16, 17, 31, 32, 33, 64, 100, 192, 257}) {
    for (int outputs : {1, 3, 4, 5, 7, 8, 9, 17, 64}) {
      for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 17}) {
        const std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * k, k + rows);
        const std::vector<uint16_t> weights = RandomBf16(static_cast<size_t>(outputs) * k, outputs + 7 * k);
        const std::vector<float> out = Multiply(x, rows, k, weights, outputs);
        for (int r = 0; r < rows; ++r) {
          const std::vector<double> row(x.begin() + r * k, x.begin() + (r + 1) * k);
          for (int n = 0; n < outputs; ++n) {
            ASSERT_NEAR(out[r * outputs + n], Dot(row.data(), weights.data() + n * k, k), 2e-6 * (k + 10))
                << "k=" << k << " outputs=" << outputs << " rows=" << rows << " r=" << r << " n=" << n;
          }
        }
      }
    }
  }
}

TEST_P(IsaTest, MatmulGivesARowTheSameBitsInEveryBatch) {
  for (const auto& [k, outputs] : {std::pair{192, 64}, {64, 192}, {45, 13}}) {
    const std::vector<uint16_t> weights = RandomBf16(static_cast<size_t>(outputs) * k, 3);
    const std::vector<float> row = RandomFloats(k, 4);
    const std::vector<float> alone = Multiply(row, 1, k, weights, outputs);
    for (int rows = 1; rows <= 70; ++rows) {
      for (int parity : {0, 1}) {
        std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * k, 5 + rows);
        for (int at = parity; at < rows; at += 2) std::copy(row.begin(), row.end(), x.begin() + at * k);
        const std::vector<float> out = Multiply(x, rows, k, weights, outputs);
        for (int at = parity; at < rows; at += 2) {
          ASSERT_EQ(std::memcmp(alone.data(), out.data() + at * outputs, outputs * sizeof(float)), 0)
              << "k=" << k << " row " << at << " of " << rows;
        }
      }
    }
  }
}

TEST_P(IsaTest, SoftmaxMatchesReference) {
  for (int n : {1, 2, 3, 15, 16, 17, 32, 64, 100}) {
    std::vector<float> x = RandomFloats(n, n, 5);
    double top = *std::max_element(x.begin(), x.end()), sum = 0;
    std::vector<double> expected;
    for (float v : x) sum += expected.emplace_back(std::exp(v - top));
    for (double& v : expected) v /= sum;
    kernels_->softmax(x.data(), n);
    for (int i = 0; i < n; ++i) ASSERT_NEAR(x[i], expected[i], 4e-6 * expected[i] + 1e-30) << "n=" << n << " i=" << i;
  }
}

TEST_P(IsaTest, SoftmaxOfFarApartValuesIsZeroAndOne) {
  std::vector<float> x = {-1000, 0, -200, std::numeric_limits<float>::lowest()};
  kernels_->softmax(x.data(), 4);
  EXPECT_EQ(x, (std::vector<float>{0, 1, 0, 0}));
}

TEST_P(IsaTest, SwiGluMatchesReferenceInItsWholeRange) {
  for (int width : {1, 15, 16, 17, 31, 32, 33, 64, 70}) {
    std::vector<float> gate = RandomFloats(width, 1, 20), up = RandomFloats(width, 2);
    gate[0] = -100;
    gate[width / 2] = 100;
    std::vector<float> packed(PackedWidth(width), -1);
    kernels_->swiglu_packed(gate.data(), up.data(), 1, width, packed.data());
    std::vector<float> flat(width);
    kernels_->swiglu(gate.data(), up.data(), width, flat.data());
    for (int i = 0; i < static_cast<int>(PackedWidth(width)); ++i) {
      const float got = packed[i / 32 * 32 + i % 2 * 16 + i % 32 / 2];
      const double expected = i < width ? gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * up[i] : 0;
      ASSERT_NEAR(got, expected, 2e-6 * std::abs(expected) + 1e-30) << "width=" << width << " i=" << i;
      if (i < width) {
        ASSERT_EQ(got, flat[i]);
      }
    }
  }
}

TEST_P(IsaTest, RmsNormMatchesReference) {
  for (int n : {1, 3, 16, 17, 64, 192, 257}) {
    const std::vector<float> x = RandomFloats(n, n, 3), weight = RandomFloats(n, n + 1);
    double squares = 0;
    for (float v : x) squares += static_cast<double>(v) * v;
    std::vector<float> out(n);
    kernels_->rms_norm(x.data(), weight.data(), 1e-5f, n, out.data());
    for (int i = 0; i < n; ++i) {
      const double expected = x[i] / std::sqrt(squares / n + 1e-5) * weight[i];
      ASSERT_NEAR(out[i], expected, 1e-6 * std::abs(expected) + 1e-30) << "n=" << n;
    }
  }
}

TEST_P(IsaTest, RotateTurnsPairs) {
  for (int half : {1, 8, 16, 17, 32, 40}) {
    const std::vector<float> start = RandomFloats(2 * half, half);
    std::vector<float> cosine(half), sine(half), x = start;
    for (int i = 0; i < half; ++i) cosine[i] = std::cos(0.1f * i), sine[i] = std::sin(0.1f * i);
    kernels_->rotate(x.data(), cosine.data(), sine.data(), half);
    for (int i = 0; i < half; ++i) {
      ASSERT_NEAR(x[i], start[i] * cosine[i] - start[half + i] * sine[i], 1e-6);
      ASSERT_NEAR(x[half + i], start[half + i] * cosine[i] + start[i] * sine[i], 1e-6);
    }
  }
}

TEST_P(IsaTest, MaximumIgnoresNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int n : {1, 2, 16, 17, 33}) {
    std::vector<float> x(n, nan);
    EXPECT_EQ(kernels_->maximum(x.data(), n), -std::numeric_limits<float>::infinity());
    x[n - 1] = -3;
    EXPECT_EQ(kernels_->maximum(x.data(), n), -3);
    x[0] = 5;
    EXPECT_EQ(kernels_->maximum(x.data(), n), 5);
  }
}

TEST_P(IsaTest, ExpRowIsTheExponentialAndItsSum) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (int n : {1, 15, 16, 17, 100, 1000}) {
    std::vector<float> x = RandomFloats(n, n), out(n);
    for (float& v : x) v *= 20;
    const float top = kernels_->maximum(x.data(), n);
    for (const float divisor : {0.1f, 0.7f, 100.0f}) {
      const float sum = kernels_->exp_row(x.data(), top, divisor, n, out.data());
      double expected_sum = 0;
      for (int i = 0; i < n; ++i) {
        const double expected = std::exp((static_cast<double>(x[i]) - top) / divisor);
        expected_sum += expected;
        ASSERT_NEAR(out[i], expected, 2e-5 * expected + 1e-37) << "n=" << n << " i=" << i;
      }
      EXPECT_NEAR(sum, expected_sum, 2e-5 * expected_sum);
    }
  }
  // The least divisor that there is overflows everything but the largest.
  const std::vector<float> odd = {nan, 3, -inf, 2, nan};
  std::vector<float> out(5);
  EXPECT_EQ(kernels_->exp_row(odd.data(), 3, std::numeric_limits<float>::denorm_min(), 5, out.data()), 1);
  EXPECT_EQ(out, (std::vector<float>{0, 1, 0, 0, 0}));
  EXPECT_EQ(kernels_->exp_row(odd.data(), nan, 1, 5, out.data()), 0);
}

INSTANTIATE_TEST_SUITE_P(All, IsaTest, testing::ValuesIn(Available()), [](const auto& info) {
  return std::string(info.param == Isa::kBaseline ? "Baseline" : info.param == Isa::kAvx2 ? "Avx2" : "Avx512");
});

// What the fingerprint promises.
TEST(IsaEqualityTest, Avx2AndAvx512ComputeTheSameBits) {
  const IsaKernels* narrow = KernelsFor(Isa::kAvx2);
  const IsaKernels* wide = KernelsFor(Isa::kAvx512);
  if (narrow == nullptr || wide == nullptr) return;  // nothing to be equal to
  const int k = 200, outputs = 21, rows = 7;
  const std::vector<float> x = RandomFloats(rows * k, 1);
  const std::vector<uint16_t> weights = RandomBf16(outputs * k, 2);
  std::vector<const float*> row(rows);
  for (int r = 0; r < rows; ++r) row[r] = x.data() + r * k;
  std::vector<std::vector<float>> results[2];
  for (int i = 0; i < 2; ++i) {
    const IsaKernels& kernels = i == 0 ? *narrow : *wide;
    std::vector<float> packed(rows * PackedWidth(k)), out(rows * outputs), soft(x.begin(), x.begin() + k);
    std::vector<float> inner(PackedWidth(k)), normed(k);
    kernels.pack_rows(row.data(), rows, k, packed.data());
    kernels.matmul(packed.data(), rows, k, weights.data(), outputs, out.data(), outputs);
    kernels.softmax(soft.data(), k);
    kernels.swiglu_packed(x.data(), x.data() + k, 1, k, inner.data());
    kernels.rms_norm(x.data(), x.data() + k, 1e-6f, k, normed.data());
    std::vector<float> exponentials(k + 1);
    exponentials[k] = kernels.exp_row(x.data(), 1, 0.7f, k, exponentials.data());
    results[i] = {packed, out, soft, inner, normed, exponentials};
  }
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_EQ(std::memcmp(results[0][i].data(), results[1][i].data(), results[0][i].size() * sizeof(float)), 0) << i;
  }
}

TEST(FingerprintTest, NamesTheArithmetic) {
  EXPECT_EQ(KernelFingerprint(), Kernels().fused_multiply_add ? "cpu-r1-fma" : "cpu-r1-unfused");
}

}  // namespace
}  // namespace ballast::internal
