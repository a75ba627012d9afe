#include "controller/planner/objective.h"

#include <cmath>
#include <numeric>

#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr double kExponent = 16;

}  // namespace

Objective::Objective(std::span<const Scenario> scenarios, const Topology& topology) {
  double speed = 0;
  for (const TopologyWorker& w : topology.workers) speed += w.speed;
  double sum = 0;
  for (const Scenario& s : scenarios) {
    level_.push_back(std::accumulate(s.load.tokens.begin(), s.load.tokens.end(), 0.0) / speed);
    weight_.push_back(level_.back() > 0 ? s.weight : 0);
    sum += weight_.back();
  }
  for (double& w : weight_) w = sum > 0 ? w / sum : 0;
}

double Objective::Of(std::span<const double> busiest) const {
  BALLAST_CHECK(busiest.size() == level_.size()) << busiest.size() << " scenarios";
  double worst = 0;
  for (size_t s = 0; s < level_.size(); ++s) {
    if (level_[s] > 0) worst = std::max(worst, busiest[s] / level_[s]);
  }
  if (worst == 0) return 1;
  double sum = 0;
  for (size_t s = 0; s < level_.size(); ++s) {
    if (level_[s] > 0) sum += weight_[s] * std::pow(busiest[s] / level_[s] / worst, kExponent);
  }
  return worst * std::pow(sum, 1 / kExponent);
}

std::vector<double> Objective::Slopes(std::span<const double> busiest) const {
  const double mean = Of(busiest);
  std::vector<double> slopes;
  for (size_t s = 0; s < level_.size(); ++s) {
    slopes.push_back(level_[s] > 0 ? weight_[s] * std::pow(busiest[s] / level_[s] / mean, kExponent - 1) / level_[s]
                                   : 0);
  }
  return slopes;
}

}  // namespace ballast
