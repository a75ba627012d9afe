#include "worker/service/inference_service.h"

#include <optional>
#include <random>
#include <utility>

#include "proto/base/mutex.h"

namespace ballast {
namespace {

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  return deadline == std::chrono::system_clock::time_point::max() ? absl::InfiniteFuture() : absl::FromChrono(deadline);
}

uint64_t FreshSeed() {
  thread_local std::random_device device;
  const uint64_t high = device();
  return (high << 32) | device() | 1;
}

// Between a call, whose reactor gRPC destroys when the call is over, and the batcher, which may hold the request
// longer. What comes from one side after the other has ended is dropped.
class GenerateCall final : public RequestSink, public std::enable_shared_from_this<GenerateCall> {
 public:
  class Reactor final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
   public:
    explicit Reactor(std::shared_ptr<GenerateCall> call) : call_(std::move(call)) {}
    void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
    void OnCancel() override { call_->OnCancel(); }
    void OnDone() override {
      call_->OnDone();
      delete this;
    }

   private:
    const std::shared_ptr<GenerateCall> call_;
  };

  GenerateCall(Batcher& batcher, const InferenceServiceOptions& options, const v1::GenerateRequest& request)
      : batcher_(batcher), options_(options), start_(options.clock->Now()), logprobs_(request.logprobs()) {
    record_.task = request.task();
    if (options.rules.tokenizer != nullptr && options.rules.tokenizer->handles_text()) {
      decoder_.emplace(*options.rules.tokenizer, /*at_start=*/false);
    }
  }

  // Makes the reactor, and submits the request or ends the call with the reason why not.
  Reactor* Start(absl::StatusOr<BatchedRequest> request) BALLAST_EXCLUDES(mu_) {
    auto* reactor = new Reactor(shared_from_this());
    {
      MutexLock lock(mu_);
      reactor_ = reactor;
    }
    absl::Status status = request.status();
    if (status.ok()) status = options_.serving();
    if (status.ok()) {
      {
        MutexLock lock(mu_);
        record_.prompt_tokens = static_cast<int>(request->spec.tokens.size());
      }
      request->sink = shared_from_this();
      const absl::StatusOr<SequenceId> id = batcher_.Submit(*std::move(request));
      status = id.status();
      if (status.ok()) {
        MutexLock lock(mu_);
        id_ = *id;
        // The client went away in between.
        if (cancelled_) batcher_.Cancel(*id_);
      }
    }
    if (!status.ok()) OnEnd(status, FinishKind::kFailed);
    return reactor;
  }

  void OnToken(int32_t token, float logprob) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    last_token_ = options_.clock->Now();
    if (record_.generated_tokens++ == 0) {
      first_token_ = last_token_;
      record_.time_to_first_token = first_token_ - start_;
    }
    pending_.add_token_ids(token);
    if (logprobs_) pending_.add_logprobs(logprob);
    if (decoder_.has_value()) pending_.mutable_text()->append(decoder_->Push(token));
    Advance();
  }

  void OnEnd(const absl::Status& status, FinishKind finish) override BALLAST_EXCLUDES(mu_) {
    RequestRecord record;
    {
      MutexLock lock(mu_);
      if (ended_) return;
      ended_ = true;
      status_ = status;
      if (status.ok()) {
        if (decoder_.has_value()) pending_.mutable_text()->append(decoder_->Finish());
        v1::Finish& end = *pending_.mutable_finish();
        end.set_reason(finish == FinishKind::kStop ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
        end.set_prompt_tokens(record_.prompt_tokens);
        end.set_generated_tokens(record_.generated_tokens);
      }
      record_.code = status.code();
      if (record_.generated_tokens > 1) {
        record_.time_per_output_token = (last_token_ - first_token_) / (record_.generated_tokens - 1);
      }
      record = record_;
      Advance();
    }
    options_.ended(record);
  }

 private:
  void OnWriteDone(bool ok) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    writing_ = false;
    // The connection is gone: OnCancel comes, or came.
    if (!ok) pending_.Clear();
    Advance();
  }

  void OnCancel() BALLAST_EXCLUDES(mu_) {
    std::optional<SequenceId> id;
    {
      MutexLock lock(mu_);
      cancelled_ = true;
      id = id_;
    }
    if (id.has_value()) batcher_.Cancel(*id);
    OnEnd(absl::CancelledError("the client went away, or its deadline passed"), FinishKind::kFailed);
  }

  void OnDone() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    reactor_ = nullptr;
  }

  // Writes what there is, or finishes. One write at a time: tokens made meanwhile go into the next message.
  void Advance() BALLAST_REQUIRES(mu_) {
    if (reactor_ == nullptr || writing_ || finished_) return;
    const bool something = pending_.token_ids_size() > 0 || pending_.has_finish();
    if (something && !cancelled_) {
      std::swap(pending_, current_);
      pending_.Clear();
      writing_ = true;
      reactor_->StartWrite(&current_);
      return;
    }
    if (ended_) {
      finished_ = true;
      reactor_->Finish(ToGrpc(status_));
    }
  }

  Batcher& batcher_;
  const InferenceServiceOptions& options_;
  const absl::Time start_;
  const bool logprobs_;

  Mutex mu_;
  Reactor* reactor_ BALLAST_GUARDED_BY(mu_) = nullptr;
  std::optional<SequenceId> id_ BALLAST_GUARDED_BY(mu_);
  std::optional<StreamDecoder> decoder_ BALLAST_GUARDED_BY(mu_);
  v1::GenerateResponse pending_ BALLAST_GUARDED_BY(mu_);
  v1::GenerateResponse current_ BALLAST_GUARDED_BY(mu_);
  bool writing_ BALLAST_GUARDED_BY(mu_) = false;
  bool cancelled_ BALLAST_GUARDED_BY(mu_) = false;
  // The request has ended, with status_; the call has been told.
  bool ended_ BALLAST_GUARDED_BY(mu_) = false;
  bool finished_ BALLAST_GUARDED_BY(mu_) = false;
  absl::Status status_ BALLAST_GUARDED_BY(mu_);
  RequestRecord record_ BALLAST_GUARDED_BY(mu_);
  absl::Time first_token_ BALLAST_GUARDED_BY(mu_);
  absl::Time last_token_ BALLAST_GUARDED_BY(mu_);
};

class ScoreCall final : public RequestSink, public std::enable_shared_from_this<ScoreCall> {
 public:
  class Reactor final : public grpc::ServerUnaryReactor {
   public:
    explicit Reactor(std::shared_ptr<ScoreCall> call) : call_(std::move(call)) {}
    void OnCancel() override { call_->OnCancel(); }
    void OnDone() override { delete this; }

   private:
    const std::shared_ptr<ScoreCall> call_;
  };

  // `response` is the call's: it is written until the call is finished, not later.
  ScoreCall(Batcher& batcher, const InferenceServiceOptions& options, const v1::ScoreRequest& request,
            v1::ScoreResponse& response)
      : batcher_(batcher), options_(options), response_(&response) {
    record_.task = request.task();
  }

  Reactor* Start(absl::StatusOr<BatchedRequest> request) BALLAST_EXCLUDES(mu_) {
    auto* reactor = new Reactor(shared_from_this());
    {
      MutexLock lock(mu_);
      reactor_ = reactor;
    }
    absl::Status status = request.status();
    if (status.ok()) status = options_.serving();
    if (status.ok()) {
      MutexLock lock(mu_);
      record_.prompt_tokens = static_cast<int>(request->spec.tokens.size());
      for (const int32_t token : request->spec.tokens) response_->add_token_ids(token);
    }
    if (status.ok()) {
      request->sink = shared_from_this();
      const absl::StatusOr<SequenceId> id = batcher_.Submit(*std::move(request));
      status = id.status();
      if (status.ok()) {
        MutexLock lock(mu_);
        id_ = *id;
        if (cancelled_) batcher_.Cancel(*id_);
      }
    }
    if (!status.ok()) OnEnd(status, FinishKind::kFailed);
    return reactor;
  }

  void OnScores(const ScoredRows& rows) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (reactor_ == nullptr) return;
    response_->mutable_logprobs()->Add(rows.logprobs.begin(), rows.logprobs.end());
    response_->mutable_argmax()->Add(rows.argmax.begin(), rows.argmax.end());
    response_->mutable_logits_digests()->Add(rows.digests.begin(), rows.digests.end());
  }

  void OnEnd(const absl::Status& status, FinishKind finish) override BALLAST_EXCLUDES(mu_) {
    Reactor* reactor = nullptr;
    {
      MutexLock lock(mu_);
      reactor = std::exchange(reactor_, nullptr);
    }
    if (reactor == nullptr) return;
    record_.code = status.code();
    options_.ended(record_);
    reactor->Finish(ToGrpc(status));
  }

 private:
  void OnCancel() BALLAST_EXCLUDES(mu_) {
    std::optional<SequenceId> id;
    {
      MutexLock lock(mu_);
      cancelled_ = true;
      id = id_;
    }
    if (id.has_value()) batcher_.Cancel(*id);
    OnEnd(absl::CancelledError("the client went away, or its deadline passed"), FinishKind::kFailed);
  }

  Batcher& batcher_;
  const InferenceServiceOptions& options_;
  v1::ScoreResponse* const response_;
  // Complete before the request is submitted.
  RequestRecord record_;

  Mutex mu_;
  // Null once the call is finished.
  Reactor* reactor_ BALLAST_GUARDED_BY(mu_) = nullptr;
  std::optional<SequenceId> id_ BALLAST_GUARDED_BY(mu_);
  bool cancelled_ BALLAST_GUARDED_BY(mu_) = false;
};

}  // namespace

InferenceService::InferenceService(Batcher& batcher, InferenceServiceOptions options)
    : batcher_(batcher), options_(std::move(options)) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                                           const v1::GenerateRequest* request) {
  return std::make_shared<GenerateCall>(batcher_, options_, *request)
      ->Start(ToBatched(*request, options_.rules, DeadlineOf(*context), FreshSeed()));
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                                  v1::ScoreResponse* response) {
  return std::make_shared<ScoreCall>(batcher_, options_, *request, *response)
      ->Start(ToBatched(*request, options_.rules, DeadlineOf(*context)));
}

}  // namespace ballast
