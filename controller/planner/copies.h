// How many vectors a placement sends about, from what tokens chose.
#ifndef BALLAST_CONTROLLER_PLANNER_COPIES_H_
#define BALLAST_CONTROLLER_PLANNER_COPIES_H_

#include <cstdint>
#include <span>

#include "controller/planner/topology.h"
#include "proto/placement/quotas.h"

namespace ballast {

// Over tokens of layers: each token of each layer counts once.
struct CopyCount {
  int64_t tokens = 0;
  // Workers other than its home that a token is sent to, and those of them on another node.
  int64_t copies = 0;
  int64_t cross_node = 0;

  double per_token() const { return tokens == 0 ? 0 : static_cast<double>(copies) / static_cast<double>(tokens); }
  double cross_node_per_token() const {
    return tokens == 0 ? 0 : static_cast<double>(cross_node) / static_cast<double>(tokens);
  }
  CopyCount& operator+=(const CopyCount& other) {
    tokens += other.tokens;
    copies += other.copies;
    cross_node += other.cross_node;
    return *this;
  }
};

// One layer, by the workers' own dispatch (quotas.h). `experts` is [tokens][top_k], `samples` [tokens]: the sample each
// token belongs to, which is at home on worker sample mod workers. A token whose expert the table lacks goes nowhere
// for it.
CopyCount CountCopies(const DispatchTable& layer, const Topology& topology, int32_t top_k,
                      std::span<const int32_t> experts, std::span<const int64_t> samples);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_COPIES_H_
