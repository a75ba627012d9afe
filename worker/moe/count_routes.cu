#include "worker/moe/count_routes_kernel.h"

namespace ballast {
namespace {

constexpr int kThreads = 256;

__global__ void CountKernel(const StepRoutes routes, int experts, const int32_t* cells, uint64_t* tokens,
                            uint64_t* gate_mass) {
  const int layer = static_cast<int>(blockIdx.y), pair = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
  if (pair >= routes.rows * routes.top_k) return;
  const int cell = cells[pair / routes.top_k];
  if (cell < 0) return;
  const size_t from = layer * routes.layer_stride + pair;
  // Of a row whose logits are not numbers, which ends its request: nothing to go by.
  if (!isfinite(routes.weights[from])) return;
  const size_t at = (static_cast<size_t>(cell) * routes.layers + layer) * experts + routes.ids[from];
  atomicAdd(reinterpret_cast<unsigned long long*>(tokens + at), 1ull);
  atomicAdd(reinterpret_cast<unsigned long long*>(gate_mass + at),
            __double2ull_rn(static_cast<double>(routes.weights[from]) * 4294967296.0));
}

__global__ void GatherKernel(const StepRoutes routes, const int32_t* rows, int32_t* out) {
  const int of_row = routes.layers * routes.top_k, row = rows[blockIdx.x];
  for (int i = threadIdx.x; i < of_row; i += kThreads) {
    const int layer = i / routes.top_k, k = i % routes.top_k;
    out[static_cast<size_t>(blockIdx.x) * of_row + i] =
        routes.ids[layer * routes.layer_stride + static_cast<size_t>(row) * routes.top_k + k];
  }
}

}  // namespace

cudaError_t LaunchCountRoutes(const StepRoutes& routes, int experts, const int32_t* cells, uint64_t* tokens,
                              uint64_t* gate_mass, cudaStream_t stream) {
  if (routes.rows == 0) return cudaSuccess;
  const dim3 grid((routes.rows * routes.top_k + kThreads - 1) / kThreads, routes.layers);
  CountKernel<<<grid, kThreads, 0, stream>>>(routes, experts, cells, tokens, gate_mass);
  return cudaGetLastError();
}

cudaError_t LaunchGatherRoutes(const StepRoutes& routes, const int32_t* rows, int wanted, int32_t* out,
                               cudaStream_t stream) {
  if (wanted == 0) return cudaSuccess;
  GatherKernel<<<wanted, kThreads, 0, stream>>>(routes, rows, out);
  return cudaGetLastError();
}

}  // namespace ballast
