// A placement's way into force: waves of moves, each of which leaves a sound placement.
#ifndef BALLAST_CONTROLLER_PLANNER_WAVES_H_
#define BALLAST_CONTROLLER_PLANNER_WAVES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "controller/planner/load.h"
#include "controller/planner/topology.h"
#include "proto/placement/placement.h"
#include "proto/placement/quotas.h"

namespace ballast {

// Copies one replica into a free slot.
struct Move {
  ExpertId expert;
  // A worker that holds it in the placement before the wave, or -1 where none is left: from the checkpoint.
  int32_t source = -1;
  int32_t worker = 0;
  int32_t slot = 0;
  friend auto operator<=>(const Move&, const Move&) = default;
};

struct Wave {
  // By (worker, slot). Their slots are free in the placement before the wave.
  std::vector<Move> moves;
  // Replicas that end with the wave, as they stand before it.
  std::vector<Replica> drops;
  // Every replica, with its new weight, of each layer that the wave touches.
  std::vector<Replica> layers;
  // Tokens on the busiest worker after the wave, summed over layers, for the blend of the scenarios; of the first wave
  // compare with the placement in force.
  double busiest = 0;
  // Whether that is no more than before the wave, or at most (1 + tolerance) times the least there was on the way so
  // far: what waves lose one after the other does not add up.
  bool within_tolerance = true;
};

// What belongs together in one layer: replicas that arrive, and replicas that leave with them.
struct Change {
  struct Place {
    int32_t expert = 0;
    int32_t worker = 0;
    friend auto operator<=>(const Place&, const Place&) = default;
  };
  int32_t layer = 0;
  absl::InlinedVector<Place, 2> arrivals;
  absl::InlinedVector<Place, 2> departures;
};

struct WaveLimits {
  // Replicas that one worker takes in in one wave; free slots limit it too. 0: as many as it has free slots.
  int32_t moves_per_worker = 0;
  // See Wave::within_tolerance.
  double tolerance = 0.02;
};

// Orders the way from `current` to `target` (one table a layer over topology's workers, weights at least 1).
//
// `current` is valid over topology.workers, in order, except that experts may have no replica (a dead worker took it);
// those come first, from the checkpoint. After each wave the placement satisfies Validate with every worker's staging
// slots free, no expert that had a replica is without, and the plan may stop. Layers that gain most go first, and a
// wave holds as much as free slots allow while its placement stays within the tolerance. Replicas that stay keep their
// slots. FailedPrecondition names a worker without any free slot to move through.
absl::StatusOr<std::vector<Wave>> PlanWaves(const Placement& current, std::span<const DispatchTable> target,
                                            const Topology& topology, std::span<const Scenario> scenarios,
                                            const WaveLimits& limits);

// The same for changes that are to be made in this order: a wave takes them one after the other as long as the workers
// have free slots, later changes of other layers before one that has to wait. `target`: `current` with all of them.
absl::StatusOr<std::vector<Wave>> PackWaves(const Placement& current, std::span<const Change> changes,
                                            std::span<const DispatchTable> target, const Topology& topology,
                                            std::span<const Scenario> scenarios, const WaveLimits& limits);

// The placement after `wave`, from the one before it.
Placement ApplyWave(Placement placement, const Wave& wave);
// The placement after all of them.
Placement ApplyWaves(Placement placement, std::span<const Wave> waves);

// The slowest worker's time to take in the wave's moves, and to give them out, one after the other.
double TransferSeconds(const Wave& wave, const Topology& topology, int64_t expert_bytes);

// What moves cost, by where they come from.
struct TransferCost {
  struct Link {
    int64_t moves = 0;
    int64_t bytes = 0;
    // In each wave the time of the worker that takes in or gives out most over it, summed.
    double seconds = 0;
  };
  // From a worker of the same node, of another node, and from the host's memory or the checkpoint.
  Link node;
  Link cross_node;
  Link checkpoint;
  // TransferSeconds of the waves, summed.
  double seconds = 0;
};
TransferCost CostOfTransfers(std::span<const Wave> waves, const Topology& topology, int64_t expert_bytes);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_WAVES_H_
