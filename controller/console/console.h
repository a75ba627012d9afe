// The console: its server, and the thread that samples the groups' history.
#ifndef BALLAST_CONTROLLER_CONSOLE_CONSOLE_H_
#define BALLAST_CONTROLLER_CONSOLE_CONSOLE_H_

#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "controller/console/console_api.h"
#include "controller/console/http_server.h"
#include "grpcpp/channel.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "proto/base/tls.h"

namespace ballast {

class Console {
 public:
  // Serves on `address` ("host:port"; port 0 takes any free one): HTTPS with `tls` given, else plain, where callers are
  // operators only if `loopback` says that nobody else reaches it. `services` and `clock` as of ConsoleApi, and they
  // must outlive it.
  //   errors as HttpServer::Start.
  static absl::StatusOr<std::unique_ptr<Console>> Start(const std::string& address, const TlsFiles& tls, bool loopback,
                                                        std::shared_ptr<grpc::Channel> services, Clock& clock);
  // Ends every connection, then the thread.
  ~Console();

  int port() const { return server_->port(); }

 private:
  Console(ConsoleAccess access, std::shared_ptr<grpc::Channel> services, Clock& clock);
  void SampleLoop() BALLAST_EXCLUDES(mu_);

  Clock& clock_;
  ConsoleApi api_;
  Mutex mu_;
  CondVar stop_;
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  std::thread sampler_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CONSOLE_CONSOLE_H_
