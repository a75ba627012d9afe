#include "controller/planner/load.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"

namespace ballast {

absl::Status Validate(std::span<const Scenario> scenarios) {
  constexpr double kMostTokens = 1e18;
  constexpr double kMostBurstiness = 1e6;
  if (scenarios.empty()) return absl::InvalidArgumentError("scenarios: 0; at least 1 is needed");
  const LoadMatrix& first = scenarios[0].load;
  std::set<std::string> names;
  for (const Scenario& s : scenarios) {
    const std::string where = absl::StrCat("scenario '", s.name, "': ");
    if (!names.insert(s.name).second) return absl::InvalidArgumentError(where + "named twice");
    if (!(s.weight > 0) || !std::isfinite(s.weight)) {
      return absl::InvalidArgumentError(absl::StrCat(where, "weight ", s.weight, " must be finite and above 0"));
    }
    if (s.load.layers < 1 || s.load.experts < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, s.load.layers, " layers of ", s.load.experts, " experts; both must be at least 1"));
    }
    if (s.load.layers != first.layers || s.load.experts != first.experts ||
        s.load.tokens.size() != static_cast<size_t>(s.load.layers) * s.load.experts) {
      return absl::InvalidArgumentError(absl::StrCat(where, s.load.layers, " layers of ", s.load.experts,
                                                     " experts with ", s.load.tokens.size(), " values; scenario '",
                                                     scenarios[0].name, "' has ", first.layers, " x ", first.experts));
    }
    if (!s.burstiness.empty() && std::ssize(s.burstiness) != s.load.layers) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, "burstiness of ", s.burstiness.size(), " layers; the load has ", s.load.layers));
    }
    for (size_t l = 0; l < s.burstiness.size(); ++l) {
      if (!(s.burstiness[l] >= 0) || s.burstiness[l] > kMostBurstiness) {
        return absl::InvalidArgumentError(absl::StrCat(where, "layer ", l, ": burstiness ", s.burstiness[l],
                                                       "; must be at least 0 and at most ", kMostBurstiness));
      }
    }
    for (size_t i = 0; i < s.load.tokens.size(); ++i) {
      const double t = s.load.tokens[i];
      if (!(t >= 0) || t > kMostTokens) {
        return absl::InvalidArgumentError(absl::StrCat(where, "layer ", i / s.load.experts, " expert ",
                                                       i % s.load.experts, ": ", t,
                                                       " tokens; must be finite, at least 0 and at most 1e18"));
      }
    }
  }
  return absl::OkStatus();
}

bool Bursty(std::span<const Scenario> scenarios) {
  return std::any_of(scenarios.begin(), scenarios.end(), [](const Scenario& s) {
    return std::any_of(s.burstiness.begin(), s.burstiness.end(), [](double b) { return b > 0; });
  });
}

LoadMatrix Blend(std::span<const Scenario> scenarios) {
  if (scenarios.size() == 1) return scenarios[0].load;
  LoadMatrix sum(scenarios[0].load.layers, scenarios[0].load.experts);
  for (const Scenario& s : scenarios) {
    for (int32_t l = 0; l < sum.layers; ++l) {
      const auto row = s.load.layer(l);
      const double total = std::accumulate(row.begin(), row.end(), 0.0);
      if (total == 0) continue;
      for (int32_t e = 0; e < sum.experts; ++e) sum.layer(l)[e] += s.weight * row[e] / total;
    }
  }
  return sum;
}

std::vector<int64_t> ToIntegers(std::span<const double> tokens) {
  std::vector<int64_t> out;
  ToIntegers(tokens, out);
  return out;
}

void ToIntegers(std::span<const double> tokens, std::vector<int64_t>& out) {
  constexpr double kScale = 1099511627776.0;  // 2^40
  const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  out.assign(tokens.size(), 0);
  if (total == 0) return;
  for (size_t e = 0; e < tokens.size(); ++e) out[e] = static_cast<int64_t>(tokens[e] / total * kScale + .5);
}

}  // namespace ballast
