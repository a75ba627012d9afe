// Moving and counting tokens around the experts: grouping, gathering, combining, the (task, expert) histogram.
#ifndef BALLAST_KERNELS_TOKENS_H_
#define BALLAST_KERNELS_TOKENS_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

// Groups (token, choice) pairs by expert, a stable counting sort: `ids` is [T][k] flat; on return pairs
// order[begin[e]] .. order[begin[e + 1] - 1] are the flat indices (token * k + choice) of expert e, ascending.
// ids must lie in [0, num_experts). begin has num_experts + 1 elements, order ids.size().
// Roofline: two passes over ids, bound by store latency; about 1 ns a pair.
void GroupByExpert(std::span<const int32_t> ids, int num_experts, std::span<int32_t> begin, std::span<int32_t> order);

// out[i][0..width) = source[index[i]][0..width), rows of `width` floats. Roofline: memory bandwidth.
void GatherRows(const float* source, std::span<const int32_t> index, int width, float* out);

// One addend of a token's MoE output.
struct CombineTerm {
  const float* row = nullptr;  // [width]
  float weight = 0;
};

// out[d] = fma(terms[n-1].weight, terms[n-1].row[d], ... fma(terms[0].weight, terms[0].row[d], 0)): in the order given,
// each element by itself, so the result depends on the terms and their order alone. `exact` gives them by ascending
// expert id. No terms: zeros. out may not overlap the rows. Roofline: reads terms*width*4 bytes, bound by bandwidth.
void CombineRows(std::span<const CombineTerm> terms, int width, float* out);

// out[d] += row[d]. `fast` adds the partial sums of the destinations so, in rank order.
void AddRow(const float* row, int width, float* out);

// Adds 1 to counts[task[t] * num_experts + ids[t * top_k + j]] for every token t and choice j. T = task.size();
// ids is [T][top_k]; counts [tasks][num_experts]. Roofline: one increment a pair, about 1 ns.
void CountExperts(std::span<const int32_t> ids, std::span<const int32_t> task, int top_k, int num_experts,
                  std::span<uint64_t> counts);

// The index of the largest value; ties: the lowest index. NaNs never win; all NaN or empty gives 0.
// Roofline: read bandwidth.
int32_t ArgMax(std::span<const float> values);

}  // namespace ballast

#endif  // BALLAST_KERNELS_TOKENS_H_
