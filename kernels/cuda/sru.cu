#include <cuda_bf16.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/sru_kernel.h"

namespace ballast::internal {
namespace {

constexpr int kThreads = 128;
// Units of a thread.
constexpr int kUnits = 2;
// Steps whose loads are in flight at once: they do not depend on the state.
constexpr int kAhead = 8;

__device__ float Sigmoid(float v) { return __fdividef(1.0f, 1.0f + __expf(-v)); }

__device__ float2 Floats(uint32_t v) { return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v)); }

// Gate `block` of `unit`, of the words of kUnits units.
template <int kBlocks>
__device__ float Gate(const uint32_t (&words)[kBlocks], int unit, int block) {
  const int at = unit * kBlocks + block;
  const float2 v = Floats(words[at / 2]);
  return at % 2 == 0 ? v.x : v.y;
}

template <int kBlocks>
__global__ void __launch_bounds__(kThreads) SruKernel(const __grid_constant__ SruArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  // kUnits neighbouring units of one sequence.
  const size_t thread = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  const size_t pairs = static_cast<size_t>(args.batch) * args.width / kUnits;
  if (thread >= pairs) return;
  const size_t sequence = thread / (args.width / kUnits);
  const int unit = static_cast<int>(thread % (args.width / kUnits)) * kUnits;
  const auto* gates = static_cast<const uint32_t*>(args.gates) + thread * kBlocks;
  const auto* x = static_cast<const uint32_t*>(args.x) + thread;
  auto* out = static_cast<__nv_bfloat16*>(args.out) + sequence * args.out_stride + unit;
  float state[kUnits], forget_weight[kUnits], reset_weight[kUnits], forget_bias[kUnits], reset_bias[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    state[i] = args.start != nullptr ? args.start[thread * kUnits + i] : 0;
    forget_weight[i] = args.forget_weight[unit + i];
    reset_weight[i] = args.reset_weight[unit + i];
    forget_bias[i] = args.forget_bias[unit + i];
    reset_bias[i] = args.reset_bias[unit + i];
  }
  for (int first = 0; first < args.steps; first += kAhead) {
    uint32_t words[kAhead][kBlocks], inputs[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int t = args.backward ? args.steps - 1 - first - i : first + i;
      const bool inside = first + i < args.steps;
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) words[i][j] = inside ? __ldcs(gates + t * pairs * kBlocks + j) : 0;
      inputs[i] = inside && kBlocks == 3 && args.x != nullptr ? __ldcs(x + t * pairs) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= args.steps) break;
      const size_t t = args.backward ? args.steps - 1 - first - i : first + i;
      const float2 input = Floats(inputs[i]);
      float h[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        // Both gates see the state before this step.
        const float forget = Sigmoid(Gate(words[i], u, 1) + forget_weight[u] * state[u] + forget_bias[u]);
        const float reset = Sigmoid(Gate(words[i], u, 2) + reset_weight[u] * state[u] + reset_bias[u]);
        const float candidate = Gate(words[i], u, 0);
        state[u] = candidate + forget * (state[u] - candidate);
        const float highway =
            kBlocks == 4 ? Gate(words[i], u, kBlocks - 1) : args.x_scale * (u == 0 ? input.x : input.y);
        h[u] = highway + reset * ((args.tanh ? tanhf(state[u]) : state[u]) - highway);
      }
      *reinterpret_cast<__nv_bfloat162*>(out + t * args.batch * args.out_stride) = __floats2bfloat162_rn(h[0], h[1]);
    }
  }
  if (args.end != nullptr) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) args.end[thread * kUnits + i] = state[i];
  }
}

}  // namespace

cudaError_t LaunchSru(const SruArgs& args, cudaStream_t stream) {
  const size_t pairs = static_cast<size_t>(args.batch) * args.width / kUnits;
  const dim3 grid(static_cast<unsigned>((pairs + kThreads - 1) / kThreads));
  return args.gate_blocks == 3 ? Launch(SruKernel<3>, {grid, kThreads}, stream, args)
                               : Launch(SruKernel<4>, {grid, kThreads}, stream, args);
}

}  // namespace ballast::internal
