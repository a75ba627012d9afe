// ballast-controller.
#include <pthread.h>
#include <signal.h>

#include <iostream>
#include <memory>

#include "controller/service/daemon.h"
#include "controller/service/daemon_options.h"
#include "controller/store/sqlite_store.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/log.h"
#include "proto/base/release.h"

int main(int argc, char** argv) {
  ballast::DaemonOptions options;
  if (const std::optional<int> exit = ballast::ParseDaemonOptions(argc, argv, options); exit.has_value()) return *exit;
  ballast::SetLogging(options.log_format, options.log_level);

  // Blocked before any thread starts, so that only sigwait below sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  const auto store = ballast::SqliteStore::Open(options.store);
  if (!store.ok()) {
    std::cerr << "ballast-controller: " << store.status().message() << "\n";
    return 1;
  }
  const auto daemon = ballast::Daemon::Start(options, **store, ballast::Clock::Real());
  if (!daemon.ok()) {
    std::cerr << "ballast-controller: " << daemon.status().message() << "\n";
    return 1;
  }
  std::cout << "ready grpc=" << (*daemon)->grpc_address() << " metrics=" << (*daemon)->metrics_address();
  if (!(*daemon)->console_address().empty()) std::cout << " console=" << (*daemon)->console_address();
  std::cout << std::endl;
  ballast::Log(ballast::Severity::kInfo, "serving",
               {{"version", ballast::Version()},
                {"grpc", (*daemon)->grpc_address()},
                {"metrics", (*daemon)->metrics_address()},
                {"console", (*daemon)->console_address()},
                {"store", options.store},
                {"term", (*daemon)->runtime().term()}});
  if (options.allow_insecure && !options.tls.given()) {
    ballast::Log(ballast::Severity::kWarning,
                 "--allow-insecure: callers are not authenticated and nothing is encrypted on the wire");
  }

  int received = 0;
  sigwait(&signals, &received);
  ballast::Log(ballast::Severity::kInfo, "stopping", {{"signal", received}});
  (*daemon)->Stop();
  return 0;
}
