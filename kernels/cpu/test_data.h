// Random inputs and plain double-precision references for the kernels' tests and benchmarks.
#ifndef BALLAST_KERNELS_CPU_TEST_DATA_H_
#define BALLAST_KERNELS_CPU_TEST_DATA_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

namespace ballast::internal {

inline uint16_t ToBf16(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float FromBf16(uint16_t v) {
  const uint32_t bits = uint32_t{v} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline std::vector<float> RandomFloats(size_t n, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}
inline std::vector<uint16_t> RandomBf16(size_t n, uint32_t seed, float scale = 1) {
  std::vector<uint16_t> out;
  out.reserve(n);
  for (float v : RandomFloats(n, seed, scale)) out.push_back(ToBf16(v));
  return out;
}

// sum over k of x[k] * weights[row][k].
inline double Dot(const double* x, const uint16_t* weights, int k) {
  double sum = 0;
  for (int i = 0; i < k; ++i) sum += x[i] * FromBf16(weights[i]);
  return sum;
}

// One row through one expert in slot layout.
inline std::vector<double> ExpertReference(const float* row, const uint16_t* weights, int hidden, int intermediate) {
  const std::vector<double> x(row, row + hidden);
  const size_t matrix = static_cast<size_t>(hidden) * intermediate;
  std::vector<double> inner(intermediate), out(hidden);
  for (int i = 0; i < intermediate; ++i) {
    const double gate = Dot(x.data(), weights + static_cast<size_t>(i) * hidden, hidden);
    const double up = Dot(x.data(), weights + matrix + static_cast<size_t>(i) * hidden, hidden);
    inner[i] = gate / (1 + std::exp(-gate)) * up;
  }
  for (int h = 0; h < hidden; ++h) {
    out[h] = Dot(inner.data(), weights + 2 * matrix + static_cast<size_t>(h) * intermediate, intermediate);
  }
  return out;
}

// |a - b| / |b| in the Euclidean norm.
template <typename A, typename B>
double RelativeError(std::span<const A> a, std::span<const B> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CPU_TEST_DATA_H_
