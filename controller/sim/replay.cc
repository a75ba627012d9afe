#include "controller/sim/replay.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr int64_t kHours = 24;

// One strategy's way through the day.
class Run {
 public:
  Run(Strategy& strategy, const Ground& ground, const ReplayOptions& options)
      : strategy_(strategy), ground_(ground), options_(options), hours_(kHours), hour_steps_(kHours) {
    result_.name = strategy.name();
    Install();
  }

  void Execute(int64_t step, const LoadMatrix& counts) {
    if (coming_.has_value() && step >= in_force_at_) {
      ground_.placement = *std::exchange(coming_, std::nullopt);
      Install();
    }
    const StepFigures figures = runner_->Run(counts);
    const int64_t hour = step * kHours / options_.steps;
    hours_[hour] += figures.balancedness;
    ++hour_steps_[hour];
    result_.balancedness += figures.balancedness;
    result_.step_microseconds += figures.microseconds * (coming_.has_value() ? 1 / (1 - options_.move_slowdown) : 1);
    ++executed_;
  }

  absl::Status Look(const Observed& observed) {
    auto plan = strategy_.Look(observed, ground_, coming_.has_value());
    if (!plan.ok()) {
      return absl::Status(plan.status().code(), absl::StrCat(strategy_.name(), ": ", plan.status().message()));
    }
    if (!plan->has_value()) return absl::OkStatus();
    BALLAST_CHECK(!coming_.has_value()) << strategy_.name();
    ++result_.plans;
    result_.moves += (*plan)->moves;
    result_.bytes += (*plan)->bytes;
    result_.moving_seconds += (*plan)->transfer.seconds;
    coming_ = std::move((*plan)->placement);
    in_force_at_ =
        observed.step + static_cast<int64_t>(std::ceil((*plan)->transfer.seconds / options_.seconds_per_step));
    return absl::OkStatus();
  }

  ReplayResult Finish() {
    const auto executed = static_cast<double>(executed_);
    result_.tokens_per_second =
        executed * static_cast<double>(options_.sample.tokens_per_step) / (result_.step_microseconds * 1e-6);
    result_.balancedness /= executed;
    result_.step_microseconds /= executed;
    result_.worst_hour = 1;
    for (int64_t h = 0; h < kHours; ++h) {
      if (hour_steps_[h] > 0) {
        result_.worst_hour = std::min(result_.worst_hour, hours_[h] / static_cast<double>(hour_steps_[h]));
      }
    }
    return std::move(result_);
  }

 private:
  void Install() { runner_.emplace(ground_.placement, ground_.topology, options_.cost, strategy_.split()); }

  Strategy& strategy_;
  Ground ground_;
  const ReplayOptions& options_;
  std::optional<StepRunner> runner_;
  std::optional<Placement> coming_;
  int64_t in_force_at_ = 0;
  ReplayResult result_;
  int64_t executed_ = 0;
  std::vector<double> hours_;
  std::vector<int64_t> hour_steps_;
};

}  // namespace

absl::StatusOr<std::vector<ReplayResult>> Replay(const LoadSource& source, const Ground& ground,
                                                 const ReplayOptions& options,
                                                 std::span<const std::unique_ptr<Strategy>> strategies) {
  BALLAST_CHECK(options.steps >= 1 && options.sample_every >= 1) << options.steps << " steps";
  std::vector<std::unique_ptr<Run>> runs;
  for (const auto& strategy : strategies) runs.push_back(std::make_unique<Run>(*strategy, ground, options));
  std::mt19937_64 random(options.seed);
  LoadMatrix parts(source.layers(), source.experts());
  LoadMatrix step_counts;
  LoadMatrix rest;
  LoadMatrix counts;
  for (int64_t step = 0; step < options.steps;) {
    // Telemetry is by phase, so steps that are counted together are of one.
    const std::string phase = source.phase(step);
    int64_t together = 1;
    while (together < options.sample_every && step + together < options.steps &&
           source.phase(step + together) == phase) {
      ++together;
    }
    source.Parts(step, parts);
    SampleCounts(parts, options.sample, 1, random, step_counts);
    for (const auto& run : runs) run->Execute(step, step_counts);
    counts = step_counts;
    if (together > 1) {
      SampleCounts(parts, options.sample, together - 1, random, rest);
      for (size_t i = 0; i < rest.tokens.size(); ++i) counts.tokens[i] += rest.tokens[i];
    }
    step += together;
    const Observed observed{.step = step,
                            .seconds_per_step = options.seconds_per_step,
                            .phase = phase,
                            .counts = counts,
                            .first_step = step_counts};
    for (const auto& run : runs) {
      if (absl::Status status = run->Look(observed); !status.ok()) return status;
    }
  }
  std::vector<ReplayResult> results;
  for (const auto& run : runs) results.push_back(run->Finish());
  return results;
}

}  // namespace ballast
