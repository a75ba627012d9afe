// Where the tokens of each task should start.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_HOMES_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_HOMES_H_

#include <span>
#include <vector>

#include "controller/planner/grouping/routes.h"
#include "controller/planner/topology.h"
#include "proto/placement/placement.h"
#include "proto/placement/quotas.h"

namespace ballast {

// [tasks][workers] copies that a token of the task saves which starts there, summed over layers: those in which it
// chooses an expert with a replica there. In the routes' order.
std::vector<std::vector<double>> CopiesSaved(std::span<const DispatchTable> layers, const Routes& routes,
                                             const Topology& topology);

// Homes of the routes' tasks on these layers' workers, sorted by task. A token that starts on a worker saves a copy in
// every layer in which it chooses an expert with a replica there (dispatch takes it if the shares allow). Every worker
// gets as many tokens of the mix as its speed says, in parts of an eighth of a worker (a quarter from 33 workers on,
// half from 65, all of it from 129), and of all such assignments of tasks' tokens to workers it is one that saves most
// copies (the greatest weighted matching). A task with less than half such a part starts where it saves most, which
// then gets that much more.
std::vector<TaskHomes> HomesOf(std::span<const DispatchTable> layers, const Routes& routes, const Topology& topology);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_HOMES_H_
