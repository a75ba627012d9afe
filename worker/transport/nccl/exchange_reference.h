// What dispatch and combine have to give, in plain code: for tests.
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_REFERENCE_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_REFERENCE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/transport/nccl/exchange_layout.h"

namespace ballast {

// What one rank brings to a layer's step.
struct ExchangeInput {
  int tokens = 0;
  std::vector<uint16_t> rows;     // [tokens][hidden_size] bf16
  std::vector<int32_t> replicas;  // [tokens][top_k], -1: none
  std::vector<float> weights;     // [tokens][top_k]
};

// What a rank has got after dispatch, by source rank.
struct ExchangeReceived {
  // [ranks][capacity][hidden_size]; a row that was not sent is empty here, and anything in a region.
  std::vector<std::vector<uint16_t>> rows;
  std::vector<int32_t> groups;  // [ranks][capacity][top_k], groups_per_rank: none
  std::vector<float> weights;   // [ranks][capacity][top_k], where groups has one
};
ExchangeReceived ReferenceDispatch(const ExchangeShape& shape, const std::vector<ExchangeInput>& inputs, int rank);

// The output of `replica` for a row, [hidden_size] bf16.
using ReferenceExpert = std::function<std::vector<uint16_t>(int replica, const std::vector<uint16_t>& row)>;

// [tokens][hidden_size] bf16 of `home`, with the same bits as the kernels: each rank adds its choices' rows in the
// order of choices, by fused multiply-adds in float32 from 0, and rounds; the home rank adds these sums by ascending
// rank in float32, and rounds.
std::vector<uint16_t> ReferenceCombine(const ExchangeShape& shape, const ExchangeInput& home,
                                       const ReferenceExpert& expert);

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_EXCHANGE_REFERENCE_H_
