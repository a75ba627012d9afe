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

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_SHARE_FORM_H_
