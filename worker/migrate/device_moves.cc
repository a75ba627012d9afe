#include "worker/migrate/device_moves.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace ballast {

std::optional<int32_t> SlotOf(const Placement& placement, std::string_view worker, ExpertId expert) {
  for (const Replica& replica : placement.replicas) {
    if (replica.expert == expert && placement.workers[replica.worker] == worker) return replica.slot;
  }
  return std::nullopt;
}

DeviceMoves::DeviceMoves(ChunkCopier& copier, std::function<void()> bind, std::function<Placement()> placement,
                         std::span<std::byte> staging, size_t slot_stride, Clock& clock)
    : bind_(std::move(bind)),
      placement_(std::move(placement)),
      staging_(staging),
      slot_stride_(slot_stride),
      mover_(copier, clock) {}

void DeviceMoves::SetPeers(std::map<std::string, Peer> peers) {
  MutexLock lock(mu_);
  peers_ = std::move(peers);
}

void DeviceMoves::ForgetPeers() {
  MutexLock lock(mu_);
  peers_.clear();
  if (moving_) mover_.Cancel();
  while (moving_) changed_.Wait(mu_);
}

absl::Status DeviceMoves::Move(std::span<const std::byte> from, std::span<std::byte> to, int64_t max_bytes_per_second,
                               absl::Time deadline) {
  bind_();
  const absl::Status status = mover_.Move(from, to.data(), max_bytes_per_second, deadline);
  MutexLock lock(mu_);
  moving_ = false;
  // From here on Cancel finds no move: one that came after the move's last look must not end the next.
  mover_.ForgetCancel();
  changed_.NotifyAll();
  return status;
}

absl::Status DeviceMoves::Pull(const std::string& address, ExpertId expert, std::span<std::byte> slot,
                               int64_t max_bytes_per_second, absl::Time deadline) {
  const Placement placement = placement_();
  const std::byte* from = nullptr;
  {
    MutexLock lock(mu_);
    const auto peer = peers_.find(address);
    if (peer == peers_.end()) {
      return absl::NotFoundError(absl::StrCat("the slots of ", address, " are not within direct reach"));
    }
    const std::optional<int32_t> at = SlotOf(placement, peer->second.worker, expert);
    if (!at.has_value()) {
      return absl::NotFoundError(absl::StrCat(peer->second.worker, " has no replica of layer ", expert.layer,
                                              " expert ", expert.expert, " in the placement in force"));
    }
    from = peer->second.slots + slot_stride_ * static_cast<size_t>(*at);
    moving_ = true;
  }
  return Move({from, slot.size()}, slot, max_bytes_per_second, deadline);
}

absl::Status DeviceMoves::Upload(std::span<std::byte> slot, int64_t max_bytes_per_second, absl::Time deadline) {
  {
    MutexLock lock(mu_);
    moving_ = true;
  }
  return Move(staging_, slot, max_bytes_per_second, deadline);
}

void DeviceMoves::Cancel() {
  MutexLock lock(mu_);
  if (moving_) mover_.Cancel();
}

}  // namespace ballast
