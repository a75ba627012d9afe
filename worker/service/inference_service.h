// The Inference service over the batcher.
#ifndef BALLAST_WORKER_SERVICE_INFERENCE_SERVICE_H_
#define BALLAST_WORKER_SERVICE_INFERENCE_SERVICE_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "proto/base/clock.h"
#include "worker/schedule/batcher.h"
#include "worker/service/requests.h"

namespace ballast {

// A request that has ended, for metrics and logs.
struct RequestRecord {
  std::string task;
  absl::StatusCode code = absl::StatusCode::kOk;
  int prompt_tokens = 0;
  int generated_tokens = 0;
  // Of kGenerate with at least one token; otherwise negative.
  absl::Duration time_to_first_token = -absl::InfiniteDuration();
  // Mean over the tokens after the first; negative when there were none.
  absl::Duration time_per_output_token = -absl::InfiniteDuration();
};

struct InferenceServiceOptions {
  RequestRules rules;
  // Whether requests can be served now; what it returns otherwise is the request's status. Must not block.
  std::function<absl::Status()> serving;
  // Called when a request has ended, from gRPC's threads or the step thread; must not block.
  std::function<void(const RequestRecord&)> ended = [](const RequestRecord&) {};
  Clock* clock = &Clock::Real();
};

// Calls are reactions: a request holds no thread, and a client that goes away is noticed when the connection says so.
// `batcher` must outlive the service and the server it is registered with.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(Batcher& batcher, InferenceServiceOptions options);

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;

 private:
  Batcher& batcher_;
  const InferenceServiceOptions options_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_SERVICE_INFERENCE_SERVICE_H_
