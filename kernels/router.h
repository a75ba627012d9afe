// Which experts a token goes to, by the model's own rule.
#ifndef BALLAST_KERNELS_ROUTER_H_
#define BALLAST_KERNELS_ROUTER_H_

#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace ballast {

// Softmax over all experts' logits, then the top_k most probable.
//
//   OLMoE      renormalize = norm_topk_prob (false in the published models): the weights are the plain probabilities
//   Qwen3-MoE  renormalize = norm_topk_prob (true in the published models): the weights are divided by their sum
//   Mixtral    renormalize = true: equal to its softmax over the top-k logits
struct RouterRule {
  int num_experts = 0;
  // 1 <= top_k <= num_experts.
  int top_k = 0;
  bool renormalize = false;
};

// Routes `num_tokens` tokens of `hidden_size` H; T = num_tokens, E = rule.num_experts, k = rule.top_k.
//   hidden  [T][H] f32, already normed       router_weights  [E][H] bf16
//   logits  [T][E] f32, out                  ids, weights    [T][k], out, by falling probability; ties: the lower id
//   first
//
// Row-invariant: a token's outputs depend on its hidden row and the weights alone, bit for bit (see cpu/matmul.h).
// Roofline: 2*T*E*H flops over the E*H*2 bytes of the weights; with E*H of a few 10^4 both sit in L1/L2 and it is
// bound by FMA throughput from about 4 tokens on, by L2 bandwidth below.
void RouteTokens(const RouterRule& rule, const float* hidden, const uint16_t* router_weights, int num_tokens,
                 int hidden_size, float* logits, int32_t* ids, float* weights, ThreadPool& pool);

}  // namespace ballast

#endif  // BALLAST_KERNELS_ROUTER_H_
