// Routes of prompts, as a running worker chooses them.
#ifndef BALLAST_CONTROLLER_CTL_ROUTE_RECORDER_H_
#define BALLAST_CONTROLLER_CTL_ROUTE_RECORDER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "controller/formats/load_file.h"

namespace ballast {

struct RecordedPrompt {
  std::string task;
  std::string text;
};

// One JSON object a line with "text", and "task" unless `task` is given: then lines of other tasks are left out. Lines
// of white space alone are passed over.
// `name` is used in errors. InvalidArgument names the line.
absl::StatusOr<std::vector<RecordedPrompt>> ParsePrompts(std::string_view bytes, std::string_view name,
                                                         std::string_view task);

struct RecordingOptions {
  // Recording ends once it has so many; the last prompt is recorded whole.
  int64_t max_tokens = 0;
  // Text beyond it is left out, to keep within the model's positions.
  size_t max_prompt_bytes = 0;
  // Of each call.
  absl::Duration timeout = absl::InfiniteDuration();
};

struct Recording {
  // A prompt is a sample, numbered from 0. top_k is 0 where nothing was recorded.
  LoadFile file;
  int64_t prompts = 0;
  int64_t tokens = 0;
  // A line for each prompt that the worker refused, with its reason.
  std::vector<std::string> refused;
  // The worker's error that ended the recording early; what came before it is there. Unimplemented where the worker
  // does not tell routes.
  absl::Status ended;
};

// Scores the prompts one after the other until they are at an end or there are enough tokens. A prompt that the worker
// refuses (INVALID_ARGUMENT) is left out; a call that it answers with UNAVAILABLE is made once more; any other error
// ends the recording. `progress` is told after each prompt how many prompts and tokens that makes.
Recording RecordRoutes(v1::Inference::StubInterface& worker, std::span<const RecordedPrompt> prompts,
                       const RecordingOptions& options,
                       const std::function<void(size_t prompts, int64_t tokens)>& progress);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_ROUTE_RECORDER_H_
