// ballast-worker: holds experts and serves requests of one group.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "CLI/CLI.hpp"
#include "proto/base/flags.h"
#include "proto/base/log.h"
#include "worker/daemon/config.h"
#include "worker/daemon/worker.h"

namespace ballast {
namespace {

Severity SeverityOf(const std::string& level) {
  if (level == "debug") return Severity::kDebug;
  if (level == "warning") return Severity::kWarning;
  return level == "error" ? Severity::kError : Severity::kInfo;
}

int Main(int argc, char** argv) {
  WorkerConfig config;
  CLI::App app("Holds experts of a mixture-of-experts model and serves requests, commanded by ballast-controller.",
               "ballast-worker");
  AddWorkerFlags(app, config);
  if (const std::optional<int> exit_status = ParseFlags(app, argc, argv)) return *exit_status;
  char host_name[256] = "localhost";
  gethostname(host_name, sizeof(host_name) - 1);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  if (absl::Status status = FinishConfig(config, host_name, cores); !status.ok()) {
    std::fprintf(stderr, "ballast-worker: %s\n", std::string(status.message()).c_str());
    return 2;
  }
  SetLogging(config.log_format == "json" ? LogFormat::kJson : LogFormat::kText, SeverityOf(config.log_level));

  // Before any thread starts, so that every one of them leaves these to sigwait.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  std::atomic<bool> given_up = false;
  const auto give_up = [&given_up](const absl::Status&) {
    given_up = true;
    kill(getpid(), SIGTERM);
  };
  auto worker = Worker::Start(config, give_up);
  if (!worker.ok()) {
    Log(Severity::kError, "cannot start", {{"status", worker.status()}});
    return 1;
  }
  const WorkerAddresses& addresses = (*worker)->addresses();
  std::printf("ready grpc=%s metrics=%s data=%s\n", addresses.serving.c_str(), addresses.metrics.c_str(),
              addresses.data.c_str());
  std::fflush(stdout);

  int signal = 0;
  sigwait(&signals, &signal);
  // The controller refuses the worker, or its GPU is lost. Not through the destructors: what frees the memory of a lost
  // GPU may wait for it for ever.
  if (given_up) std::_Exit(1);
  // A second signal ends the process at once; so does a GPU that is lost from here on, by SIGTERM.
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  const bool idle = (*worker)->Drain(signal == SIGINT ? "SIGINT" : "SIGTERM");
  if (!idle) Log(Severity::kWarning, "requests were left after the drain timeout");
  worker->reset();
  return 0;
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) { return ballast::Main(argc, argv); }
