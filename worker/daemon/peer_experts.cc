#include "worker/daemon/peer_experts.h"

#include <utility>
#include <vector>

#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<PeerExperts>> PeerExperts::Start(std::shared_ptr<UcxContext> context,
                                                                MeshListener& listener, const Processor& processor) {
  std::unique_ptr<PeerExperts> out(new PeerExperts(context, listener.identity(), processor.moves));
  const auto pin = [&processor, has_cuda = context->has_cuda()](ExpertId expert) -> absl::StatusOr<PinnedReplica> {
    BALLAST_ASSIGN_OR_RETURN(PinnedExpert pinned, processor.store->Pin(expert));
    if (processor.copy_out != nullptr && !has_cuda) {
      auto copy = std::make_shared<std::vector<std::byte>>(pinned.bytes().size());
      BALLAST_RETURN_IF_ERROR(processor.copy_out(pinned.bytes(), *copy));
      return PinnedReplica{.weights = *copy, .pin = copy};
    }
    auto held = std::make_shared<PinnedExpert>(std::move(pinned));
    return PinnedReplica{.weights = held->bytes(),
                         .pin = held,
                         .memory = processor.copy_out == nullptr ? UcxMemory::kHost : UcxMemory::kCuda};
  };
  BALLAST_ASSIGN_OR_RETURN(out->server_, ExpertServer::Start(std::move(context), listener, pin));
  return out;
}

absl::Status PeerExperts::Pull(const std::string& address, ExpertId expert, std::span<std::byte> out,
                               int64_t max_bytes_per_second, absl::Time deadline) {
  if (moves_ == nullptr) return Fetch(address, expert, out, UcxMemory::kHost, max_bytes_per_second, deadline);
  const absl::Status pulled = moves_->Pull(address, expert, out, max_bytes_per_second, deadline);
  if (!absl::IsNotFound(pulled)) return pulled;
  if (ucx_has_cuda_) return Fetch(address, expert, out, UcxMemory::kCuda, max_bytes_per_second, deadline);
  BALLAST_RETURN_IF_ERROR(Fetch(address, expert, moves_->staging(), UcxMemory::kHost, max_bytes_per_second, deadline));
  // It has been paced already.
  return moves_->Upload(out, /*max_bytes_per_second=*/0, deadline);
}

absl::Status PeerExperts::Fetch(const std::string& address, ExpertId expert, std::span<std::byte> out, UcxMemory memory,
                                int64_t max_bytes_per_second, absl::Time deadline) {
  fetcher_.SetBytesPerSecond(max_bytes_per_second);
  std::optional<absl::Status> result;
  MutexLock lock(mu_);
  // With the lock held, so that Cancel finds the pull; `done` comes from the fetcher's thread.
  running_ = fetcher_.Start({.address = address,
                             .expert = expert,
                             .buffer = out,
                             .memory = memory,
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
  if (moves_ != nullptr) moves_->Cancel();
  MutexLock lock(mu_);
  if (running_.has_value()) fetcher_.Cancel(*running_);
}

}  // namespace ballast
