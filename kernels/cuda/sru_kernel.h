// What the host's half of the SRU kernel (sru.cc) tells its device half (sru.cu).
#ifndef BALLAST_KERNELS_CUDA_SRU_KERNEL_H_
#define BALLAST_KERNELS_CUDA_SRU_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast {

// A layer's recurrence over T = steps steps of B = batch sequences, d = width units, in one direction. All pointers are
// device memory, those to bf16 on 16 bytes.
struct SruArgs {
  int steps = 0;
  int batch = 0;
  // A multiple of 2.
  int width = 0;
  // [T][B][d][gate_blocks] bf16, the products W x_t: the candidate, the forget gate, the reset gate, and with
  // gate_blocks = 4 the highway's own, else 3.
  const void* gates = nullptr;
  int gate_blocks = 3;
  // [T][B][d] bf16, what the highway adds with 3 blocks, times x_scale; nullptr: nothing.
  const void* x = nullptr;
  float x_scale = 1;
  // [d]
  const float* forget_weight = nullptr;
  const float* reset_weight = nullptr;
  const float* forget_bias = nullptr;
  const float* reset_bias = nullptr;
  // [B][d], the state before the first step; nullptr: zeros.
  const float* start = nullptr;
  // Whether the state goes through tanh on its way out.
  bool tanh = false;
  // From the last step to the first (the second half of a layer that goes both ways).
  bool backward = false;
  // Out: row (t, b), d bf16, begins at out + (t B + b) out_stride elements, out_stride even.
  void* out = nullptr;
  size_t out_stride = 0;
  // [B][d], out, the state after the last step; nullptr: not wanted. May be `start`.
  float* end = nullptr;
};

namespace internal {

cudaError_t LaunchSru(const SruArgs& args, cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_SRU_KERNEL_H_
