// The routing rule, and what the host's half of the router kernels (router.cc) tells its device half (router.cu, and
// router_many.cu for many tokens).
#ifndef BALLAST_KERNELS_CUDA_ROUTER_KERNEL_H_
#define BALLAST_KERNELS_CUDA_ROUTER_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/tokens_kernel.h"

namespace ballast {

enum class RouterScore {
  // Softmax over all experts (OLMoE, Qwen3-MoE, Mixtral, Switch).
  kSoftmax,
  // Sigmoid of each logit (DeepSeek-V3).
  kSigmoid,
};

// Scores over all experts, then the top_k highest. DeepSeek-V3 (2024, section 2.1.2): a bias is added to choose by, not
// to weigh by; experts come in groups of neighbours, a group's score is the sum of its two best biased scores, and only
// the top_groups best groups are chosen from.
struct CudaRouterRule {
  RouterScore score = RouterScore::kSoftmax;
  // At most 512.
  int num_experts = 0;
  // 1 <= top_k <= min(num_experts, 32).
  int top_k = 0;
  // Whether the weights are divided by their sum.
  bool renormalize = false;
  // Weights are multiplied by it at last.
  float scale = 1;
  // 1: no groups. Else 2, 4, 8, 16 or 32, with kSigmoid and num_experts of 64, 128, 256 or 512, and at least two
  // experts a group; top_k experts have to be in top_groups groups.
  int num_groups = 1;
  int top_groups = 1;
};

namespace internal {

struct RouterArgs {
  CudaRouterRule rule;
  const void* hidden;
  const void* router_weights;
  const float* bias;
  const int32_t* task;
  // [parts][T][E], of the kernels for few tokens.
  float* logits;
  int num_tokens;
  int hidden_size;
  int num_tasks;
  int32_t* ids;
  float* weights;
  uint64_t* counts;
  uint64_t* gate_mass;
  // One part of the hidden size.
  bool row_invariant;
};

// Parts of the hidden size whose logits are summed apart by the kernels for few tokens.
inline constexpr int kMaxRouterParts = 16;

// Routes up to kFewTokens tokens: two kernels, that need `logits`.
inline constexpr int kFewTokens = 128;
cudaError_t LaunchRouteFew(const RouterArgs& args, cudaStream_t stream);

// Routes any number of tokens by one kernel, and groups their pairs by it and a second one where group.num_groups is
// not 0: group.tile_counts is [MostRouteBlocks(num_tokens)][num_groups].
int MostRouteBlocks(int max_tokens);
cudaError_t LaunchRouteMany(const RouterArgs& args, const GroupKernelArgs& group, cudaStream_t stream);

// Up to this many tokens are routed and their pairs grouped by one kernel, which needs `logits`. `done`, a counter, is
// 0 before and after.
inline constexpr int kFewRoutedTokens = 8;
cudaError_t LaunchRouteAndGroupFew(const RouterArgs& args, const GroupKernelArgs& group, uint32_t* done,
                                   cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_ROUTER_KERNEL_H_
