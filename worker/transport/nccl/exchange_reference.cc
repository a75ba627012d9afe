#include "worker/transport/nccl/exchange_reference.h"

#include <cmath>

#include "kernels/cpu/test_data.h"

namespace ballast {

using internal::FromBf16;
using internal::ToBf16;

ExchangeReceived ReferenceDispatch(const ExchangeShape& shape, const std::vector<ExchangeInput>& inputs, int rank) {
  const size_t slots = static_cast<size_t>(shape.ranks) * shape.capacity;
  ExchangeReceived received;
  received.rows.resize(slots);
  received.groups.assign(slots * shape.top_k, shape.groups_per_rank);
  received.weights.assign(slots * shape.top_k, 0);
  for (int source = 0; source < shape.ranks; ++source) {
    const ExchangeInput& input = inputs[source];
    for (int t = 0; t < input.tokens; ++t) {
      const size_t slot = static_cast<size_t>(source) * shape.capacity + t;
      for (int k = 0; k < shape.top_k; ++k) {
        const int32_t replica = input.replicas[t * shape.top_k + k];
        if (replica < 0 || replica / shape.groups_per_rank != rank) continue;
        received.groups[slot * shape.top_k + k] = replica % shape.groups_per_rank;
        received.weights[slot * shape.top_k + k] = input.weights[t * shape.top_k + k];
        const auto row = input.rows.begin() + static_cast<ptrdiff_t>(t) * shape.hidden_size;
        received.rows[slot].assign(row, row + shape.hidden_size);
      }
    }
  }
  return received;
}

std::vector<uint16_t> ReferenceCombine(const ExchangeShape& shape, const ExchangeInput& home,
                                       const ReferenceExpert& expert) {
  std::vector<uint16_t> out;
  for (int t = 0; t < home.tokens; ++t) {
    const auto row_begin = home.rows.begin() + static_cast<ptrdiff_t>(t) * shape.hidden_size;
    const std::vector<uint16_t> row(row_begin, row_begin + shape.hidden_size);
    std::vector<float> sum(shape.hidden_size, 0);
    for (int rank = 0; rank < shape.ranks; ++rank) {
      std::vector<float> partial(shape.hidden_size, 0);
      bool any = false;
      for (int k = 0; k < shape.top_k; ++k) {
        const int32_t replica = home.replicas[t * shape.top_k + k];
        if (replica < 0 || replica / shape.groups_per_rank != rank) continue;
        any = true;
        const std::vector<uint16_t> output = expert(replica, row);
        const float weight = home.weights[t * shape.top_k + k];
        for (int d = 0; d < shape.hidden_size; ++d) partial[d] = std::fma(weight, FromBf16(output[d]), partial[d]);
      }
      if (!any) continue;
      for (int d = 0; d < shape.hidden_size; ++d) sum[d] += FromBf16(ToBf16(partial[d]));
    }
    for (const float v : sum) out.push_back(ToBf16(v));
  }
  return out;
}

}  // namespace ballast
