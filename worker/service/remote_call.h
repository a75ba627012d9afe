// A request that another worker runs for this one: the client's end of an Inference call between workers.
#ifndef BALLAST_WORKER_SERVICE_REMOTE_CALL_H_
#define BALLAST_WORKER_SERVICE_REMOTE_CALL_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "grpcpp/channel.h"
#include "proto/base/tls.h"
#include "worker/homes/request_router.h"

namespace ballast {

// Metadata of a request that was handed over: the name of the worker that did. Such a request is not handed on. "-bin":
// gRPC ends the process over other metadata with a value that is not ASCII.
inline constexpr char kHandedOverBy[] = "ballast-handed-over-by-bin";

// A channel to a worker's services at `address`, host:port. Gives up connecting after two seconds, and does not limit
// what answers may weigh. It may go away where another with callback calls stays, as a worker's to its controller does
// (session_client.h).
std::shared_ptr<grpc::Channel> OpenPeerChannel(const TransportSecurity& security, const std::string& address);

// A call under way; it keeps itself alive until it has ended.
class RemoteCall {
 public:
  virtual ~RemoteCall() = default;
  // Any thread, any number of times. The call ends soon.
  virtual void Cancel() = 0;
};

// Hear of a call, from gRPC's threads, one thing at a time; nothing follows OnRemoteEnd.
class RemoteGenerateSink {
 public:
  virtual ~RemoteGenerateSink() = default;
  virtual void OnRemoteMessage(const v1::GenerateResponse& message) = 0;
  // Unavailable also where the peer left the view.
  virtual void OnRemoteEnd(const absl::Status& status) = 0;
};
class RemoteScoreSink {
 public:
  virtual ~RemoteScoreSink() = default;
  // `response` is empty unless `status` is OK.
  virtual void OnRemoteScored(const absl::Status& status, v1::ScoreResponse&& response) = 0;
};

// Begin the call, on behalf of the worker `own_name`; an infinite timeout is none.
std::shared_ptr<RemoteCall> StartRemote(Peer& peer, const std::string& own_name, v1::GenerateRequest request,
                                        absl::Duration timeout, std::shared_ptr<RemoteGenerateSink> sink);
std::shared_ptr<RemoteCall> StartRemote(Peer& peer, const std::string& own_name, v1::ScoreRequest request,
                                        absl::Duration timeout, std::shared_ptr<RemoteScoreSink> sink);

}  // namespace ballast

#endif  // BALLAST_WORKER_SERVICE_REMOTE_CALL_H_
