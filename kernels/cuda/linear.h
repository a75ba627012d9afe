// A decoder's projections on a GPU: cuBLASLt's products.
#ifndef BALLAST_KERNELS_CUDA_LINEAR_H_
#define BALLAST_KERNELS_CUDA_LINEAR_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ballast {

// out[r] = W x[r] by libcublasLt.so.13, which is opened at the first Create and never closed. Products of bf16 summed
// in float32; equal inputs give equal bits, but a row's bits depend on how many others there are. One thread; calls are
// of one stream. Which of the library's kernels is used is asked for once for each (rows, inputs, outputs).
//
// Roofline: the weights' 2 inputs outputs bytes over read bandwidth, or 2 rows inputs outputs flops over the tensor
// cores' rate.
class CudaLinear {
 public:
  // NotFound: no such library on this machine, with what the loader said; what the library and CudaStatus say.
  static absl::StatusOr<std::unique_ptr<CudaLinear>> Create();
  ~CudaLinear();
  CudaLinear(const CudaLinear&) = delete;
  CudaLinear& operator=(const CudaLinear&) = delete;

  // x [rows][inputs] bf16, weights [outputs][inputs] bf16, out [rows][outputs] f32, all device memory, 16-byte aligned;
  // inputs a multiple of 8. Enqueued on the stream, may be captured. Errors: InvalidArgument, naming field,
  // value and limit; what the library says.
  absl::Status Product(const void* x, const void* weights, int rows, int inputs, int outputs, float* out,
                       cudaStream_t stream);

  // Of the library, as it says: 130100 for 13.1.0.
  size_t version() const;

 private:
  struct Impl;
  explicit CudaLinear(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_LINEAR_H_
