// Which experts a token goes to, by the model's own rule, and the counts of it, on a GPU.
#ifndef BALLAST_KERNELS_CUDA_ROUTER_H_
#define BALLAST_KERNELS_CUDA_ROUTER_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/router_kernel.h"
#include "kernels/cuda/tokens.h"

namespace ballast {

// All pointers are device memory. T = num_tokens, H = hidden_size, E = rule.num_experts, k = rule.top_k.
struct RouteTokensArgs {
  CudaRouterRule rule;
  // [T][H] bf16, already normed; [E][H] bf16; both 16-byte aligned, H a multiple of 8.
  const void* hidden = nullptr;
  const void* router_weights = nullptr;
  // [E], with kSigmoid, added to the scores to choose by; nullptr: zeros.
  const float* bias = nullptr;
  int num_tokens = 0;
  int hidden_size = 0;
  // [T][k], out, by falling logit (with kSigmoid, biased score); ties: the lower id first.
  int32_t* ids = nullptr;
  float* weights = nullptr;

  // What the choices are counted by: [T], in [0, num_tasks); nullptr: all 0.
  const int32_t* task = nullptr;
  int num_tasks = 1;
  // [num_tasks][E]. `counts` grows by 1 and `gate_mass` by the weight, in units of 2^-32 rounded to the nearest, for
  // each choice: sums of integers, the same in any order. nullptr: not counted.
  uint64_t* counts = nullptr;
  uint64_t* gate_mass = nullptr;
  // A token's bits depend on its own row and the weights alone, for `exact`; slower for few tokens.
  bool row_invariant = false;
};

// Bytes of workspace for up to `max_tokens` tokens: partial logits of few tokens.
size_t RouteTokensWorkspaceBytes(const CudaRouterRule& rule, int max_tokens);

// Routes the tokens and counts their choices. Enqueued on the stream, may be captured; two kernels for up to 128
// tokens, else one. Logits are products of bf16 summed in float32, in parts of H whose number depends on T
// (row_invariant: one part): equal inputs give equal bits, but a token's bits depend on how many others there are.
// Reads router_weights before the kernel in front of it on the stream has ended: no kernel writes them.
//
// Roofline: 2 T E H flops against 2 E H bytes of weights and 2 T H of tokens; bound by latency (about 5 us) until E H T
// fills the chip's tensor cores.
//
// Errors: InvalidArgument, naming field, value and limit; what the launch says.
absl::Status RouteTokens(const RouteTokensArgs& args, void* workspace, cudaStream_t stream);

// Bytes of workspace of RouteAndGroup for up to `max_tokens` tokens: zeroed once by the owner, then the kernels' own;
// 256-byte aligned. The calls that share one have to be of one stream.
size_t RouteAndGroupWorkspaceBytes(const CudaRouterRule& rule, int max_tokens, int num_groups);

// RouteTokens, then GroupPairs of its choices: group.ids is route.ids, all of them. One kernel for up to 8 tokens, but
// for row_invariant; two for more than 128. Errors: as both.
absl::Status RouteAndGroup(const RouteTokensArgs& route, const GroupPairsArgs& group, void* workspace,
                           cudaStream_t stream);

// InvalidArgument for a rule that the kernels do not serve; names field, value and limit.
absl::Status CheckRouterRule(const CudaRouterRule& rule);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_ROUTER_H_
