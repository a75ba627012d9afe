// Recorded routes by task, for benchmarks: as `ballastctl trace record` writes them, or those of DeepSeek-V2-Lite,
// data/deepseek_v2_lite_routes of the folder that BALLAST_SHARED names.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_RECORDED_ROUTES_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_RECORDED_ROUTES_H_

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "controller/formats/load_file.h"
#include "controller/planner/grouping/routes.h"
#include "proto/base/check.h"

namespace ballast {

// Of every second sample of a task, in the order of their numbers, the tokens are planned for; the others are held out.
struct RouteSplit {
  Routes planned, held_out;
};

// `folder` holds a file routes_TASK.csv.gz for each task; every expert is some token's choice. `every`: 1, or every so
// many layers alone.
inline RouteSplit ReadRecordedRoutes(const std::string& folder, int32_t every) {
  RouteSplit out;
  std::set<std::string> tasks;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const size_t end = name.find(".csv.gz");
    if (name.rfind("routes_", 0) == 0 && end != std::string::npos) tasks.insert(name.substr(7, end - 7));
  }
  int32_t experts = 0;
  for (const std::string& task : tasks) {
    const auto file = ReadLoad(folder + "/routes_" + task + ".csv.gz");
    BALLAST_CHECK(file.ok()) << file.status();
    experts = std::max(experts, file->parts[0].load.experts);
    const RouteTrace& trace = file->routes;
    TaskRoutes parts[2] = {{task, 1, {}}, {task, 1, {}}};
    for (size_t row = 0; row < trace.experts.size(); ++row) {
      // Dense layers have no tokens; of the others the first, and every so many.
      if (trace.experts[row].empty()) continue;
      if (every > 1 && static_cast<int32_t>(row) % every != 1) continue;
      for (TaskRoutes& part : parts) part.experts.emplace_back();
      // Samples by their order: halves whatever their numbers.
      std::map<int64_t, int32_t> number;
      for (const int64_t s : std::set<int64_t>(trace.samples[row].begin(), trace.samples[row].end())) {
        number.emplace(s, static_cast<int32_t>(number.size()));
      }
      for (size_t t = 0; t < trace.samples[row].size(); ++t) {
        const auto token = trace.experts[row].begin() + static_cast<int64_t>(t) * trace.top_k;
        auto& to = parts[number.at(trace.samples[row][t]) % 2].experts.back();
        to.insert(to.end(), token, token + trace.top_k);
      }
    }
    Routes* const halves[] = {&out.planned, &out.held_out};
    for (int32_t half = 0; half < 2; ++half) {
      halves[half]->top_k = trace.top_k;
      halves[half]->layers = static_cast<int32_t>(parts[half].experts.size());
      halves[half]->tasks.push_back(std::move(parts[half]));
    }
  }
  for (Routes* routes : {&out.planned, &out.held_out}) {
    routes->experts = experts;
    const absl::Status status = Validate(*routes);
    BALLAST_CHECK(status.ok()) << status;
  }
  return out;
}

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_RECORDED_ROUTES_H_
