// Verified experts in host memory, from where a GPU gets them sooner than from the checkpoint.
#ifndef BALLAST_WORKER_EXPERTS_HOST_TIER_H_
#define BALLAST_WORKER_EXPERTS_HOST_TIER_H_

#include <cstddef>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/experts/expert_source.h"

namespace ballast {

// Immutable, so any thread may read it.
class HostTier {
 public:
  // Reads `experts` into `memory`, which outlives the tier and is best pinned (PinnedMemory), and verifies each.
  //   InvalidArgument   memory is too small; names both sizes
  //   DataLoss          an expert's checksum is not what the source expects; or what the source says
  static absl::StatusOr<HostTier> Load(const ExpertSource& source, const std::vector<ExpertId>& experts,
                                       std::span<std::byte> memory);

  // The expert in slot layout; empty: it is not here.
  std::span<const std::byte> Find(ExpertId expert) const;

 private:
  explicit HostTier(std::map<std::pair<int32_t, int32_t>, std::span<const std::byte>> experts)
      : experts_(std::move(experts)) {}

  // By layer and expert.
  std::map<std::pair<int32_t, int32_t>, std::span<const std::byte>> experts_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_HOST_TIER_H_
