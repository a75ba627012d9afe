// What a group's gauges show beside what the group itself says.
#include "controller/service/gauges.h"

#include <algorithm>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "controller/group/group_harness.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

// The values of the series of `name` that have every one of `labels`, each like `layer="0"`.
std::vector<double> ValuesOf(const Metrics& metrics, const std::string& name, const std::vector<std::string>& labels) {
  std::vector<double> values;
  std::istringstream lines(metrics.Text());
  for (std::string line; std::getline(lines, line);) {
    if (!absl::StartsWith(line, name + "{")) continue;
    if (!std::all_of(labels.begin(), labels.end(), [&](const std::string& l) { return absl::StrContains(line, l); })) {
      continue;
    }
    values.push_back(std::stod(line.substr(line.rfind(' '))));
  }
  return values;
}

TEST(Gauges, LoadsOfWorkersAreWhatBalancednessIsMadeOf) {
  GroupHarness::Options options = GroupHarness::Small();
  options.speeds = {2, 2, 2, 4};
  GroupHarness h(options);
  h.FormGroup();
  h.LoadWindowSkewed();
  Metrics metrics(ControllerMetrics());
  Gauges gauges(metrics, /*top=*/0);
  gauges.Update(h.group(), h.now());
  for (int layer = 0; layer < options.layers; ++layer) {
    const std::vector<std::string> labels = {absl::StrCat("layer=\"", layer, "\""), "phase=\"decode\""};
    const std::vector<double> loads = ValuesOf(metrics, "ballast_worker_layer_load_ratio", labels);
    ASSERT_EQ(std::ssize(loads), options.workers);
    const std::vector<double> level =
        ValuesOf(metrics, "ballast_layer_balancedness_ratio", {labels[0], labels[1], std::string("task=\"*\"")});
    ASSERT_EQ(level.size(), 1u);
    EXPECT_NEAR(*std::max_element(loads.begin(), loads.end()) * level[0], 1, 1e-6) << "layer " << layer;
  }
  for (const char* of_loads : {"ballast_worker_layer_load_ratio", "ballast_layer_balancedness_ratio"}) {
    EXPECT_THAT(ValuesOf(metrics, of_loads, {"phase=\"prefill\""}), testing::IsEmpty()) << "nothing is not level";
  }
  // When the window has passed.
  h.Advance(absl::Minutes(10));
  gauges.Update(h.group(), h.now());
  for (const char* of_loads : {"ballast_worker_layer_load_ratio", "ballast_layer_balancedness_ratio"}) {
    EXPECT_THAT(ValuesOf(metrics, of_loads, {}), testing::IsEmpty());
  }
}

TEST(Gauges, TopLeavesTheLessLoadedWorkersOut) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.LoadWindowSkewed();
  Metrics metrics(ControllerMetrics());
  Gauges gauges(metrics, /*top=*/1);
  // What is hot changes, and what was shown before goes.
  for (const int hottest : {0, 5}) {
    for (int w = 0; w < GroupHarness::Small().workers; ++w) h.SendReport(w, 100'000, hottest);
    h.Run();
    gauges.Update(h.group(), h.now());
    Metrics every(ControllerMetrics());
    Gauges(every, /*top=*/0).Update(h.group(), h.now());
    for (int layer = 0; layer < GroupHarness::Small().layers; ++layer) {
      const std::vector<std::string> labels = {absl::StrCat("layer=\"", layer, "\"")};
      const std::vector<double> loads = ValuesOf(every, "ballast_worker_layer_load_ratio", labels);
      EXPECT_THAT(ValuesOf(metrics, "ballast_worker_layer_load_ratio", labels),
                  testing::ElementsAre(*std::max_element(loads.begin(), loads.end())));
    }
  }
}

TEST(Gauges, RolloutsAreCountedFromZero) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  Metrics metrics(ControllerMetrics());
  Gauges(metrics, /*top=*/0).Update(h.group(), h.now());
  for (const char* result : {"done", "aborted", "rollback"}) {
    EXPECT_THAT(ValuesOf(metrics, "ballast_rollouts_total", {absl::StrCat("result=\"", result, "\"")}),
                testing::ElementsAre(0));
  }
}

}  // namespace
}  // namespace ballast
