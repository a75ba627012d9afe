// Launching kernels that call WaitForPreviousKernel().
#ifndef BALLAST_KERNELS_CUDA_LAUNCH_H_
#define BALLAST_KERNELS_CUDA_LAUNCH_H_

#include <cuda_runtime.h>

#include <utility>

namespace ballast::internal {

// Programmatic dependent launch: before WaitForPreviousKernel() a kernel may only touch what no kernel before it in the
// stream writes. Every kernel of this folder calls it, on every path. (Before compute capability 9.0 both calls do
// nothing, and kernels run one after another.)
__device__ inline void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The kernel after in the stream may be launched once all blocks have called this or ended.
__device__ inline void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Allows `kernel` the dynamic shared memory of its largest launch; 48 KiB need no leave.
template <typename Kernel>
cudaError_t AllowSharedMemory(Kernel* kernel, size_t bytes) {
  return bytes <= 48 * 1024
             ? cudaSuccess
             : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <typename... Parameters, typename... Args>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, bool cooperative,
                   cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cooperative ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_LAUNCH_H_
