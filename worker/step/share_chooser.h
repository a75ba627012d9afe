// Decides, on the leader of a view, where the traffic shares of each layer come from in the next step: the form whose
// predicted gain over the fixed shares exceeds its measured cost the most. Pure: measurements in, forms out.
#ifndef BALLAST_WORKER_STEP_SHARE_CHOOSER_H_
#define BALLAST_WORKER_STEP_SHARE_CHOOSER_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "worker/moe/load_counters.h"
#include "worker/moe/share_form.h"
#include "worker/moe/step_shares.h"

namespace ballast {

enum class ShareMode {
  // By gain and cost.
  kAuto,
  // Always the one form, in every layer that has something to share.
  kCurrent,
  kPrevious,
  kFixed,
};

// "auto", "current", "previous", "fixed"; nothing for anything else.
std::optional<ShareMode> ParseShareMode(std::string_view name);

// Of one layer in one phase: pairs on the busiest rank by each form.
struct ShareForecast {
  double fixed = 0;
  double previous = 0;
  double current = 0;
};

// Seconds; a cost below 0 has not been measured.
struct ShareCosts {
  // What a pair takes the busiest rank's experts.
  double per_pair = 0;
  // Solving a layer's shares.
  double solve = -1;
  // Telling each other a layer's counts.
  double exchange = -1;
};

// What `form` gains over fixed shares in a step, less what it costs, in seconds; kFixed: 0. Minus infinity where a cost
// has not been measured.
double NetGain(const ShareForecast& forecast, const ShareCosts& costs, ShareForm form);

// The form for a layer that runs in `now`. Never one whose cost exceeds its gain. Between forms that pay, `now` stays
// until another's net gain is better by kShareHysteresis of the larger of both costs: a difference that noise does not
// make.
inline constexpr double kShareHysteresis = 0.25;
ShareForm ChooseForm(const ShareForecast& forecast, const ShareCosts& costs, ShareForm now);

// What the leader saw of a step that has ended.
struct ShareObservation {
  // The phase that Choose was called with.
  TokenPhase phase = TokenPhase::kPrefill;
  // Seconds a layer; below 0: not measured in this step.
  double exchange = -1;
  double solve = -1;
  // The layer that was compared (LayerToCompare), -1: none; by what, and what a pair took the busiest rank (0: not
  // known).
  int layer = -1;
  ShareComparison comparison;
  double per_pair = 0;
};

// One thread.
class ShareChooser {
 public:
  // In kAuto each step compares one layer, in turn. Forecasts are running means over so many comparisons; a cost is the
  // median of its last kCostSamples; while no layer runs with current shares, one does every kProbeSteps steps (if it
  // could gain anything), so that what the exchange costs is known.
  static constexpr double kForecastSteps = 8;
  static constexpr int kCostSamples = 8;
  static constexpr int64_t kProbeSteps = 256;

  ShareChooser(ShareMode mode, int num_layers);

  // A new view: forgets everything.
  void Enter();
  // Another placement, or other shares: forgets what each layer gains, and with that its form. Costs stay.
  void Flip();

  // The forms of the next step, [layers], for a step that is expected to be of `phase`. `shared`: whether the layer has
  // something to share; kFixed where not. Returns whether messages must carry counts.
  bool Choose(TokenPhase phase, const std::function<bool(int)>& shared, std::span<ShareForm> forms);
  // The layer to compare after this step; -1: none.
  int LayerToCompare(const std::function<bool(int)>& shared);
  void Observe(const ShareObservation& observation);

 private:
  class Cost {
   public:
    void Add(double seconds);
    double Median() const;

   private:
    std::array<double, kCostSamples> last_ = {};
    int64_t count_ = 0;
  };
  struct Layer {
    ShareForecast forecast;
    bool compared = false;
    ShareForm form = ShareForm::kFixed;
  };
  struct Phase {
    std::vector<Layer> layers;
    Cost exchange, solve;
    double per_pair = 0;
    int64_t last_exchange = 0;  // step_, when the exchange was measured
    bool exchanged = false;
  };

  const ShareMode mode_;
  const int num_layers_;
  std::array<Phase, kTokenPhases> phases_;
  int64_t step_ = 0;
  int next_layer_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_SHARE_CHOOSER_H_
