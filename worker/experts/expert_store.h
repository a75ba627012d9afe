// The expert slots of one worker: one arena, and which replica sits in which slot in which epoch.
//
// A slot's life:
//
//              Prepare            StagedWrite::Finish (checksum)        Flip
//     free ------------> staging -----------------------------> verified ----> in force
//      ^                    |                                       |             | Flip to an epoch without it
//      |<--- Abort, or a write dropped after it --------------------+             v
//      +--------------------------- EndOldEpochs, and no pins ----------------- draining
//
// A draining slot still holds right weights and is read by steps of the old epoch that have not ended elsewhere.
// Only staging slots are ever written. Nothing is read from a slot, by a step or for a peer, before its bytes have the
// checkpoint's checksum.
#ifndef BALLAST_WORKER_EXPERTS_EXPERT_STORE_H_
#define BALLAST_WORKER_EXPERTS_EXPERT_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "proto/placement/placement.h"
#include "worker/experts/expert_source.h"
#include "worker/experts/replica_table.h"
#include "worker/experts/slot_memory.h"

namespace ballast {

enum class SlotState { kFree, kStaging, kVerified, kInForce, kDraining };

// A snapshot of one slot.
struct SlotInfo {
  SlotState state = SlotState::kFree;
  // Meaningless when free.
  ExpertId expert;
  int pins = 0;
  friend bool operator==(const SlotInfo&, const SlotInfo&) = default;
};

// A replica that a prepared placement needs and this worker does not have in that slot.
struct StagedReplica {
  ExpertId expert;
  int32_t slot = 0;
  friend bool operator==(const StagedReplica&, const StagedReplica&) = default;
};

class ExpertStore;

// Keeps a replica's bytes readable while it lives. Movable; any thread. Keep it for as long as a transfer lasts, not
// longer: its slot cannot be used again before.
class PinnedExpert {
 public:
  PinnedExpert(PinnedExpert&& other) noexcept
      : store_(std::exchange(other.store_, nullptr)), slot_(other.slot_), bytes_(other.bytes_) {}
  PinnedExpert& operator=(PinnedExpert&&) = delete;
  ~PinnedExpert();

  // Slot layout, expert_bytes() long.
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  friend class ExpertStore;
  PinnedExpert(ExpertStore* store, int32_t slot, std::span<const std::byte> bytes)
      : store_(store), slot_(slot), bytes_(bytes) {}

  ExpertStore* store_;
  int32_t slot_;
  std::span<const std::byte> bytes_;
};

// The right to write one staging slot. Movable; one thread. Dropped without Finish it leaves the slot staging, and
// another write may start.
class StagedWrite {
 public:
  StagedWrite(StagedWrite&& other) noexcept
      : store_(std::exchange(other.store_, nullptr)),
        slot_(other.slot_),
        expert_(other.expert_),
        bytes_(other.bytes_) {}
  StagedWrite& operator=(StagedWrite&&) = delete;
  ~StagedWrite();

  // The whole slot, to be filled in slot layout.
  std::span<std::byte> bytes() const { return bytes_; }
  // The prepared placement was aborted or overtaken: stop and drop the write; others wait for that.
  bool cancelled() const;
  // Ends the write and checks what was written against the source's checksum.
  //   DataLoss   the checksum differs; names layer, expert, both sums. The slot stays staging: write it again
  //   Cancelled  as cancelled()
  //   what the source says when it cannot give its checksum
  absl::Status Finish() &&;

 private:
  friend class ExpertStore;
  StagedWrite(ExpertStore* store, int32_t slot, ExpertId expert, std::span<std::byte> bytes)
      : store_(store), slot_(slot), expert_(expert), bytes_(bytes) {}

  ExpertStore* store_;
  int32_t slot_;
  ExpertId expert_;
  std::span<std::byte> bytes_;
};

struct ExpertStoreOptions {
  // This worker's name in placements.
  std::string worker;
  SlotCapacity capacity;
  // How long Load waits for pins and writes on slots that it needs.
  absl::Duration load_patience = absl::Seconds(10);
  Clock* clock = &Clock::Real();
};

// Thread-safe. Load, Flip and EndOldEpochs belong to the step thread (or to whoever runs before it starts); Prepare,
// StartWrite, StageFromSource and Abort to the move agent; Pin to the server of peers' pulls.
class ExpertStore {
 public:
  // InvalidArgument: a count out of range. ResourceExhausted: no memory for the arena. `source` must outlive the store.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Create(const ExpertSource& source, ExpertStoreOptions options);
  // With slots elsewhere than in this process's memory: what is said of bytes and weights here is about addresses
  // there. InvalidArgument too: `memory` has not capacity.slots slots of expert_bytes().
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Create(const ExpertSource& source, ExpertStoreOptions options,
                                                             std::unique_ptr<const SlotMemory> memory);
  ~ExpertStore();
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;

  size_t expert_bytes() const { return source_.expert_bytes(); }
  const std::string& worker() const { return options_.worker; }
  const SlotCapacity& capacity() const { return options_.capacity; }

  // Makes `placement` the one in force at once, while no step runs: slots that hold the right verified replica stay,
  // others are loaded from the source and verified. A prepared placement that is not newer is forgotten. A placement
  // without this worker holds nothing of it. Blocks on the source, and up to load_patience on pins and writes.
  //   InvalidArgument     the placement is not sound, is of another shape, or does not fit this worker's capacity
  //   FailedPrecondition  an older version than the one in force; names both
  //   DeadlineExceeded    a slot stayed pinned or being written; names it
  //   DataLoss, or what the source says: nothing is in force then
  absl::Status Load(const Placement& placement) BALLAST_EXCLUDES(mu_);

  // What is in force; null before the first Load.
  std::shared_ptr<const ReplicaTable> in_force() const BALLAST_EXCLUDES(mu_);

  // Sets slots aside for a placement newer than the one in force, and says what has to be brought into them; empty for
  // new shares alone. Preparing the version that is prepared already gives what is still missing.
  //   InvalidArgument     as Load; or weights alone may change within an epoch, and more did
  //   FailedPrecondition  not newer than what is in force, another version is prepared, or a slot is not free (names
  //   it,
  //                       its state and expert)
  absl::StatusOr<std::vector<StagedReplica>> Prepare(const Placement& placement) BALLAST_EXCLUDES(mu_);
  // FailedPrecondition: nothing prepared in which `replica` is staging, or it is being written already.
  absl::StatusOr<StagedWrite> StartWrite(const StagedReplica& replica) BALLAST_EXCLUDES(mu_);
  // Fills a staging slot from the source. As StartWrite, ExpertSource::Read and StagedWrite::Finish.
  absl::Status StageFromSource(const StagedReplica& replica) BALLAST_EXCLUDES(mu_);
  // Whether `version` is prepared and every replica of it verified.
  bool Prepared(PlacementVersion version) const BALLAST_EXCLUDES(mu_);
  // The version that is being or has been prepared.
  std::optional<PlacementVersion> prepared() const BALLAST_EXCLUDES(mu_);
  // Forgets what is prepared of `epoch` and frees its slots (one that is being written, when that ends). Nothing is
  // prepared of it: no effect.
  void Abort(Epoch epoch) BALLAST_EXCLUDES(mu_);

  // Between two steps: what is prepared is in force from now on. FailedPrecondition unless Prepared(version).
  absl::Status Flip(PlacementVersion version) BALLAST_EXCLUDES(mu_);
  // The last step of every older epoch has ended everywhere: draining slots are free (a pinned one when its pins end).
  void EndOldEpochs() BALLAST_EXCLUDES(mu_);

  // A verified replica of `expert`, of any epoch. NotFound: this worker has none.
  absl::StatusOr<PinnedExpert> Pin(ExpertId expert) BALLAST_EXCLUDES(mu_);

  std::vector<SlotInfo> slots() const BALLAST_EXCLUDES(mu_);

 private:
  friend class PinnedExpert;
  friend class StagedWrite;

  struct Slot {
    SlotState state = SlotState::kFree;
    ExpertId expert;
    int pins = 0;
    bool writing = false;
    // Draining or staging no more, and free as soon as nobody pins or writes it.
    bool condemned = false;
  };

  ExpertStore(const ExpertSource& source, ExpertStoreOptions options, std::unique_ptr<const SlotMemory> memory);

  absl::Status CheckPlacement(const Placement& placement) const;
  // This worker's replicas of `placement`, by slot.
  std::vector<StagedReplica> OwnReplicas(const Placement& placement) const;
  std::shared_ptr<const ReplicaTable> MakeTable(const Placement& placement) const;
  absl::Status VerifySlot(int32_t slot, ExpertId expert) const;
  bool HoldsVerified(const Slot& slot, ExpertId expert) const;
  void Condemn(int32_t slot) BALLAST_REQUIRES(mu_);
  void FreeIfUnused(int32_t slot) BALLAST_REQUIRES(mu_);
  void ForgetPrepared() BALLAST_REQUIRES(mu_);
  void Unpin(int32_t slot) BALLAST_EXCLUDES(mu_);
  void DropWrite(int32_t slot) BALLAST_EXCLUDES(mu_);
  absl::Status FinishWrite(int32_t slot, ExpertId expert) BALLAST_EXCLUDES(mu_);
  bool WriteCancelled(int32_t slot) const BALLAST_EXCLUDES(mu_);

  const ExpertSource& source_;
  const ExpertStoreOptions options_;
  // The memory; who may touch a slot's bytes follows from its state.
  const std::unique_ptr<const SlotMemory> memory_;

  mutable Mutex mu_;
  CondVar released_;
  std::vector<Slot> slots_ BALLAST_GUARDED_BY(mu_);
  std::shared_ptr<const ReplicaTable> in_force_ BALLAST_GUARDED_BY(mu_);
  std::optional<Placement> prepared_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_EXPERT_STORE_H_
