#include "worker/service/requests.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

absl::Status CheckTask(const std::string& task) {
  if (task.size() > kMaxTaskLength) {
    return absl::InvalidArgumentError(
        absl::StrCat("task has ", task.size(), " characters; the limit is ", kMaxTaskLength));
  }
  const auto allowed = [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  if (std::all_of(task.begin(), task.end(), allowed)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("task is ", Quote(task), "; allowed are [A-Za-z0-9._-]"));
}

absl::Status CheckIds(const char* field, const google::protobuf::RepeatedField<int32_t>& ids, int32_t vocab_size) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(field, "[", i, "] is ", ids[i], "; the vocabulary has ", vocab_size, " tokens"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> FromText(const std::string& text, const RequestRules& rules) {
  if (rules.tokenizer == nullptr || !rules.tokenizer->handles_text()) {
    return absl::InvalidArgumentError(
        absl::StrCat("text was sent, but the model's tokenizer handles ids only",
                     rules.tokenizer == nullptr ? "" : absl::StrCat(" (", rules.tokenizer->why_ids_only(), ")"),
                     "; send token_ids"));
  }
  return rules.tokenizer->Encode(text);
}

}  // namespace

absl::StatusOr<BatchedRequest> ToBatched(const v1::GenerateRequest& request, const RequestRules& rules,
                                         absl::Time deadline, uint64_t fresh_seed) {
  BALLAST_RETURN_IF_ERROR(CheckTask(request.task()));
  BatchedRequest out;
  SequenceSpec& spec = out.spec;
  spec.kind = SequenceKind::kGenerate;
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText: {
      BALLAST_ASSIGN_OR_RETURN(spec.tokens, FromText(request.text(), rules));
      break;
    }
    case v1::GenerateRequest::kTokenIds:
      BALLAST_RETURN_IF_ERROR(CheckIds("token_ids.ids", request.token_ids().ids(), rules.vocab_size));
      spec.tokens.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return absl::InvalidArgumentError("prompt is not set; send text or token_ids");
  }
  spec.max_tokens = request.max_tokens();
  if (request.stop_token_ids_size() > kMaxStopTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop_token_ids has ", request.stop_token_ids_size(), " entries; the limit is ", kMaxStopTokens));
  }
  BALLAST_RETURN_IF_ERROR(CheckIds("stop_token_ids", request.stop_token_ids(), rules.vocab_size));
  spec.stop_tokens.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  if (!request.ignore_eos()) {
    spec.stop_tokens.insert(spec.stop_tokens.end(), rules.eos_token_ids.begin(), rules.eos_token_ids.end());
  }
  spec.task = request.task();
  spec.deadline = deadline;
  out.sampling = {.temperature = request.temperature(),
                  .top_p = request.top_p() == 0 ? 1 : request.top_p(),
                  .seed = request.seed() == 0 ? fresh_seed : request.seed()};
  BALLAST_RETURN_IF_ERROR(Validate(out.sampling));
  out.logprobs = request.logprobs();
  return out;
}

absl::StatusOr<BatchedRequest> ToBatched(const v1::ScoreRequest& request, const RequestRules& rules,
                                         absl::Time deadline) {
  BALLAST_RETURN_IF_ERROR(CheckTask(request.task()));
  BatchedRequest out;
  SequenceSpec& spec = out.spec;
  spec.kind = SequenceKind::kScore;
  switch (request.input_case()) {
    case v1::ScoreRequest::kText: {
      BALLAST_ASSIGN_OR_RETURN(spec.tokens, FromText(request.text(), rules));
      break;
    }
    case v1::ScoreRequest::kTokenIds:
      BALLAST_RETURN_IF_ERROR(CheckIds("token_ids.ids", request.token_ids().ids(), rules.vocab_size));
      spec.tokens.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::ScoreRequest::INPUT_NOT_SET:
      return absl::InvalidArgumentError("input is not set; send text or token_ids");
  }
  spec.task = request.task();
  spec.deadline = deadline;
  out.digests = request.logits_digest();
  out.routes = request.expert_routes();
  return out;
}

}  // namespace ballast
