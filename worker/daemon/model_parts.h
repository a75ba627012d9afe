// The model in a worker: everything that exists once a process and knows nothing of groups.
#ifndef BALLAST_WORKER_DAEMON_MODEL_PARTS_H_
#define BALLAST_WORKER_DAEMON_MODEL_PARTS_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "ballast/v1/worker_session.pb.h"
#include "proto/base/clock.h"
#include "worker/daemon/config.h"
#include "worker/daemon/processor.h"
#include "worker/experts/expert_source.h"
#include "worker/model/checkpoint.h"
#include "worker/model/tokenizer.h"
#include "worker/moe/load_counters.h"
#include "worker/schedule/batcher.h"
#include "worker/telemetry/task_classifier.h"

namespace ballast {

// In the order in which they stand on each other.
struct ModelParts {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<LoadCounters> counters;
  std::unique_ptr<CheckpointExperts> source;
  Processor processor;
  // Null: unlabelled requests stay so.
  std::unique_ptr<TaskClassifier> classifier;
  std::unique_ptr<Batcher> batcher;
};

// Opens config.model and makes room for experts and KV. `config` has been through FinishConfig. Errors as
// Checkpoint::Open, Tokenizer::Load, OpenCpu and OpenCuda. `classified` as TaskClassifier's.
absl::StatusOr<std::unique_ptr<ModelParts>> OpenModel(const WorkerConfig& config, Clock& clock,
                                                      std::function<void(const Classification&)> classified);

// What does not change of Hello, but for the addresses. The report stream is chosen anew by each call.
v1::Hello MakeHello(const WorkerConfig& config, const ModelParts& parts);

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_MODEL_PARTS_H_
