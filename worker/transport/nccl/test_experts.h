#ifndef BALLAST_WORKER_TRANSPORT_NCCL_TEST_EXPERTS_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_TEST_EXPERTS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ballast {

// An expert layer for tests: group g's output for a row is (1 + g) times the row, rounded. `begin`, `order` as
// GroupPairs leaves them, `groups` by pair, x [..][hidden] bf16.
cudaError_t RunTestExperts(const void* x, const int32_t* begin, const int32_t* order, const int32_t* groups,
                           int num_groups, int top_k, int hidden, void* outputs, cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_TEST_EXPERTS_H_
