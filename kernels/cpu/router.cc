#include "kernels/router.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/work.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// Keeps the k largest of `probabilities` in falling order; equal ones in the order of ids.
void TopK(const float* probabilities, int n, int k, int32_t* ids, float* weights) {
  int held = 0;
  for (int e = 0; e < n; ++e) {
    const float p = probabilities[e];
    if (held == k && !(p > weights[k - 1])) continue;
    int at = held < k ? held++ : k - 1;
    for (; at > 0 && p > weights[at - 1]; --at) {
      weights[at] = weights[at - 1];
      ids[at] = ids[at - 1];
    }
    weights[at] = p;
    ids[at] = e;
  }
}

}  // namespace

void RouteTokens(const RouterRule& rule, const float* hidden, const uint16_t* router_weights, int num_tokens,
                 int hidden_size, float* logits, int32_t* ids, float* weights, ThreadPool& pool) {
  BALLAST_CHECK(rule.top_k >= 1 && rule.top_k <= rule.num_experts)
      << "top_k=" << rule.top_k << " num_experts=" << rule.num_experts;
  constexpr int kRows = 32;
  const internal::IsaKernels& kernels = internal::Kernels();
  const auto route = [&](int chunk) {
    const int first = chunk * kRows, rows = std::min(kRows, num_tokens - first);
    const size_t packed_width = internal::PackedWidth(hidden_size);
    thread_local internal::Scratch scratch;
    float* packed = scratch.Get<float>(kRows * packed_width + rule.num_experts);
    float* probabilities = packed + kRows * packed_width;
    const float* row[kRows];
    for (int r = 0; r < rows; ++r) row[r] = hidden + static_cast<size_t>(first + r) * hidden_size;
    kernels.pack_rows(row, rows, hidden_size, packed);
    float* chunk_logits = logits + static_cast<size_t>(first) * rule.num_experts;
    kernels.matmul(packed, rows, hidden_size, router_weights, rule.num_experts, chunk_logits, rule.num_experts);
    for (int r = 0; r < rows; ++r) {
      std::memcpy(probabilities, chunk_logits + static_cast<size_t>(r) * rule.num_experts,
                  rule.num_experts * sizeof(float));
      kernels.softmax(probabilities, rule.num_experts);
      const size_t out = static_cast<size_t>(first + r) * rule.top_k;
      TopK(probabilities, rule.num_experts, rule.top_k, ids + out, weights + out);
      if (rule.renormalize) {
        float sum = 0;
        for (int j = 0; j < rule.top_k; ++j) sum += weights[out + j];
        for (int j = 0; j < rule.top_k; ++j) weights[out + j] /= sum;
      }
    }
  };
  const int chunks = (num_tokens + kRows - 1) / kRows;
  if (internal::WorthWaking(pool, 2.0 * num_tokens * rule.num_experts * hidden_size, 0)) {
    pool.ParallelFor(chunks, route);
  } else {
    for (int chunk = 0; chunk < chunks; ++chunk) route(chunk);
  }
}

}  // namespace ballast
