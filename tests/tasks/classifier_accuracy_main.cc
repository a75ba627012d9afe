// How well workers tell the task of unlabelled prompts, on recorded routes: a folder with a file routes_TASK.csv.gz for
// each task, as `ballastctl trace record` writes them. Of every second sample of a task, in the order of their numbers,
// the tokens make its profile; the others are prompts whose task is to be told, by as many of their first tokens as
// each line says.
//
// Printed: the part of the prompts that are taken for a task, and the part of these that are of it; that part without a
// threshold; the part of prompts taken for some task where their own has no profile; and by how much certainty and
// truth differ (expected calibration error, ten bins; Guo et al., "On Calibration of Modern Neural Networks", ICML
// 2017). Tasks count the same.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "controller/formats/load_file.h"
#include "proto/base/flags.h"
#include "proto/base/status_macros.h"
#include "worker/telemetry/task_classifier.h"

namespace ballast {
namespace {

struct Options {
  std::string routes;
  std::vector<double> confidences = {.9, .99};
  std::vector<int> tokens = {8, 16, 32, 64, 256};
};

struct Task {
  std::string name;
  // [layers][experts], of the planned samples.
  std::vector<uint32_t> profile;
  // Held out: [tokens][layers][top_k] each.
  std::vector<std::vector<int32_t>> prompts;
};

struct Recorded {
  int32_t layers = 0;
  int32_t experts = 0;
  int32_t top_k = 0;
  std::vector<Task> tasks;
};

absl::StatusOr<Recorded> Read(const std::string& folder) {
  Recorded out;
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().filename().string().rfind("routes_", 0) == 0) paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) return absl::NotFoundError(absl::StrCat("--routes ", folder, " has no file routes_TASK.csv.gz"));
  std::vector<RouteTrace> traces;
  for (const std::string& path : paths) {
    BALLAST_ASSIGN_OR_RETURN(LoadFile file, ReadLoad(path));
    const std::string name = std::filesystem::path(path).filename().string();
    out.tasks.push_back({.name = name.substr(7, name.find('.') - 7), .profile = {}, .prompts = {}});
    out.experts = std::max(out.experts, file.parts[0].load.experts);
    out.top_k = file.routes.top_k;
    traces.push_back(std::move(file.routes));
  }
  for (size_t f = 0; f < traces.size(); ++f) {
    const RouteTrace& trace = traces[f];
    std::vector<size_t> rows;
    for (size_t row = 0; row < trace.experts.size(); ++row) {
      if (!trace.experts[row].empty()) rows.push_back(row);
    }
    const auto layers = static_cast<int32_t>(rows.size());
    if (trace.top_k != out.top_k || (out.layers != 0 && layers != out.layers)) {
      return absl::InvalidArgumentError(absl::StrCat(paths[f], " has other layers or experts a token"));
    }
    out.layers = layers;
    Task& task = out.tasks[f];
    task.profile.resize(static_cast<size_t>(layers) * out.experts);
    std::map<int64_t, std::vector<size_t>> samples;
    for (size_t t = 0; t < trace.samples[rows[0]].size(); ++t) samples[trace.samples[rows[0]][t]].push_back(t);
    bool planned = true;
    for (const auto& [sample, tokens] : samples) {
      std::vector<int32_t> prompt;
      for (const size_t t : tokens) {
        for (int32_t l = 0; l < layers; ++l) {
          for (int32_t k = 0; k < out.top_k; ++k) {
            const int32_t expert = trace.experts[rows[l]][t * out.top_k + k];
            prompt.push_back(expert);
            if (planned) ++task.profile[static_cast<size_t>(l) * out.experts + expert];
          }
        }
      }
      if (!planned) task.prompts.push_back(std::move(prompt));
      planned = !planned;
    }
  }
  return out;
}

// Of all tasks but `without`.
absl::StatusOr<ProfileTable> Table(const Recorded& recorded, const Task* without) {
  v1::TaskProfiles profiles;
  for (const Task& task : recorded.tasks) {
    if (&task == without) continue;
    v1::TaskProfile& profile = *profiles.add_tasks();
    profile.set_task(task.name);
    profile.mutable_tokens()->Assign(task.profile.begin(), task.profile.end());
  }
  return ProfileTable::Create(profiles, recorded.layers, recorded.experts);
}

absl::Status Run(const Options& options) {
  BALLAST_ASSIGN_OR_RETURN(const Recorded recorded, Read(options.routes));
  BALLAST_ASSIGN_OR_RETURN(const ProfileTable table, Table(recorded, nullptr));
  std::printf("%s: %zu tasks, %d layers of %d experts, %d a token; prompts", options.routes.c_str(),
              recorded.tasks.size(), recorded.layers, recorded.experts, recorded.top_k);
  for (const Task& task : recorded.tasks) std::printf(" %s %zu", task.name.c_str(), task.prompts.size());
  std::printf("\n%8s %8s", "tokens", "nearest");
  for (const double confidence : options.confidences) {
    std::printf("  | %6s %7s %7s %7s", absl::StrCat(">=", confidence).c_str(), "taken", "right", "unknown");
  }
  std::printf("  | %7s\n", "off by");
  const double part = 1 / static_cast<double>(recorded.tasks.size());
  for (const int tokens : options.tokens) {
    double nearest = 0;
    std::vector<double> taken(options.confidences.size()), right(taken.size()), unknown(taken.size());
    std::vector<double> certain(10), true_(10);
    for (const Task& task : recorded.tasks) {
      BALLAST_ASSIGN_OR_RETURN(const ProfileTable others, Table(recorded, &task));
      const double each = part / static_cast<double>(task.prompts.size());
      for (const std::vector<int32_t>& prompt : task.prompts) {
        const size_t most = static_cast<size_t>(tokens) * recorded.layers * recorded.top_k;
        const auto routes = std::span(prompt).first(std::min(prompt.size(), most));
        const Classification told = table.Classify(routes, recorded.top_k, 0);
        const double strange = others.Classify(routes, recorded.top_k, 0).confidence;
        const bool is_right = told.task == task.name;
        nearest += is_right ? each : 0;
        for (size_t c = 0; c < options.confidences.size(); ++c) {
          if (told.confidence >= options.confidences[c]) taken[c] += each;
          if (told.confidence >= options.confidences[c] && is_right) right[c] += each;
          if (strange >= options.confidences[c]) unknown[c] += each;
        }
        const auto bin = std::min<size_t>(9, static_cast<size_t>(told.confidence * 10));
        certain[bin] += each * told.confidence;
        true_[bin] += is_right ? each : 0;
      }
    }
    std::printf("%8d %8.3f", tokens, nearest);
    for (size_t c = 0; c < options.confidences.size(); ++c) {
      std::printf("  | %6s %7.3f %7.3f %7.3f", "", taken[c], taken[c] > 0 ? right[c] / taken[c] : 0, unknown[c]);
    }
    double off = 0;
    for (size_t bin = 0; bin < certain.size(); ++bin) off += std::abs(certain[bin] - true_[bin]);
    std::printf("  | %7.3f\n", off);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  ballast::Options options;
  CLI::App app("Tells the task of recorded prompts by their routes.", "classifier_accuracy");
  app.add_option("--routes", options.routes, "Folder of routes_TASK.csv.gz")->required();
  app.add_option("--confidence", options.confidences, "As the worker's --classify-tasks")->capture_default_str();
  app.add_option("--tokens", options.tokens, "Tokens of a prompt that are looked at")->capture_default_str();
  if (const auto status = ballast::ParseFlags(app, argc, argv)) return *status;
  if (const absl::Status status = ballast::Run(options); !status.ok()) {
    std::fprintf(stderr, "classifier_accuracy: %s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
