// What a step's rows chose, counted on the GPU; and the routes of some rows.
#ifndef BALLAST_WORKER_MOE_COUNT_ROUTES_KERNEL_H_
#define BALLAST_WORKER_MOE_COUNT_ROUTES_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast {

// All layers of a step, of one rank. All pointers are device memory.
struct StepRoutes {
  int layers = 0;
  int rows = 0;
  int top_k = 0;
  // [layers][layer_stride], a layer's first [rows][top_k].
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  size_t layer_stride = 0;
};

// `cells` [rows]: what a row counts as, below 0: nothing. `tokens` and `gate_mass` [cells][layers][experts] grow by 1
// and by the weight in units of 2^-32, rounded to the nearest, for each choice: sums of integers, the same in any
// order. Enqueued. Roofline: latency; two atomic additions in L2 a pair.
cudaError_t LaunchCountRoutes(const StepRoutes& routes, int experts, const int32_t* cells, uint64_t* tokens,
                              uint64_t* gate_mass, cudaStream_t stream);

// out [wanted][layers][top_k] = the ids of the `wanted` rows named by `rows`. Both may be pinned memory of the host.
cudaError_t LaunchGatherRoutes(const StepRoutes& routes, const int32_t* rows, int wanted, int32_t* out,
                               cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_COUNT_ROUTES_KERNEL_H_
