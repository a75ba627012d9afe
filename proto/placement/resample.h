// Samples that stand for more than themselves, thinned out.
#ifndef BALLAST_PROTO_PLACEMENT_RESAMPLE_H_
#define BALLAST_PROTO_PLACEMENT_RESAMPLE_H_

#include <cstdint>
#include <span>
#include <vector>

namespace ballast {

// `count` indices of `weights`, ascending, such that index i is there floor or ceil of count * weights[i] / sum times:
// systematic sampling, its first mark at the part `offset` (in [0, 1)) of the distance between marks. Over offsets that
// are spread evenly each index is there count * weights[i] / sum times on average. What is left stands for the sum in
// equal parts. Weights are at least 0 and finite; empty where their sum is 0 or `count` is.
std::vector<int32_t> Resample(std::span<const double> weights, int32_t count, double offset);

// Offsets spread evenly over [0, 1) for n = 0, 1, 2, ...: the fractional parts of n times the golden ratio.
double SpreadOffset(uint64_t n);

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_RESAMPLE_H_
