#include "worker/step/share_chooser.h"

#include <algorithm>
#include <limits>

#include "proto/base/check.h"

namespace ballast {
namespace {

double Cost(const ShareCosts& costs, ShareForm form) {
  constexpr double kUnknown = std::numeric_limits<double>::infinity();
  switch (form) {
    case ShareForm::kFixed:
      return 0;
    case ShareForm::kPrevious:
      return costs.solve < 0 ? kUnknown : costs.solve;
    case ShareForm::kCurrent:
      return costs.solve < 0 || costs.exchange < 0 ? kUnknown : costs.solve + costs.exchange;
  }
  return kUnknown;
}

}  // namespace

std::optional<ShareMode> ParseShareMode(std::string_view name) {
  if (name == "auto") return ShareMode::kAuto;
  if (name == "current") return ShareMode::kCurrent;
  if (name == "previous") return ShareMode::kPrevious;
  if (name == "fixed") return ShareMode::kFixed;
  return std::nullopt;
}

double NetGain(const ShareForecast& forecast, const ShareCosts& costs, ShareForm form) {
  const double busiest = form == ShareForm::kFixed      ? forecast.fixed
                         : form == ShareForm::kPrevious ? forecast.previous
                                                        : forecast.current;
  return (forecast.fixed - busiest) * costs.per_pair - Cost(costs, form);
}

ShareForm ChooseForm(const ShareForecast& forecast, const ShareCosts& costs, ShareForm now) {
  ShareForm best = ShareForm::kFixed;
  for (const ShareForm form : {ShareForm::kPrevious, ShareForm::kCurrent}) {
    if (NetGain(forecast, costs, form) > NetGain(forecast, costs, best)) best = form;
  }
  const double kept = NetGain(forecast, costs, now);
  if (kept < 0) return best;
  const double margin = kShareHysteresis * std::max(Cost(costs, best), Cost(costs, now));
  return NetGain(forecast, costs, best) - kept > margin ? best : now;
}

void ShareChooser::Cost::Add(double seconds) { last_[count_++ % kCostSamples] = seconds; }

double ShareChooser::Cost::Median() const {
  if (count_ == 0) return -1;
  std::array<double, kCostSamples> sorted = last_;
  const int n = static_cast<int>(std::min<int64_t>(count_, kCostSamples));
  std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.begin() + n);
  return sorted[n / 2];
}

ShareChooser::ShareChooser(ShareMode mode, int num_layers) : mode_(mode), num_layers_(num_layers) { Enter(); }

void ShareChooser::Enter() {
  for (Phase& phase : phases_) {
    phase = Phase();
    phase.layers.resize(num_layers_);
  }
  step_ = 0;
  next_layer_ = 0;
}

void ShareChooser::Flip() {
  for (Phase& phase : phases_) phase.layers.assign(num_layers_, Layer());
}

bool ShareChooser::Choose(TokenPhase of, const std::function<bool(int)>& shared, std::span<ShareForm> forms) {
  BALLAST_CHECK(static_cast<int>(forms.size()) == num_layers_) << forms.size() << " forms";
  ++step_;
  Phase& phase = phases_[static_cast<int>(of)];
  const ShareCosts costs{
      .per_pair = phase.per_pair, .solve = phase.solve.Median(), .exchange = phase.exchange.Median()};
  bool any_shared = false;
  bool any_current = false;
  int probe = -1;
  double probe_gain = 0;
  for (int l = 0; l < num_layers_; ++l) {
    Layer& layer = phase.layers[l];
    forms[l] = ShareForm::kFixed;
    if (!shared(l)) continue;
    any_shared = true;
    switch (mode_) {
      case ShareMode::kAuto:
        if (layer.compared) layer.form = ChooseForm(layer.forecast, costs, layer.form);
        forms[l] = layer.form;
        break;
      case ShareMode::kCurrent:
        forms[l] = ShareForm::kCurrent;
        break;
      case ShareMode::kPrevious:
        forms[l] = ShareForm::kPrevious;
        break;
      case ShareMode::kFixed:
        break;
    }
    any_current |= forms[l] == ShareForm::kCurrent;
    // What the exchange would have to cost less than.
    const double gain =
        NetGain(layer.forecast, {.per_pair = costs.per_pair, .solve = costs.solve, .exchange = 0}, ShareForm::kCurrent);
    if (layer.compared && gain > probe_gain) {
      probe = l;
      probe_gain = gain;
    }
  }
  if (mode_ == ShareMode::kAuto && !any_current && probe >= 0 &&
      (!phase.exchanged || step_ - phase.last_exchange >= kProbeSteps)) {
    forms[probe] = ShareForm::kCurrent;
  }
  return any_shared && (mode_ == ShareMode::kAuto || mode_ == ShareMode::kPrevious);
}

int ShareChooser::LayerToCompare(const std::function<bool(int)>& shared) {
  if (mode_ != ShareMode::kAuto) return -1;
  for (int i = 0; i < num_layers_; ++i) {
    const int layer = next_layer_;
    next_layer_ = (next_layer_ + 1) % num_layers_;
    if (shared(layer)) return layer;
  }
  return -1;
}

void ShareChooser::Observe(const ShareObservation& observation) {
  Phase& phase = phases_[static_cast<int>(observation.phase)];
  if (observation.exchange >= 0) {
    phase.exchange.Add(observation.exchange);
    phase.exchanged = true;
    phase.last_exchange = step_;
  }
  if (observation.solve >= 0) phase.solve.Add(observation.solve);
  const auto move = [](double to, bool first, double& mean) {
    mean = first ? to : mean + (to - mean) / kForecastSteps;
  };
  if (observation.per_pair > 0) move(observation.per_pair, phase.per_pair == 0, phase.per_pair);
  if (observation.layer < 0) return;
  Layer& layer = phase.layers[observation.layer];
  move(observation.comparison.fixed, !layer.compared, layer.forecast.fixed);
  move(observation.comparison.previous, !layer.compared, layer.forecast.previous);
  move(observation.comparison.current, !layer.compared, layer.forecast.current);
  layer.compared = true;
}

}  // namespace ballast
