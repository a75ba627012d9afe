#include "proto/placement/resample.h"

#include <cmath>
#include <numbers>
#include <numeric>

namespace ballast {

std::vector<int32_t> Resample(std::span<const double> weights, int32_t count, double offset) {
  std::vector<int32_t> out;
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (sum <= 0 || count <= 0) return out;
  out.reserve(count);
  double below = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    below += weights[i];
    while (static_cast<int32_t>(out.size()) < count &&
           (static_cast<double>(out.size()) + offset) * sum < below * static_cast<double>(count)) {
      out.push_back(static_cast<int32_t>(i));
    }
  }
  // Rounding may leave the last mark behind the last weight.
  int32_t last = static_cast<int32_t>(weights.size()) - 1;
  while (weights[last] <= 0) --last;
  while (static_cast<int32_t>(out.size()) < count) out.push_back(last);
  return out;
}

double SpreadOffset(uint64_t n) {
  // Large n would lose their fraction's bits.
  const double turns = static_cast<double>(n % (uint64_t{1} << 24)) * (std::numbers::phi - 1);
  return turns - std::floor(turns);
}

}  // namespace ballast
