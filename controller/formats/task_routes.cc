#include "controller/formats/task_routes.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<Routes> MakeTaskRoutes(std::span<const NamedLoads> loads, std::span<const int32_t> row_of_layer,
                                      int32_t experts) {
  Routes routes{static_cast<int32_t>(row_of_layer.size()), experts, 0, {}};
  for (const NamedLoads& load : loads) {
    for (const LoadFile& file : load.files) {
      const std::string& name = loads.size() > 1 ? load.name : file.parts[0].name;
      const RouteTrace& trace = file.routes;
      if (trace.top_k == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("load ", name, " (", file.format, "): counts alone; what each token chose is needed"));
      }
      if (routes.top_k == 0) routes.top_k = trace.top_k;
      if (trace.top_k != routes.top_k) {
        return absl::InvalidArgumentError(
            absl::StrCat("load ", name, ": ", trace.top_k, " experts a token; others have ", routes.top_k));
      }
      auto task =
          std::find_if(routes.tasks.begin(), routes.tasks.end(), [&](const TaskRoutes& t) { return t.name == name; });
      if (task == routes.tasks.end()) {
        task = routes.tasks.insert(task, {name, 1, std::vector<std::vector<int32_t>>(row_of_layer.size())});
      }
      for (size_t l = 0; l < row_of_layer.size(); ++l) {
        const auto row = static_cast<size_t>(row_of_layer[l]);
        if (row >= trace.experts.size()) continue;
        task->experts[l].insert(task->experts[l].end(), trace.experts[row].begin(), trace.experts[row].end());
      }
    }
  }
  BALLAST_RETURN_IF_ERROR(Validate(routes));
  return routes;
}

}  // namespace ballast
