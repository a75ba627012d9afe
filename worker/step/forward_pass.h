// What the step engine runs: a model around its MoE layers.
#ifndef BALLAST_WORKER_STEP_FORWARD_PASS_H_
#define BALLAST_WORKER_STEP_FORWARD_PASS_H_

#include "absl/status/status.h"
#include "worker/decoder/decoder.h"
#include "worker/decoder/moe_layer.h"

namespace ballast {

// Used by the step thread alone.
class ForwardPass {
 public:
  virtual ~ForwardPass() = default;

  // Rows of one step at most.
  virtual int max_rows() const = 0;
  virtual int vocab_size() const = 0;
  // Whether a row's bits depend on its sequence alone, as `exact` needs.
  virtual bool row_invariant() const = 0;
  // As Decoder::Forward: calls `moe` for every MoE layer in order, without rows too; checks its input before the first.
  virtual absl::Status Forward(const StepInput& input, MoeLayer& moe, float* logits) = 0;
};

// The decoder of a checkpoint, which must outlive it.
class DecoderForward final : public ForwardPass {
 public:
  explicit DecoderForward(Decoder& decoder) : decoder_(decoder) {}
  int max_rows() const override { return decoder_.max_rows(); }
  int vocab_size() const override { return decoder_.config().vocab_size; }
  bool row_invariant() const override { return decoder_.row_invariant(); }
  absl::Status Forward(const StepInput& input, MoeLayer& moe, float* logits) override {
    return decoder_.Forward(input, moe, logits);
  }

 private:
  Decoder& decoder_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_FORWARD_PASS_H_
