#include "worker/service/remote_call.h"

#include <atomic>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "proto/base/grpc_status.h"

namespace ballast {
namespace {

// What both kinds of call share. A peer that has left the view may be silent for ever: the call is not left to it.
class Call : public RemoteCall, public PeerWatcher, public std::enable_shared_from_this<Call> {
 public:
  Call(Peer& peer, const std::string& own_name, absl::Duration timeout) : peer_name_(peer.name()) {
    if (timeout != absl::InfiniteDuration()) {
      // By the system's clock, as gRPC wants it.
      context_.set_deadline(absl::ToChronoTime(absl::FromChrono(std::chrono::system_clock::now()) + timeout));
    }
    context_.AddMetadata(kHandedOverBy, own_name);
  }

  void Cancel() override { context_.TryCancel(); }
  void OnPeerLost() override {
    lost_ = true;
    context_.TryCancel();
  }

 protected:
  absl::Status Ended(const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    if (lost_) return absl::UnavailableError(absl::StrCat("worker ", peer_name_, " has left the group's view"));
    return FromGrpc(status);
  }

  grpc::ClientContext context_;

 private:
  const std::string peer_name_;
  std::atomic<bool> lost_{false};
};

class GenerateCall final : public Call, public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  GenerateCall(Peer& peer, const std::string& own_name, v1::GenerateRequest request, absl::Duration timeout,
               std::shared_ptr<RemoteGenerateSink> sink)
      : Call(peer, own_name, timeout), request_(std::move(request)), sink_(std::move(sink)) {}

  void Start(Peer& peer) {
    self_ = shared_from_this();
    peer.stub().async()->Generate(&context_, &request_, this);
    StartRead(&message_);
    StartCall();
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    sink_->OnRemoteMessage(message_);
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    std::exchange(sink_, nullptr)->OnRemoteEnd(Ended(status));
    const std::shared_ptr<Call> last = std::move(self_);
  }

  const v1::GenerateRequest request_;
  std::shared_ptr<RemoteGenerateSink> sink_;
  v1::GenerateResponse message_;
  std::shared_ptr<Call> self_;
};

class ScoreCall final : public Call {
 public:
  ScoreCall(Peer& peer, const std::string& own_name, v1::ScoreRequest request, absl::Duration timeout,
            std::shared_ptr<RemoteScoreSink> sink)
      : Call(peer, own_name, timeout), request_(std::move(request)), sink_(std::move(sink)) {}

  void Start(Peer& peer) {
    peer.stub().async()->Score(&context_, &request_, &response_,
                               [this, self = shared_from_this()](const grpc::Status& status) {
                                 std::exchange(sink_, nullptr)->OnRemoteScored(Ended(status), std::move(response_));
                               });
  }

 private:
  const v1::ScoreRequest request_;
  std::shared_ptr<RemoteScoreSink> sink_;
  v1::ScoreResponse response_;
};

template <typename Kind, typename Request, typename Sink>
std::shared_ptr<RemoteCall> Start(Peer& peer, const std::string& own_name, Request request, absl::Duration timeout,
                                  std::shared_ptr<Sink> sink) {
  const auto call = std::make_shared<Kind>(peer, own_name, std::move(request), timeout, std::move(sink));
  call->Start(peer);
  peer.Watch(call);
  return call;
}

}  // namespace

std::shared_ptr<grpc::Channel> OpenPeerChannel(const TransportSecurity& security, const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetMaxReceiveMessageSize(-1);
  return security.Connect(address, arguments);
}

std::shared_ptr<RemoteCall> StartRemote(Peer& peer, const std::string& own_name, v1::GenerateRequest request,
                                        absl::Duration timeout, std::shared_ptr<RemoteGenerateSink> sink) {
  return Start<GenerateCall>(peer, own_name, std::move(request), timeout, std::move(sink));
}

std::shared_ptr<RemoteCall> StartRemote(Peer& peer, const std::string& own_name, v1::ScoreRequest request,
                                        absl::Duration timeout, std::shared_ptr<RemoteScoreSink> sink) {
  return Start<ScoreCall>(peer, own_name, std::move(request), timeout, std::move(sink));
}

}  // namespace ballast
