// A set of plans as `plan --plans` prints it.
#ifndef BALLAST_CONTROLLER_CTL_PLAN_SET_TEXT_H_
#define BALLAST_CONTROLLER_CTL_PLAN_SET_TEXT_H_

#include <string>

#include "controller/ctl/context.h"
#include "controller/formats/plan_file.h"
#include "controller/planner/plan_set.h"

namespace ballast {

// `file` is what was made of `set` and written to `path`: the names.
void PrintPlanSet(const PlanSet& set, const PlanSetFile& file, const PlanSetOptions& options, const std::string& path,
                  CtlContext& context);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_PLAN_SET_TEXT_H_
