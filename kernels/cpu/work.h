#ifndef BALLAST_KERNELS_CPU_WORK_H_
#define BALLAST_KERNELS_CPU_WORK_H_

#include <algorithm>

#include "kernels/cpu/thread_pool.h"

namespace ballast::internal {

// Whether work of that size pays for waking the pool's helpers (some 10 us): more than about 40 us on one thread, by a
// rough 60 Gflop/s and 20 GB/s. Speed alone depends on it, never a result.
inline bool WorthWaking(const ThreadPool& pool, double flops, double bytes) {
  return pool.threads() > 1 && std::max(flops / 60e9, bytes / 20e9) > 40e-6;
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CPU_WORK_H_
