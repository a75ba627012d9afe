#include "controller/planner/gate.h"

#include "absl/strings/str_format.h"

namespace ballast {

GateDecision Decide(const GateInput& input, const GateLimits& limits) {
  GateDecision out;
  const double min_gain = limits.min_gain * (input.bursty ? GateLimits::kOfGainInBursts : 1);
  out.saved_seconds = limits.horizon_seconds * limits.moe_share * input.gain;
  out.cost_seconds =
      input.transfer_seconds * limits.move_slowdown + static_cast<double>(input.waves) * limits.seconds_per_wave;
  if (input.restores_experts) {
    out.worth = true;
    out.reason = "gives experts without a live replica one again";
  } else if (input.tokens_per_worker_layer < limits.min_tokens_per_worker_layer) {
    out.reason = absl::StrFormat(
        "%.0f tokens a worker and layer in the window; at least %.0f are needed to tell skew from "
        "chance",
        input.tokens_per_worker_layer, limits.min_tokens_per_worker_layer);
  } else if (input.gain < min_gain) {
    out.reason = absl::StrFormat("gain %.4f is below the threshold of %.4f", input.gain, min_gain);
  } else if (out.saved_seconds < limits.payback * out.cost_seconds) {
    out.reason =
        absl::StrFormat("saves %.3f s in %.0f s, below %.1f times its cost of %.3f s for %d moves", out.saved_seconds,
                        limits.horizon_seconds, limits.payback, out.cost_seconds, input.moves);
  } else {
    out.worth = true;
    out.reason = absl::StrFormat("gain %.4f saves %.3f s in %.0f s at a cost of %.3f s for %d moves", input.gain,
                                 out.saved_seconds, limits.horizon_seconds, out.cost_seconds, input.moves);
  }
  return out;
}

}  // namespace ballast
