#include "controller/planner/grouping/routes.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

absl::Status ValidateTask(const Routes& routes, const TaskRoutes& task, std::vector<int64_t>& last_token) {
  if (!std::isfinite(task.weight) || task.weight <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("task ", task.name, ": weight ", task.weight, " is not above 0"));
  }
  if (static_cast<int32_t>(task.experts.size()) != routes.layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("task ", task.name, ": ", task.experts.size(), " layers, others have ", routes.layers));
  }
  int64_t token = 0;
  for (int32_t l = 0; l < routes.layers; ++l) {
    const std::vector<int32_t>& row = task.experts[l];
    if (row.size() % routes.top_k != 0) {
      return absl::InvalidArgumentError(absl::StrCat("task ", task.name, ", layer ", l, ": ", row.size(),
                                                     " experts are no multiple of top_k ", routes.top_k));
    }
    std::fill(last_token.begin(), last_token.end(), -1);
    for (size_t i = 0; i < row.size(); ++i) {
      token = static_cast<int64_t>(i / routes.top_k);
      const int32_t e = row[i];
      if (e == -1) continue;
      if (e < -1 || e >= routes.experts) {
        return absl::InvalidArgumentError(absl::StrCat("task ", task.name, ", layer ", l, ", token ", token,
                                                       ": expert ", e, " is not below ", routes.experts));
      }
      if (last_token[e] == token) {
        return absl::InvalidArgumentError(
            absl::StrCat("task ", task.name, ", layer ", l, ", token ", token, ": expert ", e, " twice"));
      }
      last_token[e] = token;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Routes& routes) {
  if (routes.layers < 1 || routes.experts < 1 || routes.top_k < 1) {
    return absl::InvalidArgumentError(absl::StrCat("routes of ", routes.layers, " layers, ", routes.experts,
                                                   " experts and top_k ", routes.top_k, ": each is at least 1"));
  }
  std::vector<int64_t> last_token(routes.experts);
  for (size_t f = 0; f < routes.tasks.size(); ++f) {
    if (absl::Status s = ValidateTask(routes, routes.tasks[f], last_token); !s.ok()) return s;
    for (size_t g = 0; g < f; ++g) {
      if (routes.tasks[f].name == routes.tasks[g].name) {
        return absl::InvalidArgumentError(absl::StrCat("task ", routes.tasks[f].name, ": two of that name"));
      }
    }
  }
  for (int32_t l = 0; l < routes.layers; ++l) {
    double weight = 0;
    for (const LayerRoutes::Task& task : LayerOf(routes, l).tasks) weight += task.weight;
    if (weight == 0) return absl::InvalidArgumentError(absl::StrCat("layer ", l, ": no task has tokens"));
  }
  return absl::OkStatus();
}

LayerRoutes LayerOf(const Routes& routes, int32_t layer) {
  LayerRoutes out;
  out.experts = routes.experts;
  out.top_k = routes.top_k;
  double sum = 0;
  for (const TaskRoutes& task : routes.tasks) {
    LayerRoutes::Task& t = out.tasks.emplace_back();
    t.experts = task.experts[layer];
    t.tokens = static_cast<int64_t>(t.experts.size()) / routes.top_k;
    for (const int32_t e : t.experts) t.pairs += e >= 0;
    t.weight = t.pairs > 0 ? task.weight : 0;
    sum += t.weight;
  }
  for (LayerRoutes::Task& t : out.tasks) t.weight = sum > 0 ? t.weight / sum : 0;
  return out;
}

std::vector<double> MixLoad(const LayerRoutes& layer) {
  std::vector<double> load(layer.experts);
  for (const LayerRoutes::Task& task : layer.tasks) {
    if (task.pairs == 0) continue;
    const double pair = task.weight / static_cast<double>(task.pairs);
    for (const int32_t e : task.experts) {
      if (e >= 0) load[e] += pair;
    }
  }
  return load;
}

std::vector<Scenario> LoadsByTask(const Routes& routes) {
  std::vector<Scenario> out;
  for (const TaskRoutes& task : routes.tasks) {
    Scenario& s = out.emplace_back(Scenario{task.name, task.weight, LoadMatrix(routes.layers, routes.experts)});
    for (int32_t l = 0; l < routes.layers; ++l) {
      const auto tokens = s.load.layer(l);
      for (const int32_t e : task.experts[l]) {
        if (e >= 0) ++tokens[e];
      }
    }
  }
  return out;
}

}  // namespace ballast
