#include "controller/planner/drift.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "absl/strings/str_format.h"
#include "controller/planner/bursts.h"
#include "controller/planner/gate.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

constexpr int32_t kMostFruitless = 5;
// Beyond its mean: how far the sum over layers of what sampling shows may lie.
constexpr double kNoiseDeviations = 3;

// Of a layer with tokens: sums that are divided once all layers are in.
struct Excess {
  double busiest = 0;
  double level = 0;
  double noise = 0;
  double noise_variance = 0;
  double least = 0;
  bool missing = false;
};

class Measure {
 public:
  Measure(const Topology& topology, ShareMode shares, double dispersion)
      : topology_(topology), shares_(shares), dispersion_(dispersion) {
    for (const TopologyWorker& w : topology.workers) {
      speeds_.push_back(w.speed);
      speed_of_.push_back(w.speed);
      alike_ &= w.speed == topology.workers[0].speed;
    }
    speed_ = std::accumulate(speeds_.begin(), speeds_.end(), 0.0);
  }

  void Add(const DispatchTable& layer, std::span<const double> tokens, double burstiness, Excess& sum) const {
    const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
    if (total == 0) return;
    for (int32_t e = 0; e < layer.num_experts(); ++e) {
      sum.missing |= tokens[e] > 0 && layer.begin[e] == layer.begin[e + 1];
    }
    const double level = total / speed_;
    sum.level += level;
    sum.busiest += burstiness > 0 ? BusiestInStep(layer, tokens, speed_of_, burstiness) : Busiest(layer, tokens, level);
    const auto workers = static_cast<int32_t>(topology_.workers.size());
    const double noise = level * NoiseExcess(layer, tokens, topology_, dispersion_);
    // A maximum of D normal variables is about Gumbel distributed with scale deviation / sqrt(2 ln D).
    const double deviation = noise * std::numbers::pi / std::sqrt(6.0) / (2 * std::log(std::max(2, workers)));
    sum.noise += noise;
    sum.noise_variance += deviation * deviation;
    sum.least += alike_ ? level / UpperBound(tokens, layer.num_replicas(), workers) : level;
  }

 private:
  double Busiest(const DispatchTable& layer, std::span<const double> tokens, double level) const {
    if (shares_ == ShareMode::kFixed) {
      const std::vector<double> loads = WorkerLoads(layer, tokens, topology_);
      return *std::max_element(loads.begin(), loads.end());
    }
    ShareSolver solver(layer, static_cast<int32_t>(speeds_.size()),
                       alike_ ? std::span<const uint32_t>() : std::span<const uint32_t>(speeds_));
    const std::vector<int64_t> whole = ToIntegers(tokens);
    std::vector<int64_t> flow(layer.num_replicas());
    const auto busiest = static_cast<double>(solver.Solve(whole, flow));
    const auto sum = static_cast<double>(std::accumulate(whole.begin(), whole.end(), int64_t{0}));
    // Per unit of speed where speeds differ, per worker where they are alike.
    return level * busiest / (sum / (alike_ ? static_cast<double>(speeds_.size()) : speed_));
  }

  const Topology& topology_;
  const ShareMode shares_;
  const double dispersion_;
  std::vector<uint32_t> speeds_;
  std::vector<double> speed_of_;  // the same
  bool alike_ = true;
  double speed_ = 0;
};

Excess MeasureLoad(const std::vector<DispatchTable>& layers, const Scenario& scenario, const Measure& measure) {
  const LoadMatrix& load = scenario.load;
  BALLAST_CHECK(static_cast<int32_t>(layers.size()) == load.layers) << layers.size() << " layers placed";
  Excess sum;
  for (int32_t l = 0; l < load.layers; ++l) measure.Add(layers[l], load.layer(l), BurstinessOf(scenario, l), sum);
  return sum;
}

}  // namespace

double NoiseExcess(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology,
                   double dispersion) {
  const auto workers = static_cast<double>(topology.workers.size());
  double variance = 0;
  double speed = 0;
  double total = 0;
  for (const TopologyWorker& w : topology.workers) speed += w.speed;
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    total += tokens[e];
    double sum = 0;
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) sum += layer.weight[r];
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) {
      const double share = layer.weight[r] / sum / topology.workers[layer.rank[r]].speed;
      variance += dispersion * share * share * tokens[e];
    }
  }
  if (total == 0 || workers < 2) return 0;
  const double deviation = std::sqrt(2 * variance / workers);
  return deviation * std::sqrt(2 * std::log(workers)) / (total / speed);
}

DriftReport DetectDrift(const Placement& placement, const Topology& topology, std::span<const Scenario> scenarios,
                        std::span<const SettledScenario> settled, const DriftLimits& limits) {
  DriftReport report;
  const std::vector<DispatchTable> layers = Onto(placement, topology);
  const Measure measure(topology, limits.shares, limits.dispersion);
  for (const Scenario& s : scenarios) {
    const Excess sum = MeasureLoad(layers, s, measure);
    ScenarioDrift& out = report.scenarios.emplace_back();
    out.name = s.name;
    for (const SettledScenario& known : settled) {
      if (known.name == s.name) out.settled = known.excess;
    }
    if (sum.level > 0) {
      out.excess = sum.busiest / sum.level - 1;
      out.noise = (sum.noise + kNoiseDeviations * std::sqrt(sum.noise_variance)) / sum.level;
      out.unavoidable = sum.least / sum.level - 1;
      const double floor = std::max({out.noise, out.unavoidable, out.settled});
      out.gain = sum.missing ? 1 : std::max(0.0, 1 - (1 + floor) / (1 + out.excess));
    }
    if (out.gain > report.gain) {
      report.gain = out.gain;
      report.worst = static_cast<int32_t>(report.scenarios.size()) - 1;
    }
  }
  const double min_gain = limits.min_gain * (Bursty(scenarios) ? GateLimits::kOfGainInBursts : 1);
  report.drifted = report.worst >= 0 && report.gain >= min_gain;
  if (report.worst < 0) {
    report.reason = "the busiest workers have no more than chance and the placement leave them";
  } else {
    const ScenarioDrift& worst = report.scenarios[report.worst];
    report.reason = absl::StrFormat(
        "%s: the busiest workers have %.1f %% above level, of which noise explains %.1f, the plan in force %.1f and "
        "the "
        "replicas %.1f: %.1f %% to gain, %s %.1f",
        worst.name, 100 * worst.excess, 100 * worst.noise, 100 * worst.settled, 100 * worst.unavoidable,
        100 * worst.gain, report.drifted ? "at least" : "below", 100 * min_gain);
  }
  return report;
}

std::vector<SettledScenario> Settle(const Placement& placement, const Topology& topology,
                                    std::span<const Scenario> scenarios, ShareMode shares) {
  std::vector<SettledScenario> out;
  const std::vector<DispatchTable> layers = Onto(placement, topology);
  const Measure measure(topology, shares, 1);
  for (const Scenario& s : scenarios) {
    const Excess sum = MeasureLoad(layers, s, measure);
    out.push_back({s.name, sum.level == 0 ? 0 : sum.busiest / sum.level - 1});
  }
  return out;
}

double MeanGain(std::span<const SettledScenario> before, std::span<const SettledScenario> after) {
  BALLAST_CHECK(!before.empty() && before.size() == after.size()) << before.size() << " and " << after.size();
  double was = 0;
  double is = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    was += 1 + before[i].excess;
    is += 1 + after[i].excess;
  }
  return 1 - is / was;
}

double Dispersion(std::span<const LoadMatrix> samples) {
  double squares = 0;
  double cells = 0;
  for (size_t i = 1; i < samples.size(); ++i) {
    const LoadMatrix& a = samples[i - 1];
    const LoadMatrix& b = samples[i];
    for (int32_t l = 0; l < a.layers; ++l) {
      const auto before = a.layer(l);
      const auto after = b.layer(l);
      const double all_before = std::accumulate(before.begin(), before.end(), 0.0);
      const double all_after = std::accumulate(after.begin(), after.end(), 0.0);
      if (all_before == 0 || all_after == 0) continue;
      const double all = all_before + all_after;
      for (size_t e = 0; e < before.size(); ++e) {
        const double part = (before[e] + after[e]) / all;
        if (part == 0 || part == 1) continue;
        const double difference = before[e] / all_before - after[e] / all_after;
        // Of two binomial parts with the same expectation.
        squares += difference * difference / (part * (1 - part) * (1 / all_before + 1 / all_after));
        ++cells;
      }
    }
  }
  return cells == 0 ? 1 : squares / cells;
}

ReplanDecision DecideReplan(const DriftReport& drift, const ReplanState& state, const ReplanLimits& limits) {
  if (!drift.drifted) return {false, drift.reason};
  const double hold_off =
      limits.hold_off_seconds * static_cast<double>(1 << std::clamp(state.fruitless, 0, kMostFruitless));
  if (state.seconds_since_plan < hold_off) {
    return {false, absl::StrFormat("the last plan was made %.0f s ago; none within %.0f s", state.seconds_since_plan,
                                   hold_off)};
  }
  return {true, drift.reason};
}

}  // namespace ballast
