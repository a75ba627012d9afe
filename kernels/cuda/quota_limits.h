// What step quotas can be solved on a GPU. Pure, and of the host: every rank of a view comes to the same answer.
#ifndef BALLAST_KERNELS_CUDA_QUOTA_LIMITS_H_
#define BALLAST_KERNELS_CUDA_QUOTA_LIMITS_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace ballast {

inline constexpr int kMaxQuotaExperts = 1024, kMaxQuotaReplicas = 4096, kMaxQuotaRanks = 32, kMaxQuotaCopies = 32;
// Of a block, for the table: a multiprocessor has more, but not on every device.
inline constexpr size_t kMaxQuotaSharedBytes = 160 * 1024;

// Words of the table that CudaStepQuotas makes of a layer: expert e's replicas are begin[e] .. begin[e + 1], on the
// ranks `rank`, below num_ranks.
int64_t QuotaTableWords(std::span<const int32_t> begin, std::span<const int32_t> rank, int num_ranks);

// Shared memory of a block that solves it.
constexpr size_t QuotaSharedBytes(int64_t table_words, int experts, int replicas) {
  return sizeof(int64_t) * 32 + sizeof(int32_t) * static_cast<size_t>(table_words + experts + 2 * int64_t{replicas});
}

// Whether CudaStepQuotas::Create takes a well-formed layer.
bool QuotasFit(std::span<const int32_t> begin, std::span<const int32_t> rank, int num_ranks);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_QUOTA_LIMITS_H_
