#include <nccl_device.h>

#include "worker/transport/nccl/window_kernel.h"

namespace ballast::internal {
namespace {

__global__ void ResolveWindowKernel(ncclWindow_t window, int ranks, std::byte** out) {
  for (int r = threadIdx.x; r < ranks; r += blockDim.x) {
    out[r] = static_cast<std::byte*>(ncclGetPeerPointer(window, 0, r));
  }
}

}  // namespace

cudaError_t LaunchResolveWindow(ncclWindow_t window, int ranks, std::byte** out, cudaStream_t stream) {
  ResolveWindowKernel<<<1, 32, 0, stream>>>(window, ranks, out);
  return cudaGetLastError();
}

}  // namespace ballast::internal
