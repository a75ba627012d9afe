// Weights on their way into a GPU's slots: from the slots of GPUs within direct reach, and from host memory.
#ifndef BALLAST_WORKER_MIGRATE_DEVICE_MOVES_H_
#define BALLAST_WORKER_MIGRATE_DEVICE_MOVES_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "proto/placement/placement.h"
#include "worker/experts/expert_mover.h"

namespace ballast {

// Of a placement: where `worker` has its replica of the expert; nothing where it has none.
std::optional<int32_t> SlotOf(const Placement& placement, std::string_view worker, ExpertId expert);

// The processor's part of moves. Pull and Upload are one thread's.
class DeviceMoves {
 public:
  struct Peer {
    std::string worker;
    // Its slots as seen from here.
    const std::byte* slots = nullptr;
  };

  // Copies with `copier`, whose thread is made ready by `bind` (the GPU is current) before each use. `placement` gives
  // the placement in force. `staging` is host memory, one replica long, that the copier reads at full speed; slots are
  // `slot_stride` bytes apart everywhere. All of it outlives this object.
  DeviceMoves(ChunkCopier& copier, std::function<void()> bind, std::function<Placement()> placement,
              std::span<std::byte> staging, size_t slot_stride, Clock& clock);

  // The step thread, as it enters a view and before it leaves it: peers within direct reach, by data address.
  // ForgetPeers ends a Pull under way and waits for its end.
  void SetPeers(std::map<std::string, Peer> peers) BALLAST_EXCLUDES(mu_);
  void ForgetPeers() BALLAST_EXCLUDES(mu_);

  // Fills `slot` from the peer's replica; what came is not verified. NotFound: the peer is not within direct reach, or
  // the placement in force names no replica there. Others: as ExpertMover::Move.
  absl::Status Pull(const std::string& address, ExpertId expert, std::span<std::byte> slot,
                    int64_t max_bytes_per_second, absl::Time deadline) BALLAST_EXCLUDES(mu_);
  // Fills `slot` from staging().
  absl::Status Upload(std::span<std::byte> slot, int64_t max_bytes_per_second, absl::Time deadline)
      BALLAST_EXCLUDES(mu_);
  std::span<std::byte> staging() const { return staging_; }
  // Any thread: ends the Pull or Upload under way, if there is one, with Cancelled.
  void Cancel() BALLAST_EXCLUDES(mu_);

 private:
  absl::Status Move(std::span<const std::byte> from, std::span<std::byte> to, int64_t max_bytes_per_second,
                    absl::Time deadline) BALLAST_EXCLUDES(mu_);

  const std::function<void()> bind_;
  const std::function<Placement()> placement_;
  const std::span<std::byte> staging_;
  const size_t slot_stride_;
  ExpertMover mover_;

  Mutex mu_;
  CondVar changed_;
  bool moving_ BALLAST_GUARDED_BY(mu_) = false;
  std::map<std::string, Peer> peers_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MIGRATE_DEVICE_MOVES_H_
