// The decoder around the MoE layers on a GPU: what decoder.h is for the CPU.
#ifndef BALLAST_WORKER_DECODER_DEVICE_DECODER_H_
#define BALLAST_WORKER_DECODER_DEVICE_DECODER_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/router_kernel.h"
#include "worker/decoder/device_moe_layer.h"
#include "worker/decoder/kv_cache.h"
#include "worker/decoder/step_input.h"
#include "worker/model/checkpoint.h"

namespace ballast {

struct DeviceDecoderOptions {
  // The most rows of one step: buffers are made for it once.
  int max_rows = 256;
  // See DeviceDecoder.
  bool exact = false;
};

// On the GPU that was current at Create, which has to be current at every call. Used by the step thread alone, apart
// from the constants.
//
// Weights are bf16, the residual stream, norms, projections' sums and logits f32; keys, values and what goes into a
// product are rounded to bf16.
//
// Invariance, with `exact`: the bits of a row's hidden states and logits depend on the tokens of its sequence up to it
// and on the weights alone - not on the other rows of the step, the row's place in it or how the prompt was cut into
// steps - if those of the MoE layer do. They are not the CPU's bits. Without, projections are the library's, which is
// faster; their bits depend on how many rows there are.
class DeviceDecoder {
 public:
  // InvalidArgument / NotFound name a tensor that is missing, mis-shaped or of a type not supported; Unimplemented a
  // feature of the configuration that is not; ResourceExhausted: no device memory; Unavailable: no device.
  static absl::StatusOr<std::unique_ptr<DeviceDecoder>> Create(const Checkpoint& checkpoint,
                                                               const DeviceDecoderOptions& options);
  ~DeviceDecoder();
  DeviceDecoder(const DeviceDecoder&) = delete;
  DeviceDecoder& operator=(const DeviceDecoder&) = delete;

  const ModelConfig& config() const;
  int max_rows() const;
  bool exact() const;

  // Keys and values in device memory; what the sequences of Forward's input have to be of. ResourceExhausted: no
  // memory; InvalidArgument: as KvCache::Create.
  absl::StatusOr<std::unique_ptr<KvCache>> CreateKvCache(int num_blocks) const;
  // Device bytes of one block of it.
  size_t kv_block_bytes() const;

  // The rule and weights ([E][H] bf16, device memory) of a MoE layer's router, for RouteTokens of kernels/cuda.
  CudaRouterRule router_rule() const;
  const void* router_weights(int moe_layer) const;

  // Runs one step on `stream` and waits for it: writes keys and values at the rows' positions, calls `moe` for every
  // MoE layer (with zero rows too when the input has none), writes logits [logit_rows.size()][vocab_size] f32 to the
  // host. At most max_rows logit rows; logits come fastest into pinned memory. The caller commits the sequences, all of
  // one cache of this decoder, when the step has ended everywhere. Errors: CheckStepInput's; what `moe` returned when a
  // MoE layer failed; what CudaStatus has. Inputs are checked before anything is enqueued, so a bad input never leaves
  // peers alone in a step.
  //
  // A decode step (one row a sequence, at most 128) of a MoE layer that is capturable() is recorded in a CUDA graph the
  // first time that it has so many rows and logits, and replayed from then on; `moe` and the cache have to outlive the
  // decoder then. Not on the legacy default stream (nullptr).
  absl::Status Forward(const StepInput& input, DeviceMoeLayer& moe, float* logits, cudaStream_t stream);

  // Names the kernels, the library where it is used, and the GPU: equal fingerprints mean equal bits.
  const std::string& fingerprint() const;

 private:
  struct Impl;
  explicit DeviceDecoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_DEVICE_DECODER_H_
