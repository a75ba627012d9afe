// A step's quotas on a GPU: how many of each source's tokens for each expert go to each of its replicas, so that the
// busiest rank has as little to do as can be.
#ifndef BALLAST_KERNELS_CUDA_QUOTAS_H_
#define BALLAST_KERNELS_CUDA_QUOTAS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/quotas_kernel.h"

namespace ballast {

// What changes from step to step. Pointers are device memory.
struct StepQuotasArgs {
  // CudaStepQuotas::table(), copied to the device; written by no kernel that may still run.
  const int32_t* table = nullptr;
  // [sources][experts], at least 0, an expert's summing to less than 2^31.
  const int32_t* counts = nullptr;
  // Source s is rank s: at most num_ranks.
  int sources = 0;
  // [sources][replicas], out. An expert's quotas of one source sum to its count.
  int32_t* quotas = nullptr;
  // Out, the bound z of the busiest rank; nullptr: not wanted.
  int64_t* bound = nullptr;
};

// The same integers as StepQuotaSolver of proto/placement/step_quotas.h, bit for bit, on any device: the exact minimum
// of the busiest rank's load by augmenting paths from a level start, then each expert's flow split over the sources by
// controlled rounding. Made for one placement of one layer. Immutable and thread-safe.
class CudaStepQuotas {
 public:
  // Expert e's replicas are begin[e] .. begin[e + 1], on the ranks `rank`, below num_ranks; `speed` [ranks] is each
  // rank's relative speed, 1 to 2^10, empty: all alike. At most 1024 experts, 4096 replicas, 32 of an expert, 32 ranks.
  // Errors: InvalidArgument, naming field, value and limit.
  static absl::StatusOr<CudaStepQuotas> Create(std::span<const int32_t> begin, std::span<const int32_t> rank,
                                               int num_ranks, std::span<const int32_t> speed = {});

  // To be copied to device memory, for StepQuotasArgs.
  std::span<const int32_t> table() const { return table_; }

  // Enqueues one kernel of one block. Neither allocates nor waits; may be captured. Bound by latency: about as many
  // steps one after the other as the search for paths takes; reads 4 bytes of each count and writes 4 of each quota.
  // Errors: InvalidArgument, naming field, value and limit; what the launch says.
  absl::Status Run(const StepQuotasArgs& step, cudaStream_t stream) const;

 private:
  CudaStepQuotas() = default;

  internal::QuotaKernelArgs args_ = {};
  std::vector<int32_t> table_;
};

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_QUOTAS_H_
