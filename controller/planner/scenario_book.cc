#include "controller/planner/scenario_book.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"

namespace ballast {

double LoadDistance(const LoadMatrix& a, const LoadMatrix& b) {
  BALLAST_CHECK(a.layers == b.layers && a.experts == b.experts)
      << a.layers << " x " << a.experts << " and " << b.layers << " x " << b.experts;
  double sum = 0;
  int32_t layers = 0;
  for (int32_t l = 0; l < a.layers; ++l) {
    const auto x = a.layer(l);
    const auto y = b.layer(l);
    const double all_x = std::accumulate(x.begin(), x.end(), 0.0);
    const double all_y = std::accumulate(y.begin(), y.end(), 0.0);
    if (all_x == 0 || all_y == 0) continue;
    double distance = 0;
    double noise = 0;
    for (int32_t e = 0; e < a.experts; ++e) {
      const double p = x[e] / all_x;
      const double q = y[e] / all_y;
      distance += std::abs(p - q) / 2;
      // The mean absolute value of a normal variable of the difference's variance.
      noise += std::sqrt(2 / std::numbers::pi * (p / all_x + q / all_y)) / 2;
    }
    sum += std::max(0.0, distance - noise);
    ++layers;
  }
  return layers == 0 ? 0 : sum / layers;
}

void ScenarioBook::Add(const std::string& name, const LoadMatrix& tokens) {
  changed_.emplace(name, 0);
  const auto [at, added] = now_.try_emplace(name, tokens);
  LoadMatrix& now = at->second;
  if (!added) {
    BALLAST_CHECK(now.tokens.size() == tokens.tokens.size()) << tokens.tokens.size() << " tokens";
    for (int32_t l = 0; l < now.layers; ++l) {
      const auto old = now.layer(l);
      const auto fresh = tokens.layer(l);
      const double have = std::accumulate(old.begin(), old.end(), 0.0);
      const double come = std::accumulate(fresh.begin(), fresh.end(), 0.0);
      const double room = std::max(0.0, options_.memory_tokens - come);
      const double keep = have > room ? room / have : 1;
      for (int32_t e = 0; e < now.experts; ++e) old[e] = old[e] * keep + fresh[e];
    }
  }
  const auto tokens_of = [](const LoadMatrix& m) { return std::accumulate(m.tokens.begin(), m.tokens.end(), 0.0); };
  for (Kept& k : kept_) {
    if (k.name != name || LoadDistance(k.load, now) >= options_.distinct) continue;
    // A first look is a noisy one.
    if (tokens_of(k.load) < tokens_of(now)) {
      k.load = now;
      changed_.emplace(name, k.number);
    }
    return;
  }
  Keep(name, now);
}

void ScenarioBook::Keep(const std::string& name, const LoadMatrix& load) {
  if (options_.kept <= 0) return;
  if (static_cast<int32_t>(kept_.size()) == options_.kept) {
    // Of the two that are most alike the older one goes; what is alike serves as well.
    size_t drop = 0;
    double least = 2;
    for (size_t i = 0; i < kept_.size(); ++i) {
      for (size_t j = i + 1; j < kept_.size(); ++j) {
        const double distance = LoadDistance(kept_[i].load, kept_[j].load);
        if (distance < least) {
          least = distance;
          drop = i;
        }
      }
    }
    changed_.emplace(kept_[drop].name, kept_[drop].number);
    kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(drop));
  }
  kept_.push_back({name, ++last_number_, load});
  changed_.emplace(name, last_number_);
}

std::vector<ScenarioBook::Remembered> ScenarioBook::TakeChanges() {
  std::vector<Remembered> out;
  for (const auto& [name, number] : std::exchange(changed_, {})) {
    Remembered& changed = out.emplace_back(Remembered{name, number, std::nullopt});
    if (number == 0) {
      changed.load = now_.at(name);
      continue;
    }
    const auto kept = std::find_if(kept_.begin(), kept_.end(), [n = number](const Kept& k) { return k.number == n; });
    if (kept != kept_.end()) changed.load = kept->load;
  }
  return out;
}

void ScenarioBook::Restore(std::vector<Remembered> remembered) {
  BALLAST_CHECK(now_.empty() && kept_.empty()) << now_.size() << " loads";
  for (Remembered& r : remembered) {
    BALLAST_CHECK(r.load.has_value()) << r.name << " " << r.number;
    if (r.number == 0) {
      now_.emplace(r.name, *std::move(r.load));
    } else {
      kept_.push_back({r.name, r.number, *std::move(r.load)});
      // The newest is never the one that is dropped.
      last_number_ = std::max(last_number_, r.number);
    }
  }
  std::sort(kept_.begin(), kept_.end(), [](const Kept& a, const Kept& b) { return a.number < b.number; });
  // A load that was kept has one of now; a store that lost it would be damaged.
  std::erase_if(kept_, [&](const Kept& k) { return !now_.contains(k.name); });
}

std::vector<Scenario> ScenarioBook::Scenarios() const {
  std::vector<Scenario> out;
  const auto burstiness = [this](const std::string& name) {
    const auto of = bursts_.find(name);
    return of == bursts_.end() ? std::vector<double>() : of->second.Burstiness();
  };
  for (const auto& [name, load] : now_) out.push_back({name, 1, load, burstiness(name)});
  for (const Kept& k : kept_) {
    const auto now = now_.find(k.name);
    if (LoadDistance(k.load, now->second) < options_.distinct) continue;
    out.push_back({absl::StrCat(k.name, "@", k.number), 1, k.load, burstiness(k.name)});
  }
  return out;
}

}  // namespace ballast
