// Which pack goes to which node: replicas of an expert apart, so that fewer tokens cross nodes for it.
#ifndef BALLAST_CONTROLLER_PLANNER_NODES_H_
#define BALLAST_CONTROLLER_PLANNER_NODES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "controller/planner/packs.h"
#include "controller/planner/topology.h"
#include "proto/placement/quotas.h"

namespace ballast {

// The part of one layer's (token, expert) pairs whose token has to leave its node, where tokens come to all workers
// alike, the table's weights hold, and each node's replicas serve its own tokens first, as dispatch does:
// 1 - sum over experts and nodes of min(the node's part of the workers, its replicas' part of the expert), by tokens.
// An expert whose parts on the nodes are those of the workers never makes a token cross. Times the experts that a token
// chooses it is at most so many copies a token; two experts of a token on one worker need but one. 0 without load.
double CrossNodePart(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology);

// The same for many layers. Not bound to a thread.
class CrossNodeCounter {
 public:
  explicit CrossNodeCounter(const Topology& topology);
  double Part(const DispatchTable& layer, std::span<const double> tokens);

 private:
  std::vector<int32_t> node_of_;  // [workers], nodes numbered from 0
  std::vector<double> part_;      // [nodes] of the workers
  std::vector<double> on_node_;   // [nodes] scratch
};

// Packs change places between nodes while that lowers CrossNodePart, solved shares or equal split counting as they are
// in `table`, which is that of `packs`. Only workers of the same `kind` [workers] change places, and, where `current`
// is not null, only so that no fewer replicas stay on workers that hold them there. So balance and moves are what they
// were. Bounded by 64 tries a worker; the same input gives the same packs.
void SpreadOverNodes(const DispatchTable& table, std::span<const double> tokens, const Topology& topology,
                     std::span<const int32_t> kind, const DispatchTable* current, Packs& packs);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_NODES_H_
