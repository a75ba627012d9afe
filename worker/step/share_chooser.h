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

// When to look at which layer: a look costs counts in two steps' messages of the layer and a few solutions, so layers
// where nothing pays are looked at more and more seldom. By steps and not by time; pure but for its own state.
class ProbeSchedule {
 public:
  // Steps from a look to the next one. Odd, so that phases that take turns are all seen.
  static constexpr int64_t kLeast = 15;
  static constexpr int64_t kMost = 1023;
  // After a look: the least where something pays, otherwise about twice as many as before, up to the most.
  static int64_t Next(int64_t interval, bool pays);

  explicit ProbeSchedule(int num_layers) : layers_(num_layers) {}
  // The layer that has been due for longest at `step`, the first of several; -1: none is. `shared`: see ShareChooser.
  int Due(int64_t step, const std::function<bool(int)>& shared) const;
  void Looked(int layer, int64_t step, bool pays);

 private:
  struct Layer {
    int64_t due = 0;
    int64_t interval = 0;
  };
  std::vector<Layer> layers_;
};

// What the leader saw of a step that has ended.
struct ShareObservation {
  // The phase that Choose was called with.
  TokenPhase phase = TokenPhase::kPrefill;
  // Seconds a layer; below 0: not measured in this step.
  double exchange = -1;
  double solve = -1;
  // The layer that was compared (probe()), -1: none; by what, and what a pair took the busiest rank (0: not known).
  int layer = -1;
  ShareComparison comparison;
  double per_pair = 0;
};

// One thread.
class ShareChooser {
 public:
  // In kAuto one layer at a time is probed, as ProbeSchedule says: in two steps in a row its ranks tell each other
  // their counts, so that the second can say what the counts of the first would have been good for. Forecasts are
  // running means over so many comparisons; a cost is the median of its last kCostSamples. Where a layer could gain,
  // its probe runs with current shares if no layer does and what the exchange costs was not measured for kProbeSteps
  // steps.
  static constexpr double kForecastSteps = 8;
  static constexpr int kCostSamples = 8;
  static constexpr int64_t kProbeSteps = 256;

  ShareChooser(ShareMode mode, int num_layers);

  // A new view: forgets everything.
  void Enter();
  // Another placement, or other shares: forgets what each layer gains, and with that its form. Costs stay.
  void Flip();

  // What the next step does, [layers], if it is expected to be of `phase`. `shared`: whether the layer has something to
  // share; it is fixed, without counts, where not.
  void Choose(TokenPhase phase, const std::function<bool(int)>& shared, std::span<LayerShares> shares);
  // The layer to compare after this step; -1: none.
  int probe() const { return probe_.layer; }
  void Observe(const ShareObservation& observation);

 private:
  // A layer with previous shares in one phase needs the counts of the other's steps, too, while they take turns.
  static constexpr int64_t kPhasesMix = 16;

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
    bool compared_previous = false;
    ShareForm form = ShareForm::kFixed;
  };
  struct Phase {
    explicit Phase(int num_layers) : layers(num_layers), schedule(num_layers) {}
    std::vector<Layer> layers;
    ProbeSchedule schedule;
    Cost exchange, solve;
    double per_pair = 0;
    int64_t last_exchange = 0;  // step_, when the exchange was measured
    bool exchanged = false;
    int64_t last_step = -kPhasesMix - 1;
    ShareCosts costs() const { return {.per_pair = per_pair, .solve = solve.Median(), .exchange = exchange.Median()}; }
  };
  struct Probe {
    int layer = -1;
    TokenPhase phase = TokenPhase::kPrefill;  // that it was due in
    int steps_left = 0;
    bool pays = false;
  };

  const ShareMode mode_;
  const int num_layers_;
  std::vector<Phase> phases_;
  Probe probe_;
  int64_t step_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_SHARE_CHOOSER_H_
