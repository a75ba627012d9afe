// The decoder around the MoE layers: embedding, attention, norms, dense layers, logits.
#ifndef BALLAST_WORKER_DECODER_DECODER_H_
#define BALLAST_WORKER_DECODER_DECODER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/router.h"
#include "worker/decoder/kv_cache.h"
#include "worker/decoder/moe_layer.h"
#include "worker/decoder/step_input.h"
#include "worker/model/checkpoint.h"

namespace ballast {

struct DecoderOptions {
  // The most rows of one step: buffers are made for it once.
  int max_rows = 256;
};

// Used by the step thread alone, apart from the constants. Forward does not allocate.
//
// Invariance: the bits of a row's hidden states and logits depend on the tokens of its sequence up to it and on the
// weights alone - not on the other rows of the step, the row's place in it, how the prompt was cut into steps, or the
// number of threads. Projections are library GEMMs at one fixed row tile (rows padded, one thread a GEMM); attention is
// computed for each (row, head) in the order of positions. Create checks the library for it, see row_invariant().
//
// Weights outside of the experts are widened to f32 once and kept packed, so they take four bytes a parameter.
class Decoder {
 public:
  // InvalidArgument / NotFound name a tensor that is missing, mis-shaped or of a type not supported; Unimplemented a
  // feature of the configuration that is not.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(const Checkpoint& checkpoint, ThreadPool& pool,
                                                         const DecoderOptions& options);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  const ModelConfig& config() const;
  int max_rows() const;
  // What a KvCache for this model needs.
  KvCache::Shape kv_shape() const;

  // The rule and weights ([E][H] bf16) of a MoE layer's router, for RouteTokens.
  RouterRule router_rule() const;
  const uint16_t* router_weights(int moe_layer) const;

  // Runs one step: writes keys and values at the rows' positions, calls `moe` for every MoE layer (with zero rows too
  // when the input has none), writes logits [logit_rows.size()][vocab_size] f32. The caller commits the sequences when
  // the step has ended everywhere. Errors: CheckStepInput's; what `moe` returned when a MoE layer failed. Inputs are
  // checked before anything is run, so a bad input never leaves peers alone in a step.
  absl::Status Forward(const StepInput& input, MoeLayer& moe, float* logits);

  // False when the library's GEMM gives a row different bits at different places of the tile on this machine: `exact`
  // must be refused then.
  bool row_invariant() const;
  // Names library, tile and instruction set; equal fingerprints and KernelFingerprint() mean equal bits.
  const std::string& fingerprint() const;

 private:
  struct Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_DECODER_H_
