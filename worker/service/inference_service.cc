#include "worker/service/inference_service.h"

#include <atomic>
#include <optional>
#include <random>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "proto/base/grpc_status.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "worker/service/remote_call.h"

namespace ballast {
namespace {

// By `clock`: gRPC has it by the system's, which may be set, also backwards.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context, Clock& clock) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return clock.Now() + absl::FromChrono(deadline - std::chrono::system_clock::now());
}

uint64_t FreshSeed() {
  thread_local std::random_device device;
  const uint64_t high = device();
  return (high << 32) | device() | 1;
}

// Whether another worker handed the request over.
bool HandedIn(const grpc::CallbackServerContext& context) {
  return context.client_metadata().find(kHandedOverBy) != context.client_metadata().end();
}

// What says that the other worker did not run the request, so that this one may.
bool NotServed(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status) || absl::IsCancelled(status);
}

absl::Status FromPeer(const Peer& peer, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("from worker ", peer.name(), ": ", status.message()));
}

// A call's request: with another worker, then perhaps at the batcher. Cancelled at any time, also in between.
// Thread-safe.
class Submission {
 public:
  explicit Submission(Batcher& batcher) : batcher_(batcher) {}

  absl::Status Submit(BatchedRequest request, std::shared_ptr<RequestSink> sink) BALLAST_EXCLUDES(mu_) {
    request.sink = std::move(sink);
    BALLAST_ASSIGN_OR_RETURN(const SequenceId id, batcher_.Submit(std::move(request)));
    MutexLock lock(mu_);
    id_ = id;
    // The client went away in between.
    if (cancelled_) batcher_.Cancel(id);
    return absl::OkStatus();
  }

  // The request is with another worker.
  void HandOver(std::shared_ptr<RemoteCall> remote) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    remote_ = std::move(remote);
    if (cancelled_) remote_->Cancel();
  }

  void Cancel() BALLAST_EXCLUDES(mu_) {
    std::optional<SequenceId> id;
    std::shared_ptr<RemoteCall> remote;
    {
      MutexLock lock(mu_);
      cancelled_ = true;
      id = id_;
      remote = remote_;
    }
    if (remote != nullptr) remote->Cancel();
    if (id.has_value()) batcher_.Cancel(*id);
  }

  bool cancelled() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return cancelled_;
  }

 private:
  Batcher& batcher_;
  Mutex mu_;
  std::optional<SequenceId> id_ BALLAST_GUARDED_BY(mu_);
  std::shared_ptr<RemoteCall> remote_ BALLAST_GUARDED_BY(mu_);
  bool cancelled_ BALLAST_GUARDED_BY(mu_) = false;
};

// Whether the request may be run here or handed over.
absl::Status Admit(const InferenceServiceOptions& options, bool handed_in) {
  if (handed_in && options.router != nullptr && options.router->away()) {
    return absl::UnavailableError(absl::StrCat("worker ", options.worker, " is to go"));
  }
  return options.serving();
}

// Counts a call from another worker until it is over.
class HandedInCount {
 public:
  HandedInCount(std::atomic<int>& count, bool handed_in) : count_(handed_in ? &count : nullptr) {
    if (count_ != nullptr) ++*count_;
  }
  ~HandedInCount() {
    if (count_ != nullptr) --*count_;
  }
  HandedInCount(const HandedInCount&) = delete;
  HandedInCount& operator=(const HandedInCount&) = delete;

 private:
  std::atomic<int>* const count_;
};

absl::Status ClientGone() { return absl::CancelledError("the client went away, or its deadline passed"); }

// Between a call, whose reactor gRPC destroys when the call is over, and the batcher, which may hold the request
// longer. What comes from one side after the other has ended is dropped.
class GenerateCall final : public RequestSink,
                           public RemoteGenerateSink,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  class Reactor final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
   public:
    Reactor(std::shared_ptr<GenerateCall> call, std::atomic<int>& handed_in)
        : call_(std::move(call)), count_(handed_in, call_->handed_in_) {}
    void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
    void OnCancel() override { call_->OnCancel(); }
    void OnDone() override {
      call_->OnDone();
      delete this;
    }

   private:
    const std::shared_ptr<GenerateCall> call_;
    const HandedInCount count_;
  };

  GenerateCall(Batcher& batcher, const InferenceServiceOptions& options, const v1::GenerateRequest& request,
               bool handed_in)
      : submission_(batcher),
        options_(options),
        start_(options.clock->Now()),
        logprobs_(request.logprobs()),
        handed_in_(handed_in) {
    record_.task = request.task();
    record_.handed_in = handed_in;
    if (options.rules.tokenizer != nullptr && options.rules.tokenizer->handles_text()) {
      decoder_.emplace(*options.rules.tokenizer, /*at_start=*/false);
    }
  }

  // Makes the reactor, and sends the request on its way or ends the call with the reason why not. `batched` is made of
  // `request`; `handed_in` counts the call if another worker handed it over.
  Reactor* Start(const v1::GenerateRequest& request, absl::StatusOr<BatchedRequest> batched,
                 std::atomic<int>& handed_in) BALLAST_EXCLUDES(mu_) {
    auto* reactor = new Reactor(shared_from_this(), handed_in);
    {
      MutexLock lock(mu_);
      reactor_ = reactor;
      if (batched.ok()) record_.prompt_tokens = static_cast<int>(batched->spec.tokens.size());
    }
    absl::Status status = batched.status();
    if (status.ok()) status = Admit(options_, handed_in_);
    if (status.ok()) status = Send(request, *std::move(batched));
    if (!status.ok()) OnEnd(status, FinishKind::kFailed);
    return reactor;
  }

  void OnToken(int32_t token, float logprob) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    CountTokens(1);
    pending_.add_token_ids(token);
    if (logprobs_) pending_.add_logprobs(logprob);
    if (decoder_.has_value()) pending_.mutable_text()->append(decoder_->Push(token));
    Advance();
  }

  void OnRemoteMessage(const v1::GenerateResponse& message) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (message.token_ids_size() > 0) {
      // The text is the other worker's, and nothing is to be run here any more.
      decoder_.reset();
      batched_.reset();
      CountTokens(message.token_ids_size());
    }
    pending_.mutable_token_ids()->MergeFrom(message.token_ids());
    pending_.mutable_logprobs()->MergeFrom(message.logprobs());
    pending_.mutable_text()->append(message.text());
    if (message.has_finish()) {
      remote_finish_ = message.finish().reason() == v1::FINISH_REASON_STOP ? FinishKind::kStop : FinishKind::kLength;
    } else {
      Advance();
    }
  }

  void OnRemoteEnd(const absl::Status& ended) override BALLAST_EXCLUDES(mu_) {
    FinishRemote(ended);
    // Last: whoever waits for it may end the service.
    options_.router->Ended(*peer_);
  }

  void OnEnd(const absl::Status& status, FinishKind finish) override BALLAST_EXCLUDES(mu_) {
    RequestRecord record;
    {
      MutexLock lock(mu_);
      if (ended_) return;
      ended_ = true;
      status_ = status;
      if (status.ok() && !record_.redirected) {
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
  void FinishRemote(absl::Status status) BALLAST_EXCLUDES(mu_) {
    FinishKind finish = FinishKind::kFailed;
    std::optional<BatchedRequest> here;
    {
      MutexLock lock(mu_);
      if (remote_finish_ != FinishKind::kNone) {
        // The answer is whole, however the call ended behind it.
        finish = remote_finish_;
        status = absl::OkStatus();
      } else if (status.ok()) {
        status = absl::InternalError("the answer has no end");
      } else if (!cancelled_ && NotServed(status)) {
        if (batched_.has_value()) {
          here = std::exchange(batched_, std::nullopt);
          record_.came_back = true;
        } else {
          status = absl::UnavailableError(
              absl::StrCat("lost after ", record_.generated_tokens, " tokens, which are right: ", status.message()));
        }
      }
    }
    if (here.has_value()) {
      status = submission_.Submit(*std::move(here), shared_from_this());
      if (status.ok()) return;
    } else if (!status.ok()) {
      status = FromPeer(*peer_, status);
    }
    OnEnd(status, finish);
  }

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

  absl::Status Send(const v1::GenerateRequest& request, BatchedRequest batched) BALLAST_EXCLUDES(mu_) {
    RequestRouter::Target target;
    // One that follows a redirect comes here to stay.
    const bool stays = handed_in_ || (request.redirected() && options_.router != nullptr && !options_.router->away());
    if (options_.router != nullptr && !stays) {
      target = options_.router->Route(request.task(), request.follows_redirects() && !request.redirected());
    }
    {
      MutexLock lock(mu_);
      record_.route = target.route;
      record_.redirected = target.redirect;
      if (target.redirect) {
        pending_.mutable_redirect()->set_worker(target.peer->name());
        pending_.mutable_redirect()->set_address(target.peer->member().serving_address());
      }
    }
    if (target.redirect) {
      OnEnd(absl::OkStatus(), FinishKind::kNone);
      return absl::OkStatus();
    }
    if (target.peer == nullptr) return submission_.Submit(std::move(batched), shared_from_this());
    peer_ = std::move(target.peer);
    v1::GenerateRequest remote = request;
    // Tokens are made of the text once.
    remote.mutable_token_ids()->mutable_ids()->Assign(batched.spec.tokens.begin(), batched.spec.tokens.end());
    remote.set_seed(batched.sampling.seed);
    const absl::Duration timeout = batched.spec.deadline - options_.clock->Now();
    {
      MutexLock lock(mu_);
      batched_ = std::move(batched);
    }
    submission_.HandOver(StartRemote(*peer_, options_.worker, std::move(remote), timeout, shared_from_this()));
    return absl::OkStatus();
  }

  void CountTokens(int tokens) BALLAST_REQUIRES(mu_) {
    last_token_ = options_.clock->Now();
    if (record_.generated_tokens == 0) {
      first_token_ = last_token_;
      record_.time_to_first_token = first_token_ - start_;
    }
    record_.generated_tokens += tokens;
  }

  // Writes what there is, or finishes. One write at a time: tokens made meanwhile go into the next message.
  void Advance() BALLAST_REQUIRES(mu_) {
    if (reactor_ == nullptr || writing_ || finished_) return;
    const bool something = pending_.token_ids_size() > 0 || pending_.has_finish() || pending_.has_redirect();
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
  const bool handed_in_;
  // That the request was handed to; set before it is.
  std::shared_ptr<Peer> peer_;

  Mutex mu_;
  // While it is with the peer and has no token: what would be run here.
  std::optional<BatchedRequest> batched_ BALLAST_GUARDED_BY(mu_);
  // How the peer's answer ended; kNone: it has not.
  FinishKind remote_finish_ BALLAST_GUARDED_BY(mu_) = FinishKind::kNone;
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

class ScoreCall final : public RequestSink, public RemoteScoreSink, public std::enable_shared_from_this<ScoreCall> {
 public:
  class Reactor final : public grpc::ServerUnaryReactor {
   public:
    Reactor(std::shared_ptr<ScoreCall> call, std::atomic<int>& handed_in)
        : call_(std::move(call)), count_(handed_in, call_->handed_in_) {}
    void OnCancel() override { call_->OnCancel(); }
    void OnDone() override { delete this; }

   private:
    const std::shared_ptr<ScoreCall> call_;
    const HandedInCount count_;
  };

  // `response` is the call's: it is written until the call is finished, not later.
  ScoreCall(Batcher& batcher, const InferenceServiceOptions& options, const v1::ScoreRequest& request,
            v1::ScoreResponse& response, bool handed_in)
      : submission_(batcher), options_(options), response_(&response), handed_in_(handed_in) {
    record_.task = request.task();
    record_.handed_in = handed_in;
  }

  // As GenerateCall::Start.
  Reactor* Start(const v1::ScoreRequest& request, absl::StatusOr<BatchedRequest> batched, std::atomic<int>& handed_in)
      BALLAST_EXCLUDES(mu_) {
    auto* reactor = new Reactor(shared_from_this(), handed_in);
    {
      MutexLock lock(mu_);
      reactor_ = reactor;
    }
    absl::Status status = batched.status();
    if (status.ok()) status = Admit(options_, handed_in_);
    if (status.ok()) status = Send(request, *std::move(batched));
    if (!status.ok()) OnEnd(status, FinishKind::kFailed);
    return reactor;
  }

  void OnScores(const ScoredRows& rows) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    if (reactor_ == nullptr) return;
    response_->mutable_logprobs()->Add(rows.logprobs.begin(), rows.logprobs.end());
    response_->mutable_argmax()->Add(rows.argmax.begin(), rows.argmax.end());
    response_->mutable_logits_digests()->Add(rows.digests.begin(), rows.digests.end());
    if (rows.routes.empty()) return;
    v1::ExpertRoutes& routes = *response_->mutable_expert_routes();
    routes.set_moe_layers(rows.route_layers);
    routes.set_experts_per_token(rows.route_top_k);
    routes.mutable_experts()->Add(rows.routes.begin(), rows.routes.end());
  }

  void OnRemoteScored(const absl::Status& ended, v1::ScoreResponse&& response) override BALLAST_EXCLUDES(mu_) {
    FinishRemote(ended, std::move(response));
    // Last, as in GenerateCall.
    options_.router->Ended(*peer_);
  }

  void OnEnd(const absl::Status& status, FinishKind finish) override BALLAST_EXCLUDES(mu_) {
    Reactor* reactor = nullptr;
    RequestRecord record;
    {
      MutexLock lock(mu_);
      reactor = std::exchange(reactor_, nullptr);
      record = record_;
    }
    if (reactor == nullptr) return;
    record.code = status.code();
    options_.ended(record);
    reactor->Finish(ToGrpc(status));
  }

 private:
  void FinishRemote(const absl::Status& ended, v1::ScoreResponse&& response) BALLAST_EXCLUDES(mu_) {
    if (NotServed(ended) && !submission_.cancelled()) {
      {
        MutexLock lock(mu_);
        record_.came_back = true;
      }
      // Nothing of the answer is out before its end.
      const absl::Status status = submission_.Submit(std::move(batched_), shared_from_this());
      if (!status.ok()) OnEnd(status, FinishKind::kFailed);
      return;
    }
    if (ended.ok()) {
      MutexLock lock(mu_);
      if (reactor_ != nullptr) *response_ = std::move(response);
    }
    OnEnd(ended.ok() ? ended : FromPeer(*peer_, ended), FinishKind::kStop);
  }

  void OnCancel() BALLAST_EXCLUDES(mu_) {
    submission_.Cancel();
    OnEnd(ClientGone(), FinishKind::kFailed);
  }

  absl::Status Send(const v1::ScoreRequest& request, BatchedRequest batched) BALLAST_EXCLUDES(mu_) {
    RequestRouter::Target target;
    if (options_.router != nullptr && !handed_in_) target = options_.router->Route(request.task());
    {
      MutexLock lock(mu_);
      record_.prompt_tokens = static_cast<int>(batched.spec.tokens.size());
      record_.route = target.route;
      // The peer's response has them too.
      response_->mutable_token_ids()->Add(batched.spec.tokens.begin(), batched.spec.tokens.end());
    }
    if (target.peer == nullptr) return submission_.Submit(std::move(batched), shared_from_this());
    peer_ = std::move(target.peer);
    v1::ScoreRequest remote = request;
    remote.mutable_token_ids()->mutable_ids()->Assign(batched.spec.tokens.begin(), batched.spec.tokens.end());
    const absl::Duration timeout = batched.spec.deadline - options_.clock->Now();
    batched_ = std::move(batched);
    submission_.HandOver(StartRemote(*peer_, options_.worker, std::move(remote), timeout, shared_from_this()));
    return absl::OkStatus();
  }

  Submission submission_;
  const InferenceServiceOptions& options_;
  v1::ScoreResponse* const response_;
  const bool handed_in_;
  // Set before the request is handed to the peer: whom to, and what would be run here.
  std::shared_ptr<Peer> peer_;
  BatchedRequest batched_;

  Mutex mu_;
  // Null once the call is finished.
  Reactor* reactor_ BALLAST_GUARDED_BY(mu_) = nullptr;
  RequestRecord record_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace

InferenceService::InferenceService(Batcher& batcher, InferenceServiceOptions options)
    : batcher_(batcher), options_(std::move(options)) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                                           const v1::GenerateRequest* request) {
  return std::make_shared<GenerateCall>(batcher_, options_, *request, HandedIn(*context))
      ->Start(*request, ToBatched(*request, options_.rules, DeadlineOf(*context, *options_.clock), FreshSeed()),
              handed_in_);
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                                  v1::ScoreResponse* response) {
  return std::make_shared<ScoreCall>(batcher_, options_, *request, *response, HandedIn(*context))
      ->Start(*request, ToBatched(*request, options_.rules, DeadlineOf(*context, *options_.clock)), handed_in_);
}

}  // namespace ballast
