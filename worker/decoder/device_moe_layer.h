#ifndef BALLAST_WORKER_DECODER_DEVICE_MOE_LAYER_H_
#define BALLAST_WORKER_DECODER_DEVICE_MOE_LAYER_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/status.h"

namespace ballast {

// What the GPU's decoder calls where the model has a MoE block: route, dispatch, experts, combine. MoeLayer, on a
// stream.
class DeviceMoeLayer {
 public:
  virtual ~DeviceMoeLayer() = default;

  // Enqueues MoE layer `moe_layer` (counted from 0 over the MoE layers alone) of the step's rows on `stream`.
  //   hidden  [rows][H] bf16, already normed      out  [rows][H] bf16, the block's output without the residual; every
  //                                                    element is written
  // Both are device memory, 16-byte aligned, with room for the decoder's max_rows, at the same places in every step;
  // they do not overlap. `out` is read by what is enqueued on the stream after. Called by the step thread for every MoE
  // layer of a step, in order; rows may be 0 (the group needs this rank all the same). An error ends the step: nothing
  // of it may be committed. An error that shows only when the stream gets there is the caller's of Forward to find.
  virtual absl::Status Run(int moe_layer, const void* hidden, int rows, void* out, cudaStream_t stream) = 0;

  // Waits for what is enqueued on the stream, no longer than the layer has to wait for its peers in a step: what it
  // says ends the step. After an error nothing is under way, unless the device does not answer.
  virtual absl::Status Await(cudaStream_t stream) { return CudaStatus(cudaStreamSynchronize(stream), "the step"); }

  // True: what Run enqueues depends on its arguments alone, allocates nothing and waits for nothing on the host, so
  // that the decoder may record it in a CUDA graph and replay it for later steps of as many rows, without calling Run.
  virtual bool capturable() const { return false; }
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_DEVICE_MOE_LAYER_H_
