#ifndef BALLAST_WORKER_DAEMON_VIEWS_H_
#define BALLAST_WORKER_DAEMON_VIEWS_H_

#include <string>

#include "ballast/v1/common.pb.h"
#include "proto/placement/placement.h"
#include "worker/step/group_view.h"

namespace ballast {

// A view as the step engine takes it. REQUIRES: `own_name` is a member.
GroupView ToGroupView(const v1::View& view, const std::string& own_name);

// How many experts no member of the view has a replica of.
int CountMissing(const Placement& placement, const v1::View& view);

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_VIEWS_H_
