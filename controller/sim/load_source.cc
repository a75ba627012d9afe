#include "controller/sim/load_source.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// Every layer to a sum of 1, or all 0.
void Normalize(LoadMatrix& load) {
  for (int32_t l = 0; l < load.layers; ++l) {
    const auto layer = load.layer(l);
    const double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    for (double& t : layer) t = sum == 0 ? 0 : t / sum;
  }
}

absl::Status SameShape(const std::string& what, const LoadMatrix& load, const LoadMatrix& first) {
  if (load.layers >= 1 && load.experts >= 1 && load.layers == first.layers && load.experts == first.experts) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", load.layers, " layers of ", load.experts,
                                                 " experts; the first has ", first.layers, " of ", first.experts));
}

absl::Status HasSteps(const std::string& what, int64_t steps) {
  if (steps >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", steps, " steps; must be at least 1"));
}

}  // namespace

absl::StatusOr<DaySource> DaySource::Make(std::vector<DayPhase> phases, int64_t day_steps, double sharpness) {
  if (phases.empty()) return absl::InvalidArgumentError("phases: none; at least one is needed");
  if (absl::Status status = HasSteps("day", day_steps); !status.ok()) return status;
  for (DayPhase& phase : phases) {
    const std::string what = absl::StrCat("phase ", phase.name);
    if (absl::Status status = HasSteps(what, phase.steps); !status.ok()) return status;
    if (phase.loads.empty()) return absl::InvalidArgumentError(absl::StrCat(what, ": has no load"));
    for (LoadMatrix& load : phase.loads) {
      if (absl::Status status = SameShape(what, load, phases[0].loads[0]); !status.ok()) return status;
      Normalize(load);
    }
  }
  return DaySource(std::move(phases), day_steps, sharpness);
}

const DayPhase& DaySource::PhaseOf(int64_t step) const {
  int64_t round = 0;
  for (const DayPhase& phase : phases_) round += phase.steps;
  int64_t at = step % round;
  for (const DayPhase& phase : phases_) {
    if (at < phase.steps) return phase;
    at -= phase.steps;
  }
  return phases_.back();
}

void DaySource::Parts(int64_t step, LoadMatrix& parts) const {
  const DayPhase& phase = PhaseOf(step);
  const auto count = static_cast<double>(phase.loads.size());
  const double day = static_cast<double>(step) / static_cast<double>(day_steps_);
  std::vector<double> weights;
  for (size_t i = 0; i < phase.loads.size(); ++i) {
    const double angle = 2 * std::numbers::pi * (day - static_cast<double>(i) / count);
    weights.push_back(std::pow(1 + std::cos(angle), sharpness_));
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::fill(parts.tokens.begin(), parts.tokens.end(), 0);
  for (size_t i = 0; i < weights.size(); ++i) {
    const double weight = sum == 0 ? 1 / count : weights[i] / sum;
    for (size_t k = 0; k < parts.tokens.size(); ++k) parts.tokens[k] += weight * phase.loads[i].tokens[k];
  }
}

TraceSource::TraceSource(std::vector<Window> windows) : windows_(std::move(windows)) {
  int64_t end = 0;
  for (const Window& window : windows_) ends_.push_back(end += window.steps);
}

absl::StatusOr<TraceSource> TraceSource::Make(std::vector<Window> windows) {
  if (windows.empty()) return absl::InvalidArgumentError("windows: none; at least one is needed");
  for (size_t i = 0; i < windows.size(); ++i) {
    const std::string what = absl::StrCat("window ", i);
    if (absl::Status status = HasSteps(what, windows[i].steps); !status.ok()) return status;
    if (absl::Status status = SameShape(what, windows[i].load, windows[0].load); !status.ok()) return status;
    Normalize(windows[i].load);
  }
  return TraceSource(std::move(windows));
}

const TraceSource::Window& TraceSource::WindowOf(int64_t step) const {
  const int64_t at = step % ends_.back();
  return windows_[std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin()];
}

void TraceSource::Parts(int64_t step, LoadMatrix& parts) const { parts.tokens = WindowOf(step).load.tokens; }

void ZipfSource::Parts(int64_t step, LoadMatrix& parts) const {
  const int32_t experts = options_.experts;
  std::vector<double> popularity(experts);
  for (int32_t r = 0; r < experts; ++r) popularity[r] = std::pow(r + 1, -options_.exponent);
  const double sum = std::accumulate(popularity.begin(), popularity.end(), 0.0);
  std::vector<int32_t> rank(experts);
  for (int32_t l = 0; l < options_.layers; ++l) {
    std::mt19937_64 random(options_.seed * 1'000'003 + static_cast<uint64_t>(l));
    const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint64_t>(n)); };
    const auto swap_two = [&] {
      const int32_t a = below(experts);
      std::swap(rank[a], rank[below(experts)]);
    };
    std::iota(rank.begin(), rank.end(), 0);
    for (int32_t i = experts - 1; i > 0; --i) std::swap(rank[i], rank[below(i + 1)]);
    // All that has happened up to this step, in order.
    int64_t jumps = 0;
    for (int64_t at = options_.swap_every; at <= step; at += options_.swap_every) {
      if (options_.jump_every > 0 && at / options_.jump_every > jumps) {
        jumps = at / options_.jump_every;
        for (int32_t i = 0; i < experts / 4; ++i) swap_two();
      }
      swap_two();
    }
    for (int32_t e = 0; e < experts; ++e) parts.layer(l)[e] = popularity[rank[e]] / sum;
  }
}

}  // namespace ballast
