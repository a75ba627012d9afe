#include "worker/decoder/step_input.h"

#include "absl/strings/str_cat.h"

namespace ballast {

absl::Status CheckStepInput(const ModelConfig& config, int max_rows, const StepInput& input) {
  const auto invalid = [](auto... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  const int count = static_cast<int>(input.token_ids.size());
  if (count > max_rows) return invalid("rows=", count, " is over the step's limit of ", max_rows);
  for (int row = 0; row < count; ++row) {
    if (input.token_ids[row] < 0 || input.token_ids[row] >= config.vocab_size) {
      return invalid("token_ids[", row, "]=", input.token_ids[row], " must lie in [0, ", config.vocab_size, ")");
    }
  }
  int next = 0;
  for (size_t i = 0; i < input.sequences.size(); ++i) {
    const StepSequence& s = input.sequences[i];
    if (s.first_row != next || s.num_rows < 1) {
      return invalid("sequences[", i, "] has rows [", s.first_row, ", ", s.first_row + s.num_rows,
                     "), want at least one from ", next);
    }
    next += s.num_rows;
    if (s.start_position != s.kv->committed()) {
      return absl::FailedPreconditionError(absl::StrCat("sequences[", i, "].start_position=", s.start_position,
                                                        ", the sequence has committed ", s.kv->committed()));
    }
    const int end = s.start_position + s.num_rows;
    if (end > config.max_positions) {
      return invalid("sequences[", i, "] ends at position ", end, ", the model has ", config.max_positions);
    }
    if (end > s.kv->capacity()) {
      return absl::FailedPreconditionError(
          absl::StrCat("sequences[", i, "] ends at position ", end, ", its KV blocks at ", s.kv->capacity()));
    }
  }
  if (next != count) return invalid("sequences cover ", next, " of ", count, " rows");
  for (size_t i = 0; i < input.logit_rows.size(); ++i) {
    if (input.logit_rows[i] < 0 || input.logit_rows[i] >= count) {
      return invalid("logit_rows[", i, "]=", input.logit_rows[i], " must lie in [0, ", count, ")");
    }
  }
  return absl::OkStatus();
}

}  // namespace ballast
