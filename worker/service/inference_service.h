// The Inference service over the batcher.
#ifndef BALLAST_WORKER_SERVICE_INFERENCE_SERVICE_H_
#define BALLAST_WORKER_SERVICE_INFERENCE_SERVICE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "proto/base/clock.h"
#include "worker/homes/request_router.h"
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
  // Another worker handed it over, and counts it as its own.
  bool handed_in = false;
  // Where this worker sent it, and whether it came back unserved and was run here.
  RequestRoute route = RequestRoute::kNone;
  bool came_back = false;
  // The client was sent there, which counts the request.
  bool redirected = false;
};

struct InferenceServiceOptions {
  RequestRules rules;
  // Whether requests can be served now; what it returns otherwise is the request's status. Must not block.
  std::function<absl::Status()> serving;
  // Says where a request runs, and must outlive the service; null: here.
  RequestRouter* router = nullptr;
  // As other workers know this one.
  std::string worker;
  // Called when a request has ended, from gRPC's threads or the step thread; must not block.
  std::function<void(const RequestRecord&)> ended = [](const RequestRecord&) {};
  Clock* clock = &Clock::Real();
};

// Calls are reactions: a request holds no thread, and a client that goes away is noticed when the connection says so.
//
// A worker that is to go refuses what another hands over with UNAVAILABLE; that one runs it.
//
// A request that the router gives to another worker is checked here and run there. Deadline and cancellation go with
// it, and a request that was handed over is not handed on. One that the other worker could not run (it cannot be
// reached, is leaving, is full) is run here, unless its first token is out: then it ends with UNAVAILABLE. Either way
// the client hears one answer. A client that follows redirects is told of the other worker instead, and a request that
// follows one is run here.
// `batcher` must outlive the service and the server it is registered with.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(Batcher& batcher, InferenceServiceOptions options);

  // Calls that other workers handed over and that have not been answered to the end: those workers need this one in the
  // view. Any thread.
  int handed_in() const { return handed_in_; }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;

 private:
  Batcher& batcher_;
  const InferenceServiceOptions options_;
  std::atomic<int> handed_in_{0};
};

}  // namespace ballast

#endif  // BALLAST_WORKER_SERVICE_INFERENCE_SERVICE_H_
