#include "kernels/tokens.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/isa.h"

namespace ballast {

void GroupByExpert(std::span<const int32_t> ids, int num_experts, std::span<int32_t> begin, std::span<int32_t> order) {
  std::fill(begin.begin(), begin.end(), 0);
  for (int32_t id : ids) ++begin[id];
  // begin[e] becomes the end of e's pairs; filling from the back turns it into their start.
  for (int e = 1; e <= num_experts; ++e) begin[e] += begin[e - 1];
  for (size_t i = ids.size(); i-- > 0;) order[--begin[ids[i]]] = static_cast<int32_t>(i);
}

void GatherRows(const float* source, std::span<const int32_t> index, int width, float* out) {
  for (int32_t row : index) {
    std::memcpy(out, source + static_cast<size_t>(row) * width, width * sizeof(float));
    out += width;
  }
}

void CombineRows(std::span<const CombineTerm> terms, int width, float* out) {
  std::fill_n(out, width, 0.0f);
  const internal::IsaKernels& kernels = internal::Kernels();
  for (const CombineTerm& term : terms) kernels.multiply_add(term.weight, term.row, width, out);
}

void AddRow(const float* row, int width, float* out) {
  for (int d = 0; d < width; ++d) out[d] += row[d];
}

void CountExperts(std::span<const int32_t> ids, std::span<const int32_t> task, int top_k, int num_experts,
                  std::span<uint64_t> counts) {
  const int32_t* id = ids.data();
  for (int32_t row_task : task) {
    uint64_t* row = counts.data() + static_cast<size_t>(row_task) * num_experts;
    for (int j = 0; j < top_k; ++j) ++row[*id++];
  }
}

int32_t ArgMax(std::span<const float> values) {
  // The block that has it first, and then its place there: the search by single values is the slow half.
  constexpr size_t kBlock = 1024;
  const internal::IsaKernels& kernels = internal::Kernels();
  float best = -std::numeric_limits<float>::infinity();
  size_t first = 0;
  for (size_t at = 0; at < values.size(); at += kBlock) {
    const float top = kernels.maximum(values.data() + at, static_cast<int>(std::min(kBlock, values.size() - at)));
    if (top <= best) continue;
    best = top;
    first = at;
  }
  for (size_t i = first; i < values.size(); ++i) {
    if (values[i] == best) return static_cast<int32_t>(i);
  }
  return 0;
}

}  // namespace ballast
