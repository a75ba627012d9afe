#ifndef BALLAST_WORKER_DECODER_MOE_LAYER_H_
#define BALLAST_WORKER_DECODER_MOE_LAYER_H_

#include "absl/status/status.h"

namespace ballast {

// What the decoder calls where the model has a MoE block: route, dispatch, experts, combine.
class MoeLayer {
 public:
  virtual ~MoeLayer() = default;

  // Computes MoE layer `moe_layer` (counted from 0 over the MoE layers alone) for the step's rows.
  //   hidden  [rows][H] f32, already normed       out  [rows][H] f32, the block's output without the residual; every
  //                                                    element is written
  // Called by the step thread for every MoE layer of a step, in order; rows may be 0 (the group needs this rank all the
  // same). An error ends the step: nothing of it may be committed.
  virtual absl::Status Run(int moe_layer, const float* hidden, int rows, float* out) = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_MOE_LAYER_H_
