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

int64_t ProbeSchedule::Next(int64_t interval, bool pays) {
  return pays || interval == 0 ? kLeast : std::min(2 * interval + 1, kMost);
}

int ProbeSchedule::Due(int64_t step, const std::function<bool(int)>& shared) const {
  int best = -1;
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (layers_[l].due > step || (best >= 0 && layers_[l].due >= layers_[best].due)) continue;
    if (shared(static_cast<int>(l))) best = static_cast<int>(l);
  }
  return best;
}

void ProbeSchedule::Looked(int layer, int64_t step, bool pays) {
  Layer& of = layers_[layer];
  of.interval = Next(of.interval, pays);
  of.due = step + of.interval;
}

ShareChooser::ShareChooser(ShareMode mode, int num_layers) : mode_(mode), num_layers_(num_layers) { Enter(); }

void ShareChooser::Enter() {
  phases_.assign(kTokenPhases, Phase(num_layers_));
  probe_ = {};
  step_ = 0;
}

void ShareChooser::Flip() {
  for (Phase& phase : phases_) {
    phase.layers.assign(num_layers_, Layer());
    phase.schedule = ProbeSchedule(num_layers_);
  }
  probe_ = {};
}

void ShareChooser::Choose(TokenPhase of, const std::function<bool(int)>& shared, std::span<LayerShares> shares) {
  BALLAST_CHECK(static_cast<int>(shares.size()) == num_layers_) << shares.size() << " layers";
  ++step_;
  Phase& phase = phases_[static_cast<int>(of)];
  phase.last_step = step_;
  const ShareCosts costs = phase.costs();
  bool any_current = false;
  for (int l = 0; l < num_layers_; ++l) {
    shares[l] = {};
    if (!shared(l)) continue;
    switch (mode_) {
      case ShareMode::kAuto: {
        Layer& layer = phase.layers[l];
        if (layer.compared) layer.form = ChooseForm(layer.forecast, costs, layer.form);
        shares[l].form = layer.form;
        for (const Phase& p : phases_) {
          shares[l].counts |= p.layers[l].form == ShareForm::kPrevious && step_ - p.last_step <= kPhasesMix;
        }
        break;
      }
      case ShareMode::kCurrent:
        shares[l].form = ShareForm::kCurrent;
        break;
      case ShareMode::kPrevious:
        shares[l] = {ShareForm::kPrevious, true};
        break;
      case ShareMode::kFixed:
        break;
    }
    any_current |= shares[l].form == ShareForm::kCurrent;
  }
  if (mode_ == ShareMode::kAuto) {
    if (probe_.layer >= 0 && !shared(probe_.layer)) probe_ = {};
    if (probe_.layer < 0) {
      if (const int due = phase.schedule.Due(step_, shared); due >= 0) {
        probe_ = {.layer = due, .phase = of, .steps_left = 2, .pays = false};
      }
    }
  }
  if (probe_.layer >= 0) {
    const Layer& layer = phase.layers[probe_.layer];
    // What the exchange would have to cost less than.
    const ShareCosts but_exchange{.per_pair = costs.per_pair, .solve = costs.solve, .exchange = 0};
    const bool could = layer.compared && NetGain(layer.forecast, but_exchange, ShareForm::kCurrent) > 0;
    const bool known = phase.exchanged && step_ - phase.last_exchange < kProbeSteps;
    shares[probe_.layer].counts = true;
    if (could && !known && !any_current) shares[probe_.layer].form = ShareForm::kCurrent;
  }
  for (LayerShares& of_layer : shares) of_layer.counts &= of_layer.form != ShareForm::kCurrent;
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
  const ShareComparison& seen = observation.comparison;
  Layer& layer = phase.layers[observation.layer];
  move(seen.fixed, !layer.compared, layer.forecast.fixed);
  move(seen.current, !layer.compared, layer.forecast.current);
  if (seen.previous_known) {
    move(seen.previous, !layer.compared_previous, layer.forecast.previous);
  } else if (!layer.compared_previous) {
    layer.forecast.previous = layer.forecast.fixed;
  }
  layer.compared = true;
  layer.compared_previous |= seen.previous_known;

  if (observation.layer != probe_.layer) return;
  // An exchange that was never measured may be free: looked at again soon, it will be known.
  ShareCosts costs = phase.costs();
  costs.exchange = std::max(0.0, costs.exchange);
  const ShareForecast fresh{seen.fixed, seen.previous_known ? seen.previous : seen.fixed, seen.current};
  if (observation.phase == probe_.phase) {
    probe_.pays |= layer.form != ShareForm::kFixed || ChooseForm(fresh, costs, ShareForm::kFixed) != ShareForm::kFixed;
  }
  if (--probe_.steps_left > 0) return;
  phases_[static_cast<int>(probe_.phase)].schedule.Looked(probe_.layer, step_, probe_.pays);
  probe_ = {};
}

}  // namespace ballast
