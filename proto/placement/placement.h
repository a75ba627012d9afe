// Placement: which replica sits in which slot. Shared by the controller, which plans it, and the workers, who serve it.
#ifndef BALLAST_PROTO_PLACEMENT_PLACEMENT_H_
#define BALLAST_PROTO_PLACEMENT_PLACEMENT_H_

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/base/ids.h"

namespace ballast {

// A logical expert: one expert FFN of one MoE layer. `layer` counts MoE layers from 0 (a dense layer has no number).
struct ExpertId {
  int32_t layer = 0;
  int32_t expert = 0;
  friend auto operator<=>(const ExpertId&, const ExpertId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, ExpertId e) {
    return H::combine(std::move(h), e.layer, e.expert);
  }
};

// One copy of an expert in one worker's slot.
struct Replica {
  ExpertId expert;
  // Index into Placement::workers.
  int32_t worker = 0;
  // Slot of that worker's arena, from 0.
  int32_t slot = 0;
  // This replica's part of the expert's tokens, relative to the sum over the expert's replicas. At least 1.
  uint32_t weight = 1;
  friend auto operator<=>(const Replica&, const Replica&) = default;
};

// Where the tokens of one task should start; advice that changes no token.
struct TaskHome {
  // Index into Placement::workers.
  int32_t worker = 0;
  // The part of the task's tokens, relative to the sum over its homes. At least 1.
  uint32_t weight = 1;
  // Copies that a token need not send when it starts there, summed over layers.
  double copies_saved_per_token = 0;
  friend bool operator==(const TaskHome&, const TaskHome&) = default;
};
struct TaskHomes {
  // As telemetry names it; empty: unlabelled.
  std::string task;
  // Best first; at least one.
  std::vector<TaskHome> homes;
  friend bool operator==(const TaskHomes&, const TaskHomes&) = default;
};

// A placement of every expert of a model over a group's workers. Plain data; Validate says whether it is sound.
struct Placement {
  Epoch epoch;
  SharesVersion shares_version;
  int32_t num_layers = 0;
  int32_t num_experts = 0;
  // Worker names. Ranks belong to views, not to placements: a worker may be absent from the view in force.
  std::vector<std::string> workers;
  // Sorted by (expert, worker, slot).
  std::vector<Replica> replicas;
  // Sorted by task; a task that is not listed may start anywhere.
  std::vector<TaskHomes> task_homes;

  // The replicas alone.
  void Sort();
  friend bool operator==(const Placement&, const Placement&) = default;
};

// What a worker can hold.
struct SlotCapacity {
  // Slots in the arena, staging included.
  int32_t slots = 0;
  // Slots that no placement may use, so that a wave can always bring a replica in.
  int32_t staging_slots = 2;
};

// InvalidArgument names the field, the value and the limit unless: every expert of every layer has a replica; no slot
// is used twice; slots and workers are in range; no worker holds two replicas of one expert; weights are at least 1 and
// sum to less than 2^32 for an expert; task homes are sorted by task, each named once, with at least one home, no
// worker twice in one and weights of at least 1; each worker uses at most slots - staging_slots (`capacity` by worker,
// in the order of placement.workers; empty: not checked).
absl::Status Validate(const Placement& placement, std::span<const SlotCapacity> capacity = {});

// The replicas of one layer, expert after expert: expert e's are replicas[begin[e] .. begin[e + 1]).
struct LayerReplicas {
  std::vector<int32_t> begin;
  std::vector<Replica> replicas;
};
// The layers of a sorted, valid placement.
std::vector<LayerReplicas> ByLayer(const Placement& placement);

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_PLACEMENT_H_
