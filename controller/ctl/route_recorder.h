// Routes of prompts, as a running worker chooses them.
#ifndef BALLAST_CONTROLLER_CTL_ROUTE_RECORDER_H_
#define BALLAST_CONTROLLER_CTL_ROUTE_RECORDER_H_

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "controller/formats/load_file.h"

namespace ballast {

struct RecordedPrompt {
  std::string task;
  std::string text;
};

// One JSON object a line with "text", and "task" unless `task` is given: then lines of other tasks are left out.
// `name` is used in errors. InvalidArgument names the line.
absl::StatusOr<std::vector<RecordedPrompt>> ParsePrompts(std::string_view bytes, std::string_view name,
                                                         std::string_view task);

// Scores the prompts one after the other until they are at an end or `max_tokens` are recorded (the last prompt whole);
// a prompt is a sample, numbered from 0. Text beyond `max_prompt_bytes` is left out, to keep within the model's
// positions. Errors are the worker's; Unimplemented where it does not tell routes.
// `progress` is told after each prompt how many prompts and tokens that makes.
absl::StatusOr<LoadFile> RecordRoutes(v1::Inference::StubInterface& worker, std::span<const RecordedPrompt> prompts,
                                      int64_t max_tokens, size_t max_prompt_bytes,
                                      const std::function<void(size_t prompts, int64_t tokens)>& progress);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_ROUTE_RECORDER_H_
