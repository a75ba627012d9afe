// Where the traffic shares of a layer come from in a step.
#ifndef BALLAST_WORKER_MOE_SHARE_FORM_H_
#define BALLAST_WORKER_MOE_SHARE_FORM_H_

#include <cstdint>

namespace ballast {

enum class ShareForm : uint8_t {
  // The placement's weights.
  kFixed = 0,
  // Solved for the counts of the step before: nothing more is sent.
  kPrevious = 1,
  // Solved for this step's counts, which the ranks tell each other before they send rows.
  kCurrent = 2,
};
inline constexpr int kShareForms = 3;

// What a step is announced to do in a layer.
struct LayerShares {
  ShareForm form = ShareForm::kFixed;
  // The ranks tell each other their counts with their rows, for whatever is solved or compared later. True with
  // kPrevious, which needs them in the next step; false with kCurrent, which has them already.
  bool counts = false;
  friend bool operator==(const LayerShares&, const LayerShares&) = default;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_SHARE_FORM_H_
