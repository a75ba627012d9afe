// How long data stays in L2.
#ifndef BALLAST_KERNELS_CUDA_CACHE_POLICY_H_
#define BALLAST_KERNELS_CUDA_CACHE_POLICY_H_

#include <cstdint>

namespace ballast::internal {

// What is read once, so that it takes the place of nothing that is read again: createpolicy.fractional.L2::evict_first
// of all of it, encoded as CUTLASS has it (TMA::CacheHintSm90::EVICT_FIRST).
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000;

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_CACHE_POLICY_H_
