#include "worker/service/inference_service.h"

#include <optional>
#include <random>
#include <utility>

#include "absl/functional/function_ref.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"

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

// A call's request at the batcher. Submitted once and cancelled at any time, also in between. Thread-safe.
class Submission {
 public:
  explicit Submission(Batcher& batcher) : batcher_(batcher) {}

  // Hands the request over, unless it is none or the worker does not serve: then says why. `accepted` is called before
  // the batcher has it.
  absl::Status Submit(absl::StatusOr<BatchedRequest> request, const InferenceServiceOptions& options,
                      std::shared_ptr<RequestSink> sink, absl::FunctionRef<void(const BatchedRequest&)> accepted)
      BALLAST_EXCLUDES(mu_) {
    BALLAST_RETURN_IF_ERROR(request.status());
    BALLAST_RETURN_IF_ERROR(options.serving());
    accepted(*request);
    request->sink = std::move(sink);
    BALLAST_ASSIGN_OR_RETURN(const SequenceId id, batcher_.Submit(*std::move(request)));
    MutexLock lock(mu_);
    id_ = id;
    // The client went away in between.
    if (cancelled_) batcher_.Cancel(id);
    return absl::OkStatus();
  }

  void Cancel() BALLAST_EXCLUDES(mu_) {
    std::optional<SequenceId> id;
    {
      MutexLock lock(mu_);
      cancelled_ = true;
      id = id_;
    }
    if (id.has_value()) batcher_.Cancel(*id);
  }

 private:
  Batcher& batcher_;
  Mutex mu_;
  std::optional<SequenceId> id_ BALLAST_GUARDED_BY(mu_);
  bool cancelled_ BALLAST_GUARDED_BY(mu_) = false;
};

absl::Status ClientGone() { return absl::CancelledError("the client went away, or its deadline passed"); }

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
      : submission_(batcher), options_(options), start_(options.clock->Now()), logprobs_(request.logprobs()) {
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
    const absl::Status status =
        submission_.Submit(std::move(request), options_, shared_from_this(), [&](const BatchedRequest& accepted) {
          MutexLock lock(mu_);
          record_.prompt_tokens = static_cast<int>(accepted.spec.tokens.size());
        });
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
    {
      MutexLock lock(mu_);
      cancelled_ = true;
    }
    submission_.Cancel();
    OnEnd(ClientGone(), FinishKind::kFailed);
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

  Submission submission_;
  const InferenceServiceOptions& options_;
  const absl::Time start_;
  const bool logprobs_;

  Mutex mu_;
  Reactor* reactor_ BALLAST_GUARDED_BY(mu_) = nullptr;
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
      : submission_(batcher), options_(options), response_(&response) {
    record_.task = request.task();
  }

  Reactor* Start(absl::StatusOr<BatchedRequest> request) BALLAST_EXCLUDES(mu_) {
    auto* reactor = new Reactor(shared_from_this());
    {
      MutexLock lock(mu_);
      reactor_ = reactor;
    }
    const absl::Status status =
        submission_.Submit(std::move(request), options_, shared_from_this(), [&](const BatchedRequest& accepted) {
          MutexLock lock(mu_);
          record_.prompt_tokens = static_cast<int>(accepted.spec.tokens.size());
          for (const int32_t token : accepted.spec.tokens) response_->add_token_ids(token);
        });
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
    submission_.Cancel();
    OnEnd(ClientGone(), FinishKind::kFailed);
  }

  Submission submission_;
  const InferenceServiceOptions& options_;
  v1::ScoreResponse* const response_;
  // Complete before the request is submitted.
  RequestRecord record_;

  Mutex mu_;
  // Null once the call is finished.
  Reactor* reactor_ BALLAST_GUARDED_BY(mu_) = nullptr;
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
