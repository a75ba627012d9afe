// The machines a plan is made for.
#ifndef BALLAST_CONTROLLER_PLANNER_TOPOLOGY_H_
#define BALLAST_CONTROLLER_PLANNER_TOPOLOGY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/placement/placement.h"

namespace ballast {

struct TopologyWorker {
  std::string name;
  // Host; links inside a node are fast. From 0, in any order.
  int32_t node = 0;
  SlotCapacity capacity;
  // Tokens this worker gets through in the time another of speed 1 gets through one: 1 to 1024, only ratios matter.
  uint32_t speed = 1;
};

struct Topology {
  std::vector<TopologyWorker> workers;
  // Bytes a second that one worker can receive beside serving, from its own node and from another.
  double node_bytes_per_second = 50e9;
  double cross_node_bytes_per_second = 10e9;
  // The same from its host's memory or the checkpoint, where no worker holds what it is to take in.
  double checkpoint_bytes_per_second = 5e9;
};

// InvalidArgument names the worker, the value and the limit unless there is at least one worker, names differ, nodes
// are at least 0, 0 <= staging_slots < slots, speeds lie in 1 .. 1024 and bandwidths are finite and above 0.
absl::Status Validate(const Topology& topology);

// [workers] speeds; empty when all are alike, as solvers and searches take them.
std::vector<uint32_t> Speeds(const Topology& topology);

// `workers` workers on `nodes` nodes (the first ones get the remainder), named w0, w1, ..., with `slots` usable slots
// each.
Topology UniformTopology(int32_t workers, int32_t nodes, int32_t slots);

// [workers of the placement] their indices in the topology; -1 where it lacks them.
std::vector<int32_t> WorkersOf(const Placement& placement, const Topology& topology);

// `placement` over topology's workers, in order. Replicas on others are gone, so experts may be without.
Placement OverTopology(const Placement& placement, const Topology& topology);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_TOPOLOGY_H_
