// What a decoder is asked to compute in one step.
#ifndef BALLAST_WORKER_DECODER_STEP_INPUT_H_
#define BALLAST_WORKER_DECODER_STEP_INPUT_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "worker/decoder/kv_cache.h"
#include "worker/model/config.h"

namespace ballast {

// One sequence's part of a step: rows [first_row, first_row + num_rows) are consecutive positions from start_position.
struct StepSequence {
  KvSequence* kv = nullptr;
  int first_row = 0;
  int num_rows = 0;
  // Equal to kv->committed().
  int start_position = 0;
};

struct StepInput {
  // One a row.
  std::span<const int32_t> token_ids;
  // In row order, covering every row once; a KvSequence at most once.
  std::span<const StepSequence> sequences;
  // The rows whose logits are wanted, in any order.
  std::span<const int32_t> logit_rows;
};

// InvalidArgument when a token id, row or position is out of range or rows do not add up; FailedPrecondition when a
// sequence's blocks do not reach (KvSequence::Reserve) or start_position is not its committed length.
absl::Status CheckStepInput(const ModelConfig& config, int max_rows, const StepInput& input);

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_STEP_INPUT_H_
