// Keeps a worker's session with the controller: runs SessionCore over a gRPC stream, on a thread of its own.
#ifndef BALLAST_WORKER_SESSION_SESSION_CLIENT_H_
#define BALLAST_WORKER_SESSION_SESSION_CLIENT_H_

#include <functional>
#include <memory>
#include <string>

#include "ballast/v1/worker_session.grpc.pb.h"
#include "grpcpp/channel.h"
#include "proto/base/clock.h"
#include "proto/base/tls.h"
#include "worker/session/session_core.h"

namespace ballast {

// The worker behind the session. Called on the session's thread; must not block: what takes long is started, and its
// result posted.
class SessionHandler {
 public:
  virtual ~SessionHandler() = default;
  // Every action but those about the stream (OpenStream, CloseStream, SendMessage).
  virtual void Do(SessionAction action) = 0;
  virtual WorkerStats Stats() = 0;
};

// A channel to the controller at `address` (host:port) for sessions. The session has its own backoff; the channel's is
// no longer. Channels live until the process ends: gRPC 1.51 ends the threads behind callback calls when the last
// channel with any goes away, and a channel opened at that moment makes it abort.
std::shared_ptr<grpc::Channel> OpenSessionChannel(const TransportSecurity& security, const std::string& address);

// Thread-safe.
class SessionClient {
 public:
  // `stub`, `handler` and `clock` must outlive it. The first attempt begins at once.
  SessionClient(v1::WorkerSession::StubInterface& stub, v1::Hello hello, const SessionOptions& options,
                SessionHandler& handler, Clock& clock);
  // Ends the stream; waits until nothing more is called on `handler`.
  ~SessionClient();
  SessionClient(const SessionClient&) = delete;
  SessionClient& operator=(const SessionClient&) = delete;

  // Tells the core something, on the session's thread, in the order of the calls:
  //   client.Post([=](SessionCore& core) { return core.OnPlacementLoaded(epoch, status); });
  void Post(std::function<SessionActions(SessionCore&)> event);

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_SESSION_SESSION_CLIENT_H_
