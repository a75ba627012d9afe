#include <cuda_bf16.h>

#include "worker/transport/nccl/test_experts.h"

namespace ballast {
namespace {

__global__ void TestExpertsKernel(const __nv_bfloat16* x, const int32_t* begin, const int32_t* order,
                                  const int32_t* groups, int num_groups, int top_k, int hidden,
                                  __nv_bfloat16* outputs) {
  for (int row = blockIdx.x; row < begin[num_groups]; row += gridDim.x) {
    const int pair = order[row];
    const float factor = static_cast<float>(1 + groups[pair]);
    for (int d = threadIdx.x; d < hidden; d += blockDim.x) {
      const float v = __bfloat162float(x[static_cast<size_t>(pair / top_k) * hidden + d]);
      outputs[static_cast<size_t>(row) * hidden + d] = __float2bfloat16_rn(factor * v);
    }
  }
}

}  // namespace

cudaError_t RunTestExperts(const void* x, const int32_t* begin, const int32_t* order, const int32_t* groups,
                           int num_groups, int top_k, int hidden, void* outputs, cudaStream_t stream) {
  TestExpertsKernel<<<256, 256, 0, stream>>>(static_cast<const __nv_bfloat16*>(x), begin, order, groups, num_groups,
                                             top_k, hidden, static_cast<__nv_bfloat16*>(outputs));
  return cudaGetLastError();
}

}  // namespace ballast
