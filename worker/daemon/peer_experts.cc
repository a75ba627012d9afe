#include "worker/daemon/peer_experts.h"

#include <utility>

#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<PeerExperts>> PeerExperts::Start(std::shared_ptr<UcxContext> context,
                                                                MeshListener& listener, ExpertStore& store) {
  std::unique_ptr<PeerExperts> out(new PeerExperts(context, listener.identity()));
  const auto pin = [&store](ExpertId expert) -> absl::StatusOr<PinnedReplica> {
    BALLAST_ASSIGN_OR_RETURN(PinnedExpert pinned, store.Pin(expert));
    auto held = std::make_shared<PinnedExpert>(std::move(pinned));
    return PinnedReplica{.weights = held->bytes(), .pin = held};
  };
  BALLAST_ASSIGN_OR_RETURN(out->server_, ExpertServer::Start(std::move(context), listener, pin));
  return out;
}

absl::Status PeerExperts::Pull(const std::string& address, ExpertId expert, std::span<std::byte> out,
                               int64_t max_bytes_per_second, absl::Time deadline) {
  fetcher_.SetBytesPerSecond(max_bytes_per_second);
  std::optional<absl::Status> result;
  MutexLock lock(mu_);
  // With the lock held, so that Cancel finds the pull; `done` comes from the fetcher's thread.
  running_ = fetcher_.Start({.address = address,
                             .expert = expert,
                             .buffer = out,
                             .deadline = deadline,
                             .on_progress = {},
                             .done = [&](const absl::Status& status) {
                               MutexLock done_lock(mu_);
                               result = status;
                               changed_.NotifyAll();
                             }});
  while (!result.has_value()) changed_.Wait(mu_);
  running_.reset();
  return *result;
}

void PeerExperts::Cancel() {
  MutexLock lock(mu_);
  if (running_.has_value()) fetcher_.Cancel(*running_);
}

}  // namespace ballast
