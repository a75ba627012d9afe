#include "worker/telemetry/worker_metrics.h"

#include <fstream>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(WorkerMetricsTest, TableSaysTheSame) {
  std::ifstream file("dashboards/metrics.md");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_THAT(CompareWithTable(text.str(), "Worker", WorkerMetricDefs()), IsEmpty())
      << MetricsTable(WorkerMetricDefs());
}

TEST(WorkerMetricsTest, CountsWhatItIsTold) {
  WorkerMetrics metrics("w0", "g");
  MoeStepStats stats;
  stats.copies_node = 3;
  stats.route = absl::Milliseconds(2);
  metrics.StepEnded(5, 2, absl::Milliseconds(10), 4, stats);
  metrics.RequestEnded("chat", absl::StatusCode::kUnavailable);
  metrics.RequestRouted("chat", RequestRoute::kHome, "OK");
  metrics.RequestRouted("chat", RequestRoute::kSpilled, "came_back");
  metrics.RequestRouted("chat", RequestRoute::kNone, "OK");
  metrics.RequestClassified({.task = "code", .confidence = .97});
  metrics.RequestClassified({.confidence = .4});
  metrics.TokenTimes(absl::Milliseconds(3), -absl::InfiniteDuration());
  metrics.MoveBytes(100, 0);
  const std::string text = metrics.registry().Text();
  EXPECT_THAT(text, HasSubstr("ballast_worker_tokens_total{group=\"g\",phase=\"prefill\",worker=\"w0\"} 5"));
  EXPECT_THAT(text, HasSubstr("ballast_worker_tokens_total{group=\"g\",phase=\"decode\",worker=\"w0\"} 2"));
  EXPECT_THAT(text, HasSubstr("ballast_dispatch_copies_total{group=\"g\",link=\"node\"} 3"));
  EXPECT_THAT(text, HasSubstr("ballast_layer_duration_seconds_sum{group=\"g\",stage=\"route\"} 0.0005"));
  EXPECT_THAT(text, HasSubstr("ballast_layer_duration_seconds_count{group=\"g\",stage=\"share\"} 1"));
  EXPECT_THAT(text, HasSubstr("ballast_requests_total{group=\"g\",code=\"UNAVAILABLE\",task=\"chat\"} 1"));
  EXPECT_THAT(text,
              HasSubstr("ballast_requests_routed_total{group=\"g\",result=\"OK\",route=\"home\",task=\"chat\"} 1"));
  EXPECT_THAT(
      text,
      HasSubstr("ballast_requests_routed_total{group=\"g\",result=\"came_back\",route=\"spilled\",task=\"chat\"} 1"));
  EXPECT_THAT(text, HasSubstr("ballast_requests_classified_total{group=\"g\",task=\"code\"} 1"));
  EXPECT_THAT(text, HasSubstr("ballast_requests_classified_total{group=\"g\",task=\"\"} 1"));
  EXPECT_THAT(text, HasSubstr("ballast_classification_confidence_ratio_sum{group=\"g\"} 1.37"));
  EXPECT_THAT(text, HasSubstr("ballast_time_to_first_token_seconds_count{group=\"g\"} 1"));
  EXPECT_THAT(text, HasSubstr("ballast_time_per_output_token_seconds_count{group=\"g\"} 0"));
  EXPECT_THAT(text, HasSubstr("ballast_move_bytes_total{group=\"g\",source=\"peer\",worker=\"w0\"} 100"));
}

TEST(WorkerMetricsTest, TasksAreBounded) {
  WorkerMetrics metrics("w0", "g");
  for (size_t i = 0; i < WorkerMetrics::kMaxTasks + 5; ++i) {
    metrics.RequestEnded("t" + std::to_string(i), absl::StatusCode::kOk);
  }
  EXPECT_THAT(metrics.registry().Text(),
              HasSubstr("ballast_requests_total{group=\"g\",code=\"OK\",task=\"_other\"} 5"));
  EXPECT_THAT(metrics.registry().Text(), Not(HasSubstr("task=\"t64\"")));
}

}  // namespace
}  // namespace ballast
