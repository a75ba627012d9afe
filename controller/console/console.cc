#include "controller/console/console.h"

#include <utility>

#include "proto/base/status_macros.h"

namespace ballast {

Console::Console(ConsoleAccess access, std::shared_ptr<grpc::Channel> services, Clock& clock)
    : clock_(clock), api_(access, std::move(services), clock) {}

absl::StatusOr<std::unique_ptr<Console>> Console::Start(const std::string& address, const TlsFiles& tls, bool loopback,
                                                        std::shared_ptr<grpc::Channel> services, Clock& clock) {
  const ConsoleAccess access = tls.given() ? ConsoleAccess::kTls
                               : loopback  ? ConsoleAccess::kLoopback
                                           : ConsoleAccess::kOpen;
  auto console = std::unique_ptr<Console>(new Console(access, std::move(services), clock));
  BALLAST_ASSIGN_OR_RETURN(console->server_,
                           HttpServer::Start(address, tls, [api = &console->api_](const HttpRequest& request) {
                             return api->Handle(request);
                           }));
  console->sampler_ = std::thread([c = console.get()] { c->SampleLoop(); });
  return console;
}

Console::~Console() {
  server_ = nullptr;
  {
    MutexLock lock(mu_);
    stopping_ = true;
    stop_.NotifyAll();
  }
  if (sampler_.joinable()) sampler_.join();
}

void Console::SampleLoop() {
  for (;;) {
    api_.Sample();
    const absl::Time next = clock_.Now() + History::kStep;
    MutexLock lock(mu_);
    while (!stopping_ && clock_.Now() < next) clock_.WaitUntil(stop_, mu_, next);
    if (stopping_) return;
  }
}

}  // namespace ballast
