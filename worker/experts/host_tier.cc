#include "worker/experts/host_tier.h"

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<HostTier> HostTier::Load(const ExpertSource& source, const std::vector<ExpertId>& experts,
                                        std::span<std::byte> memory) {
  const size_t each = source.expert_bytes();
  if (memory.size() / each < experts.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory is ", memory.size(), " bytes; ", experts.size(), " experts of ", each, " are wanted"));
  }
  std::map<std::pair<int32_t, int32_t>, std::span<const std::byte>> found;
  for (size_t i = 0; i < experts.size(); ++i) {
    const std::span<std::byte> bytes = memory.subspan(i * each, each);
    BALLAST_RETURN_IF_ERROR(source.Read(experts[i], bytes));
    BALLAST_ASSIGN_OR_RETURN(const Checksum want, source.ExpectedChecksum(experts[i]));
    const Checksum got = ComputeExpertChecksum(bytes);
    if (got != want) {
      return absl::DataLossError(absl::StrCat("checksum of layer ", experts[i].layer, " expert ", experts[i].expert,
                                              " is ", got.hex(), ", not ", want.hex()));
    }
    found[{experts[i].layer, experts[i].expert}] = bytes;
  }
  return HostTier(std::move(found));
}

std::span<const std::byte> HostTier::Find(ExpertId expert) const {
  const auto at = experts_.find({expert.layer, expert.expert});
  return at == experts_.end() ? std::span<const std::byte>() : at->second;
}

}  // namespace ballast
