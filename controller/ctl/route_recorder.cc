#include "controller/ctl/route_recorder.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "nlohmann/json.hpp"
#include "proto/base/grpc_status.h"

namespace ballast {
namespace {

grpc::Status Score(v1::Inference::StubInterface& worker, const v1::ScoreRequest& request, absl::Duration timeout,
                   v1::ScoreResponse& response) {
  grpc::ClientContext context;
  if (timeout != absl::InfiniteDuration()) {
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  }
  return worker.Score(&context, request, &response);
}

absl::Status Append(const v1::ScoreResponse& response, int64_t sample, Recording& recording) {
  RouteTrace& trace = recording.file.routes;
  const v1::ExpertRoutes& routes = response.expert_routes();
  const int64_t tokens = response.token_ids_size();
  const int64_t layers = routes.moe_layers();
  const int64_t top_k = routes.experts_per_token();
  if (layers < 1 || top_k < 1 || routes.experts_size() != tokens * layers * top_k ||
      (trace.top_k != 0 && (trace.top_k != top_k || static_cast<int64_t>(trace.experts.size()) != layers))) {
    return absl::UnimplementedError(absl::StrCat("the worker answers ", tokens, " tokens with ", routes.experts_size(),
                                                 " choices in ", layers, " layers; it may be of an older release"));
  }
  trace.top_k = static_cast<int32_t>(top_k);
  trace.experts.resize(layers);
  trace.samples.resize(layers);
  trace.tokens.resize(layers);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t l = 0; l < layers; ++l) {
      const auto chosen = routes.experts().begin() + (t * layers + l) * top_k;
      trace.experts[l].insert(trace.experts[l].end(), chosen, chosen + top_k);
      trace.samples[l].push_back(sample);
      trace.tokens[l].push_back(t);
    }
  }
  recording.tokens += tokens;
  ++recording.prompts;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<RecordedPrompt>> ParsePrompts(std::string_view bytes, std::string_view name,
                                                         std::string_view task) {
  std::vector<RecordedPrompt> prompts;
  int line_number = 0;
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    const std::string_view line = bytes.substr(0, end);
    bytes.remove_prefix(end == std::string_view::npos ? bytes.size() : end + 1);
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto text_of = [&](const char* key) {
      return json.is_object() && json.contains(key) && json[key].is_string();
    };
    if (!text_of("text") || (task.empty() && !text_of("task"))) {
      return absl::InvalidArgumentError(absl::StrCat(std::string(name), ":", line_number,
                                                     ": not an object with the strings text and task (or --task)"));
    }
    std::string label = text_of("task") ? json["task"].get<std::string>() : std::string(task);
    if (!task.empty() && label != task) continue;
    prompts.push_back({std::move(label), json["text"].get<std::string>()});
  }
  if (prompts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(name), ": no prompts",
                                                   task.empty() ? "" : absl::StrCat(" of task ", std::string(task))));
  }
  return prompts;
}

Recording RecordRoutes(v1::Inference::StubInterface& worker, std::span<const RecordedPrompt> prompts,
                       const RecordingOptions& options,
                       const std::function<void(size_t prompts, int64_t tokens)>& progress) {
  Recording recording{.file = {.format = "routes"}};
  for (size_t sample = 0; sample < prompts.size() && recording.tokens < options.max_tokens; ++sample) {
    const std::string& text = prompts[sample].text;
    size_t bytes = std::min(options.max_prompt_bytes, text.size());
    // Not in the middle of a UTF-8 sequence.
    while (bytes > 0 && bytes < text.size() && (text[bytes] & 0xC0) == 0x80) --bytes;
    if (bytes == 0) continue;
    v1::ScoreRequest request;
    request.set_text(text.substr(0, bytes));
    request.set_task(prompts[sample].task);
    request.set_expert_routes(true);
    v1::ScoreResponse response;
    grpc::Status status = Score(worker, request, options.timeout, response);
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      status = Score(worker, request, options.timeout, response);
    }
    // RESOURCE_EXHAUSTED is no such answer: the worker's queue is full, for this prompt as for those behind it.
    if (status.error_code() == grpc::StatusCode::INVALID_ARGUMENT) {
      recording.refused.push_back(absl::StrCat("prompt ", sample, " is left out: ", status.error_message()));
      continue;
    }
    recording.ended = status.ok() ? Append(response, static_cast<int64_t>(sample), recording) : FromGrpc(status);
    if (!recording.ended.ok()) break;
    progress(sample + 1, recording.tokens);
  }
  return recording;
}

}  // namespace ballast
