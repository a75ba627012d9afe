// Tokens' experts, chosen by their logits by a warp.
#ifndef BALLAST_KERNELS_CUDA_ROUTER_SELECT_H_
#define BALLAST_KERNELS_CUDA_ROUTER_SELECT_H_

#include <cstdint>

#include "kernels/cuda/router_kernel.h"

namespace ballast::internal {

// Order of floats as order of integers.
__device__ inline uint32_t Ordered(float f) {
  const uint32_t u = __float_as_uint(f);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float FromOrdered(uint32_t u) { return __uint_as_float(u ^ (u >> 31 ? 0x80000000u : 0xffffffffu)); }

// Adds choices to counts and gate mass in global memory, where they are kept.
struct GlobalTally {
  __device__ explicit GlobalTally(const RouterArgs& args) : counts(args.counts), gate_mass(args.gate_mass) {}
  __device__ void Add(int cell, float weight) const {
    if (counts != nullptr) atomicAdd(reinterpret_cast<unsigned long long*>(counts) + cell, 1ull);
    if (gate_mass != nullptr) atomicAdd(reinterpret_cast<unsigned long long*>(gate_mass) + cell, Mass(weight));
  }
  __device__ static unsigned long long Mass(float weight) { return __float2ull_rn(weight * 4294967296.0f); }

  uint64_t* counts;
  uint64_t* gate_mass;
};

// Chooses the experts of kCount tokens, first_token and each `stride` further that is below `end`, by their logits,
// kOwn neighbours' in each lane; the work on one fills the waits of the others. `tally` gets each choice's cell, of
// [num_tasks][E], and weight. ids[u] of lane j becomes choice j of the u-th token. Ties: the lower id first.
template <int kOwn, int kCount, class Tally>
__device__ __forceinline__ void SelectTokens(const RouterArgs& args, float (&scores)[kCount][kOwn], int first_token,
                                             int stride, int end, const Tally& tally, int (&ids)[kCount]) {
  const CudaRouterRule& rule = args.rule;
  const int lane = threadIdx.x % 32, experts = rule.num_experts;
  const float kNone = -__int_as_float(0x7f800000);
  const bool softmax = rule.score == RouterScore::kSoftmax;
  // What is chosen by, logits or biased scores, as integers of the same order; 0: never. (Experts' are not 0, whatever
  // their logits are.)
  uint32_t keys[kCount][kOwn];
  const auto key_of = [](float score) { return max(Ordered(score), 1u); };
  // Of a softmax.
  float most[kCount], sum[kCount];
  if (softmax) {
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      uint32_t own = 0;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        keys[u][i] = lane * kOwn + i < experts ? key_of(scores[u][i]) : 0;
        own = max(own, keys[u][i]);
      }
      most[u] = FromOrdered(__reduce_max_sync(~0u, own));
      sum[u] = 0;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (lane * kOwn + i < experts) sum[u] += expf(scores[u][i] - most[u]);
      }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) sum[u] += __shfl_xor_sync(~0u, sum[u], distance);
    }
  } else {
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      float chosen_by[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int expert = lane * kOwn + i;
        scores[u][i] = 1 / (1 + expf(-scores[u][i]));
        chosen_by[i] = expert < experts ? scores[u][i] + (args.bias != nullptr ? args.bias[expert] : 0) : kNone;
        keys[u][i] = expert < experts ? key_of(chosen_by[i]) : 0;
      }
      if (rule.num_groups > 1) {
        // The group's lanes are neighbours, too.
        const int group_lanes = 32 / rule.num_groups;
        float first = kNone, second = kNone;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          second = fmaxf(second, fminf(first, chosen_by[i]));
          first = fmaxf(first, chosen_by[i]);
        }
        for (int distance = 1; distance < group_lanes; distance *= 2) {
          const float other_first = __shfl_xor_sync(~0u, first, distance);
          const float other_second = __shfl_xor_sync(~0u, second, distance);
          second = fmaxf(fmaxf(second, other_second), fminf(first, other_first));
          first = fmaxf(first, other_first);
        }
        const float score = first + second;
        int better = 0;
        for (int g = 0; g < rule.num_groups; ++g) {
          const float other = __shfl_sync(~0u, score, g * group_lanes);
          better += other > score || (other == score && g < lane / group_lanes);
        }
        if (better >= rule.top_groups) {
#pragma unroll
          for (int i = 0; i < kOwn; ++i) keys[u][i] = 0;
        }
      }
    }
  }
  uint32_t chosen[kCount];
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    ids[u] = 0;
    chosen[u] = 0;
  }
  for (int j = 0; j < rule.top_k; ++j) {
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      uint32_t own = keys[u][0];
      int at = 0;
#pragma unroll
      for (int i = 1; i < kOwn; ++i) {
        if (keys[u][i] > own) {
          own = keys[u][i];
          at = i;
        }
      }
      const uint32_t best = __reduce_max_sync(~0u, own);
      const int winner = __ffs(__ballot_sync(~0u, own == best)) - 1;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (lane == winner && i == at) keys[u][i] = 0;
      }
      const int id = __shfl_sync(~0u, lane * kOwn + at, winner);
      if (lane == j) {
        ids[u] = id;
        chosen[u] = best;
      }
    }
  }
  float weights[kCount];
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    if (softmax) {
      weights[u] = lane < rule.top_k ? expf(FromOrdered(chosen[u]) - most[u]) / sum[u] : 0;
    } else {
      // The bias does not count.
      weights[u] = 0;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const float score = __shfl_sync(~0u, scores[u][i], ids[u] / kOwn);
        if (ids[u] % kOwn == i) weights[u] = score;
      }
    }
  }
  if (rule.renormalize) {
    float total[kCount] = {};  // in the order of choices
    for (int j = 0; j < rule.top_k; ++j) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) total[u] += __shfl_sync(~0u, weights[u], j);
    }
    // Sigmoids can all be 0.
#pragma unroll
    for (int u = 0; u < kCount; ++u) weights[u] /= softmax ? total[u] : total[u] + 1e-20f;
  }
  if (lane >= rule.top_k) return;
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    const int token = first_token + u * stride;
    if (token >= end) break;
    const float weight = weights[u] * rule.scale;
    const size_t at = static_cast<size_t>(token) * rule.top_k + lane;
    args.ids[at] = ids[u];
    args.weights[at] = weight;
    tally.Add((args.task != nullptr ? args.task[token] : 0) * experts + ids[u], weight);
  }
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_ROUTER_SELECT_H_
