// What one worker knows of a placement in force: who holds what, and where its own replicas lie.
#ifndef BALLAST_WORKER_EXPERTS_REPLICA_TABLE_H_
#define BALLAST_WORKER_EXPERTS_REPLICA_TABLE_H_

#include <compare>
#include <cstdint>
#include <ostream>
#include <vector>

#include "proto/base/ids.h"
#include "proto/placement/placement.h"

namespace ballast {

// What a step runs in: the replicas (epoch) and the shares between them. Both only grow; a placement with the same
// epoch and a higher shares version differs in weights alone.
struct PlacementVersion {
  Epoch epoch;
  SharesVersion shares;
  friend auto operator<=>(const PlacementVersion&, const PlacementVersion&) = default;
  friend std::ostream& operator<<(std::ostream& out, const PlacementVersion& v) {
    return out << "epoch " << v.epoch << " shares " << v.shares;
  }
};

inline PlacementVersion VersionOf(const Placement& placement) { return {placement.epoch, placement.shares_version}; }

// Immutable, so any thread may read it. Weights stay valid and unchanged while the table is in force and until
// ExpertStore::EndOldEpochs is called after it was replaced; the step thread is the only one that reads them through
// it.
class ReplicaTable {
 public:
  // `own_weights` [layers * experts]: this worker's replicas in slot layout, null where it has none.
  ReplicaTable(Placement placement, std::vector<const uint16_t*> own_weights)
      : placement_(std::move(placement)), layers_(ByLayer(placement_)), own_weights_(std::move(own_weights)) {}

  const Placement& placement() const { return placement_; }
  PlacementVersion version() const { return VersionOf(placement_); }
  const std::vector<LayerReplicas>& layers() const { return layers_; }
  // Null: this worker has no replica of it.
  const uint16_t* OwnWeights(ExpertId id) const {
    return own_weights_[static_cast<size_t>(id.layer) * placement_.num_experts + id.expert];
  }

 private:
  const Placement placement_;
  const std::vector<LayerReplicas> layers_;
  const std::vector<const uint16_t*> own_weights_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_REPLICA_TABLE_H_
