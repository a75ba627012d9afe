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

struct LaunchShape {
  dim3 grid;
  int threads = 0;
  size_t shared_bytes = 0;
  // Blocks of a cluster.
  int cluster = 1;
  // All blocks run at once, or the launch fails.
  bool cooperative = false;
};

template <typename... Parameters, typename... Args>
cudaError_t Launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attributes[3] = {};
  int count = 0;
  attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  if (shape.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_LAUNCH_H_
