// A whole worker in one object: the model, the step engine, the services, and the session that commands them.
#ifndef BALLAST_WORKER_DAEMON_WORKER_H_
#define BALLAST_WORKER_DAEMON_WORKER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/daemon/config.h"

namespace ballast {

// What the worker got: "host:port", as others reach it.
struct WorkerAddresses {
  std::string serving;
  std::string metrics;
  std::string data;
};

// Thread-safe.
class Worker {
 public:
  // Opens the model, starts every service and the session; returns before the worker has joined its group. `config` has
  // been through FinishConfig. `give_up` is called, from a thread of the worker, when the controller refuses this
  // worker for good, or when its GPU has faulted and is lost to the process: the process should end, and fail.
  //   InvalidArgument, NotFound, Unimplemented  the model or the secret file; names the file
  //   ResourceExhausted                         memory
  //   Unavailable                               an address cannot be bound
  static absl::StatusOr<std::unique_ptr<Worker>> Start(const WorkerConfig& config,
                                                       std::function<void(const absl::Status&)> give_up);
  // Stops at once: requests that are left end with UNAVAILABLE.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  const WorkerAddresses& addresses() const;

  // Stops admitting, tells the controller, and waits for the requests that were taken, at most config.drain_timeout.
  // Blocks. Whether every request has ended.
  bool Drain(const std::string& reason);

 private:
  class Impl;
  explicit Worker(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_WORKER_H_
