// ballast-controller without its main: the store, the groups and their ports.
#ifndef BALLAST_CONTROLLER_SERVICE_DAEMON_H_
#define BALLAST_CONTROLLER_SERVICE_DAEMON_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "controller/console/console.h"
#include "controller/service/daemon_options.h"
#include "controller/service/engine_runtime.h"
#include "controller/service/operator_services.h"
#include "controller/service/runtime.h"
#include "controller/service/session_server.h"
#include "controller/service/telemetry_service.h"
#include "controller/store/store.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server.h"
#include "proto/base/clock.h"
#include "proto/base/metrics.h"
#include "proto/base/mutex.h"

namespace ballast {

class Daemon {
 public:
  // Opens the ports and serves. `store` and `clock` must outlive it.
  //   Unavailable  a port cannot be bound.   others  as Runtime::Start.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options, Store& store, Clock& clock);
  // As Stop.
  ~Daemon();
  // Ends sessions and calls, then the threads. Idempotent.
  void Stop();

  // host:port, with the ports that were got.
  const std::string& grpc_address() const { return grpc_address_; }
  const std::string& metrics_address() const { return metrics_address_; }
  // Empty: there is no console.
  const std::string& console_address() const { return console_address_; }
  Runtime& runtime() { return *runtime_; }

 private:
  Daemon() = default;
  // Ready: the store can be written, and this controller leads, as whoever has the store open does.
  void SetReady(bool ready) BALLAST_EXCLUDES(health_mu_);
  void PublishReadiness() BALLAST_REQUIRES(health_mu_);

  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<EngineRuntime> engines_;
  std::unique_ptr<SessionServer> sessions_;
  std::unique_ptr<GroupServiceImpl> groups_;
  std::unique_ptr<PlanServiceImpl> plans_;
  std::unique_ptr<ModelServiceImpl> models_;
  std::unique_ptr<TelemetryServiceImpl> telemetry_;
  Mutex health_mu_;
  bool ready_ BALLAST_GUARDED_BY(health_mu_) = true;
  // Null while there is no server.
  grpc::HealthCheckServiceInterface* health_ BALLAST_GUARDED_BY(health_mu_) = nullptr;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Console> console_;
  std::string grpc_address_;
  std::string metrics_address_;
  std::string console_address_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_DAEMON_H_
