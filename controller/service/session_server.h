// The transport of WorkerSession: gRPC streams to the runtime's sessions and back.
#ifndef BALLAST_CONTROLLER_SERVICE_SESSION_SERVER_H_
#define BALLAST_CONTROLLER_SERVICE_SESSION_SERVER_H_

#include <memory>
#include <thread>

#include "ballast/v1/worker_session.grpc.pb.h"
#include "controller/service/runtime.h"
#include "grpcpp/server_builder.h"
#include "proto/base/mutex.h"

namespace ballast {

// One completion queue and one thread for all streams: a stream can be ended with a status while a read of it waits,
// which the synchronous interface cannot do.
class SessionServer {
 public:
  // `runtime` must outlive it.
  explicit SessionServer(Runtime& runtime) : runtime_(runtime) {}
  ~SessionServer();
  SessionServer(const SessionServer&) = delete;
  SessionServer& operator=(const SessionServer&) = delete;

  // Before the server starts, and after it has.
  void Register(grpc::ServerBuilder& builder);
  void Start();
  // After grpc::Server::Shutdown: waits for the streams to end.
  void Stop() BALLAST_EXCLUDES(mu_);

 private:
  class Stream;
  void Listen();
  void Poll();

  Runtime& runtime_;
  v1::WorkerSession::AsyncService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  Mutex mu_;
  CondVar ended_;
  int streams_ BALLAST_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_SESSION_SERVER_H_
