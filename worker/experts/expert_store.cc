#include "worker/experts/expert_store.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "worker/experts/slot_arena.h"

namespace ballast {
namespace {

std::string Name(ExpertId id) { return absl::StrCat("layer ", id.layer, " expert ", id.expert); }

std::string Name(PlacementVersion version) {
  return absl::StrCat("epoch ", version.epoch.value(), " shares ", version.shares.value());
}

absl::string_view Name(SlotState state) {
  switch (state) {
    case SlotState::kFree:
      return "free";
    case SlotState::kStaging:
      return "staging";
    case SlotState::kVerified:
      return "verified";
    case SlotState::kInForce:
      return "in force";
    case SlotState::kDraining:
      return "draining";
  }
  return "unknown";
}

// Whether two placements put the same replicas into the same slots.
bool SameReplicas(const Placement& a, const Placement& b) {
  return a.workers == b.workers && std::equal(a.replicas.begin(), a.replicas.end(), b.replicas.begin(),
                                              b.replicas.end(), [](const Replica& x, const Replica& y) {
                                                return x.expert == y.expert && x.worker == y.worker && x.slot == y.slot;
                                              });
}

absl::Status CheckOptions(const ExpertStoreOptions& options) {
  if (options.worker.empty()) return absl::InvalidArgumentError("worker is empty");
  if (options.capacity.staging_slots < 0 || options.capacity.staging_slots >= options.capacity.slots) {
    return absl::InvalidArgumentError(absl::StrCat("staging_slots is ", options.capacity.staging_slots,
                                                   ", not between 0 and slots - 1 = ", options.capacity.slots - 1));
  }
  return absl::OkStatus();
}

}  // namespace

PinnedExpert::~PinnedExpert() {
  if (store_ != nullptr) store_->Unpin(slot_);
}

StagedWrite::~StagedWrite() {
  if (store_ != nullptr) store_->DropWrite(slot_);
}

bool StagedWrite::cancelled() const { return store_->WriteCancelled(slot_); }

absl::Status StagedWrite::Finish() && { return std::exchange(store_, nullptr)->FinishWrite(slot_, expert_); }

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Create(const ExpertSource& source,
                                                                 ExpertStoreOptions options) {
  BALLAST_RETURN_IF_ERROR(CheckOptions(options));
  BALLAST_ASSIGN_OR_RETURN(SlotArena arena, SlotArena::Create(options.capacity.slots, source.expert_bytes()));
  return Create(source, std::move(options), std::make_unique<const SlotArena>(std::move(arena)));
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Create(const ExpertSource& source, ExpertStoreOptions options,
                                                                 std::unique_ptr<const SlotMemory> memory) {
  BALLAST_RETURN_IF_ERROR(CheckOptions(options));
  if (memory->slots() != options.capacity.slots || memory->Slot(0).size() != source.expert_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("memory has ", memory->slots(), " slots of ", memory->Slot(0).size(),
                                                   " bytes; ", options.capacity.slots, " of ", source.expert_bytes(),
                                                   " are wanted"));
  }
  return std::unique_ptr<ExpertStore>(new ExpertStore(source, std::move(options), std::move(memory)));
}

ExpertStore::ExpertStore(const ExpertSource& source, ExpertStoreOptions options,
                         std::unique_ptr<const SlotMemory> memory)
    : source_(source), options_(std::move(options)), memory_(std::move(memory)), slots_(memory_->slots()) {}

ExpertStore::~ExpertStore() {
  MutexLock lock(mu_);
  for (const Slot& slot : slots_) {
    BALLAST_CHECK(slot.pins == 0 && !slot.writing) << Name(slot.expert) << " is in use as its store ends";
  }
}

absl::Status ExpertStore::CheckPlacement(const Placement& placement) const {
  if (placement.num_layers != source_.num_layers() || placement.num_experts != source_.num_experts()) {
    return absl::InvalidArgumentError(absl::StrCat("placement of ", placement.num_layers, " layers and ",
                                                   placement.num_experts, " experts; the model has ",
                                                   source_.num_layers(), " and ", source_.num_experts()));
  }
  BALLAST_RETURN_IF_ERROR(Validate(placement));
  int32_t used = 0;
  for (const StagedReplica& own : OwnReplicas(placement)) {
    ++used;
    if (own.slot >= options_.capacity.slots) {
      return absl::InvalidArgumentError(absl::StrCat("slot of ", Name(own.expert), " on ", options_.worker, " is ",
                                                     own.slot, "; it has slots 0 to ", options_.capacity.slots - 1));
    }
  }
  const int32_t limit = options_.capacity.slots - options_.capacity.staging_slots;
  if (used > limit) {
    return absl::InvalidArgumentError(absl::StrCat("placement uses ", used, " slots of ", options_.worker, "; at most ",
                                                   limit, " beside its staging slots"));
  }
  return absl::OkStatus();
}

std::vector<StagedReplica> ExpertStore::OwnReplicas(const Placement& placement) const {
  std::vector<StagedReplica> own;
  for (const Replica& r : placement.replicas) {
    if (placement.workers[r.worker] == options_.worker) own.push_back({.expert = r.expert, .slot = r.slot});
  }
  return own;
}

std::shared_ptr<const ReplicaTable> ExpertStore::MakeTable(const Placement& placement) const {
  std::vector<const uint16_t*> weights(static_cast<size_t>(placement.num_layers) * placement.num_experts, nullptr);
  for (const StagedReplica& own : OwnReplicas(placement)) {
    weights[static_cast<size_t>(own.expert.layer) * placement.num_experts + own.expert.expert] =
        reinterpret_cast<const uint16_t*>(memory_->Slot(own.slot).data());
  }
  return std::make_shared<const ReplicaTable>(placement, std::move(weights));
}

bool ExpertStore::HoldsVerified(const Slot& slot, ExpertId expert) const {
  return slot.expert == expert && !slot.writing &&
         (slot.state == SlotState::kVerified || slot.state == SlotState::kInForce ||
          slot.state == SlotState::kDraining);
}

absl::Status ExpertStore::VerifySlot(int32_t slot, ExpertId expert) const {
  BALLAST_ASSIGN_OR_RETURN(const Checksum want, source_.ExpectedChecksum(expert));
  BALLAST_ASSIGN_OR_RETURN(const Checksum got, memory_->Sum(slot));
  if (got == want) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("checksum of ", Name(expert), " in slot ", slot, " is ", got.hex(), ", not ", want.hex()));
}

void ExpertStore::FreeIfUnused(int32_t slot) {
  Slot& s = slots_[slot];
  if (!s.condemned || s.pins > 0 || s.writing) return;
  s = Slot{};
  released_.NotifyAll();
}

void ExpertStore::Condemn(int32_t slot) {
  slots_[slot].condemned = true;
  FreeIfUnused(slot);
}

void ExpertStore::ForgetPrepared() {
  if (!prepared_.has_value()) return;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].state == SlotState::kStaging || slots_[slot].state == SlotState::kVerified) Condemn(slot);
  }
  prepared_.reset();
}

absl::Status ExpertStore::Load(const Placement& placement) {
  BALLAST_RETURN_IF_ERROR(CheckPlacement(placement));
  const PlacementVersion version = VersionOf(placement);
  const std::vector<StagedReplica> own = OwnReplicas(placement);
  std::vector<StagedReplica> missing;
  {
    MutexLock lock(mu_);
    if (in_force_ != nullptr && version < in_force_->version()) {
      return absl::FailedPreconditionError(
          absl::StrCat(Name(version), " is older than ", Name(in_force_->version()), ", which is in force"));
    }
    const bool overtaken = prepared_.has_value() && VersionOf(*prepared_) <= version;
    // What the placement wants stays; what only older placements or the one overtaken wanted goes. A placement still
    // being prepared keeps its slots.
    std::vector<bool> wanted(slots_.size(), false);
    for (const StagedReplica& replica : own) wanted[replica.slot] = HoldsVerified(slots_[replica.slot], replica.expert);
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
      Slot& s = slots_[slot];
      if (wanted[slot]) {
        s.state = SlotState::kInForce;
        s.condemned = false;
      } else if (s.state != SlotState::kFree &&
                 (overtaken || s.state == SlotState::kInForce || s.state == SlotState::kDraining)) {
        Condemn(slot);
      }
    }
    if (overtaken) prepared_.reset();
    // Until the end, so that nothing is prepared meanwhile; and for good if this fails.
    in_force_ = nullptr;
    for (const StagedReplica& replica : own) {
      if (!wanted[replica.slot]) missing.push_back(replica);
    }
    const absl::Time deadline = options_.clock->Now() + options_.load_patience;
    for (const StagedReplica& replica : missing) {
      while (slots_[replica.slot].state != SlotState::kFree) {
        const Slot& s = slots_[replica.slot];
        if (!s.condemned) {
          return absl::FailedPreconditionError(absl::StrCat("slot ", replica.slot, " for ", Name(replica.expert),
                                                            " is ", Name(s.state), " with ", Name(s.expert),
                                                            " of a placement being prepared"));
        }
        if (!options_.clock->WaitUntil(released_, mu_, deadline)) {
          return absl::DeadlineExceededError(absl::StrCat("slot ", replica.slot, " for ", Name(replica.expert),
                                                          " is still in use by a transfer of ", Name(s.expert)));
        }
      }
    }
    for (const StagedReplica& replica : missing) {
      slots_[replica.slot] = Slot{.state = SlotState::kStaging, .expert = replica.expert, .writing = true};
    }
  }
  absl::Status status;
  for (const StagedReplica& replica : missing) {
    if (status.ok()) status = memory_->Read(source_, replica.expert, replica.slot);
    if (status.ok()) status = VerifySlot(replica.slot, replica.expert);
    MutexLock lock(mu_);
    slots_[replica.slot].writing = false;
    if (status.ok()) {
      slots_[replica.slot].state = SlotState::kInForce;
    } else {
      Condemn(replica.slot);
    }
  }
  BALLAST_RETURN_IF_ERROR(status);
  auto table = MakeTable(placement);
  MutexLock lock(mu_);
  in_force_ = std::move(table);
  return absl::OkStatus();
}

std::shared_ptr<const ReplicaTable> ExpertStore::in_force() const {
  MutexLock lock(mu_);
  return in_force_;
}

absl::StatusOr<std::vector<StagedReplica>> ExpertStore::Prepare(const Placement& placement) {
  BALLAST_RETURN_IF_ERROR(CheckPlacement(placement));
  const PlacementVersion version = VersionOf(placement);
  MutexLock lock(mu_);
  if (in_force_ == nullptr) return absl::FailedPreconditionError("no placement is in force");
  if (version <= in_force_->version()) {
    return absl::FailedPreconditionError(
        absl::StrCat(Name(version), " is not newer than ", Name(in_force_->version()), ", which is in force"));
  }
  if (version.epoch == in_force_->version().epoch && !SameReplicas(placement, in_force_->placement())) {
    return absl::InvalidArgumentError(
        absl::StrCat(Name(version), " has other replicas than the placement in force of the same epoch"));
  }
  if (prepared_.has_value() && *prepared_ != placement) {
    return absl::FailedPreconditionError(absl::StrCat(Name(VersionOf(*prepared_)), " is prepared already"));
  }
  std::vector<StagedReplica> missing;
  for (const StagedReplica& replica : OwnReplicas(placement)) {
    const Slot& slot = slots_[replica.slot];
    // Draining is not good enough: the slot is about to be freed.
    const bool kept = slot.expert == replica.expert && !slot.condemned &&
                      (slot.state == SlotState::kInForce || slot.state == SlotState::kVerified);
    if (kept) continue;
    const bool staging = prepared_.has_value() && slot.state == SlotState::kStaging && slot.expert == replica.expert;
    if (slot.state != SlotState::kFree && !staging) {
      return absl::FailedPreconditionError(absl::StrCat("slot ", replica.slot, " for ", Name(replica.expert), " is ",
                                                        Name(slot.state), " with ", Name(slot.expert)));
    }
    missing.push_back(replica);
  }
  for (const StagedReplica& replica : missing) {
    Slot& slot = slots_[replica.slot];
    if (slot.state == SlotState::kFree) slot = Slot{.state = SlotState::kStaging, .expert = replica.expert};
  }
  prepared_ = placement;
  return missing;
}

absl::StatusOr<StagedWrite> ExpertStore::StartWrite(const StagedReplica& replica) {
  MutexLock lock(mu_);
  if (replica.slot < 0 || replica.slot >= memory_->slots()) {
    return absl::FailedPreconditionError(absl::StrCat("there is no slot ", replica.slot));
  }
  Slot& slot = slots_[replica.slot];
  if (!prepared_.has_value() || slot.state != SlotState::kStaging || slot.expert != replica.expert || slot.writing ||
      slot.condemned) {
    return absl::FailedPreconditionError(
        absl::StrCat("slot ", replica.slot, " is not staging ", Name(replica.expert), ", or is being written already"));
  }
  slot.writing = true;
  return StagedWrite(this, replica.slot, replica.expert, memory_->Slot(replica.slot));
}

absl::Status ExpertStore::StageFromSource(const StagedReplica& replica) {
  BALLAST_ASSIGN_OR_RETURN(StagedWrite write, StartWrite(replica));
  BALLAST_RETURN_IF_ERROR(memory_->Read(source_, replica.expert, replica.slot));
  return std::move(write).Finish();
}

bool ExpertStore::WriteCancelled(int32_t slot) const {
  MutexLock lock(mu_);
  return slots_[slot].condemned;
}

void ExpertStore::DropWrite(int32_t slot) {
  MutexLock lock(mu_);
  BALLAST_CHECK(slots_[slot].writing) << "slot " << slot;
  slots_[slot].writing = false;
  FreeIfUnused(slot);
}

absl::Status ExpertStore::FinishWrite(int32_t slot, ExpertId expert) {
  // Without the lock: the write still owns the slot.
  absl::Status status = VerifySlot(slot, expert);
  MutexLock lock(mu_);
  Slot& s = slots_[slot];
  BALLAST_CHECK(s.writing && s.state == SlotState::kStaging && s.expert == expert) << Name(expert);
  s.writing = false;
  if (s.condemned) {
    FreeIfUnused(slot);
    return absl::CancelledError(absl::StrCat("the placement that wanted ", Name(expert), " was aborted"));
  }
  if (status.ok()) s.state = SlotState::kVerified;
  return status;
}

bool ExpertStore::Prepared(PlacementVersion version) const {
  MutexLock lock(mu_);
  return prepared_.has_value() && VersionOf(*prepared_) == version &&
         std::none_of(slots_.begin(), slots_.end(),
                      [](const Slot& s) { return s.state == SlotState::kStaging && !s.condemned; });
}

std::optional<PlacementVersion> ExpertStore::prepared() const {
  MutexLock lock(mu_);
  if (!prepared_.has_value()) return std::nullopt;
  return VersionOf(*prepared_);
}

void ExpertStore::Abort(Epoch epoch) {
  MutexLock lock(mu_);
  if (prepared_.has_value() && prepared_->epoch == epoch) ForgetPrepared();
}

absl::Status ExpertStore::Flip(PlacementVersion version) {
  if (!Prepared(version)) {
    return absl::FailedPreconditionError(absl::StrCat(Name(version), " is not prepared with every replica verified"));
  }
  MutexLock lock(mu_);
  // Only Abort, by another thread, can have come between.
  if (!prepared_.has_value() || VersionOf(*prepared_) != version) {
    return absl::FailedPreconditionError(absl::StrCat(Name(version), " was aborted"));
  }
  auto table = MakeTable(*prepared_);
  std::vector<bool> wanted(slots_.size(), false);
  for (const StagedReplica& replica : OwnReplicas(*prepared_)) {
    Slot& slot = slots_[replica.slot];
    BALLAST_CHECK((slot.state == SlotState::kVerified || slot.state == SlotState::kInForce) &&
                  slot.expert == replica.expert && !slot.condemned)
        << Name(replica.expert) << " in slot " << replica.slot << " is " << Name(slot.state);
    slot.state = SlotState::kInForce;
    wanted[replica.slot] = true;
  }
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].state == SlotState::kInForce && !wanted[slot]) slots_[slot].state = SlotState::kDraining;
  }
  in_force_ = std::move(table);
  prepared_.reset();
  return absl::OkStatus();
}

void ExpertStore::EndOldEpochs() {
  MutexLock lock(mu_);
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].state == SlotState::kDraining) Condemn(slot);
  }
}

absl::StatusOr<PinnedExpert> ExpertStore::Pin(ExpertId expert) {
  MutexLock lock(mu_);
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    if (!HoldsVerified(slots_[slot], expert) || slots_[slot].condemned) continue;
    ++slots_[slot].pins;
    return PinnedExpert(this, slot, memory_->Slot(slot));
  }
  return absl::NotFoundError(absl::StrCat(options_.worker, " has no replica of ", Name(expert)));
}

void ExpertStore::Unpin(int32_t slot) {
  MutexLock lock(mu_);
  BALLAST_CHECK(slots_[slot].pins > 0) << "slot " << slot;
  --slots_[slot].pins;
  FreeIfUnused(slot);
}

std::vector<SlotInfo> ExpertStore::slots() const {
  MutexLock lock(mu_);
  std::vector<SlotInfo> out;
  out.reserve(slots_.size());
  for (const Slot& s : slots_) {
    out.push_back({.state = s.state, .expert = s.state == SlotState::kFree ? ExpertId{} : s.expert, .pins = s.pins});
  }
  return out;
}

}  // namespace ballast
