#include <cstdint>

#include "worker/moe/expand_kernel.h"

namespace ballast {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 8;  // of a thread: 16 bytes

__global__ void __launch_bounds__(kThreads) ExpandKernel(const uint4* rows, int copies, int vectors, uint4* out) {
  const uint4* const from = rows + static_cast<size_t>(blockIdx.x / copies) * vectors;
  uint4* const to = out + static_cast<size_t>(blockIdx.x) * vectors;
  for (int c = threadIdx.x; c < vectors; c += kThreads) to[c] = from[c];
}

}  // namespace

cudaError_t LaunchExpandRows(const void* rows, int num_rows, int copies, int hidden_size, void* out,
                             cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  ExpandKernel<<<num_rows * copies, kThreads, 0, stream>>>(static_cast<const uint4*>(rows), copies,
                                                           hidden_size / kColumns, static_cast<uint4*>(out));
  return cudaGetLastError();
}

}  // namespace ballast
