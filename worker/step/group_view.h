// A view of the group as the step thread needs it.
#ifndef BALLAST_WORKER_STEP_GROUP_VIEW_H_
#define BALLAST_WORKER_STEP_GROUP_VIEW_H_

#include <cstdint>
#include <string>
#include <vector>

#include "proto/base/ids.h"

namespace ballast {

struct GroupMember {
  // Name in placements.
  std::string worker;
  Incarnation incarnation;
  // host:port for peers' data connections.
  std::string data_address;
  // Links inside a node are fast; empty counts as one node.
  std::string node;
  // Relative, at least 1: traffic shares are solved for it.
  uint32_t speed = 1;
};

// Numbered membership. Rank 0 leads: it announces the steps.
struct GroupView {
  ViewId view;
  // By rank, at least one.
  std::vector<GroupMember> members;
  // This worker's place among them.
  int32_t rank = 0;

  int32_t size() const { return static_cast<int32_t>(members.size()); }
  bool leads() const { return rank == 0; }
};

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_GROUP_VIEW_H_
