// How the balancedness of steps is counted: the buckets in which workers report it and the controller shows it.
#ifndef BALLAST_PROTO_PLACEMENT_BALANCEDNESS_H_
#define BALLAST_PROTO_PLACEMENT_BALANCEDNESS_H_

#include <algorithm>
#include <array>
#include <cstddef>

namespace ballast {

// Upper bounds, ascending; there is one more bucket, for what lies above them all. Part of the protocol
// (ballast.v1.StepBalance): a change needs a field of its own.
inline constexpr std::array<double, 14> kStepBalancednessBounds = {0.1, 0.2,  0.3, 0.4,  0.5,  0.6,  0.7,
                                                                   0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1};

// The bucket of a value: the first whose bound is not below it.
inline size_t StepBalancednessBucket(double balancedness) {
  return static_cast<size_t>(
      std::lower_bound(kStepBalancednessBounds.begin(), kStepBalancednessBounds.end(), balancedness) -
      kStepBalancednessBounds.begin());
}

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_BALANCEDNESS_H_
