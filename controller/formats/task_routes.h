// Routes by task, from loads whose files say what tokens chose.
#ifndef BALLAST_CONTROLLER_FORMATS_TASK_ROUTES_H_
#define BALLAST_CONTROLLER_FORMATS_TASK_ROUTES_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "controller/formats/load_file.h"
#include "controller/planner/grouping/routes.h"

namespace ballast {

// Layer l is row row_of_layer[l] of the files. Several loads are a task each, by name; of one load every file is, by
// the name of its part, files of one name together. Tasks have equal weights. InvalidArgument names the file where it
// has counts alone, another number of experts a token than the others, or what Validate refuses.
absl::StatusOr<Routes> MakeTaskRoutes(std::span<const NamedLoads> loads, std::span<const int32_t> row_of_layer,
                                      int32_t experts);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_TASK_ROUTES_H_
