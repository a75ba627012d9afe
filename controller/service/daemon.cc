#include "controller/service/daemon.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/formats/cost_model_file.h"
#include "controller/planner/level.h"
#include "controller/service/gauges.h"
#include "controller/service/planning.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/server_builder.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// How long calls may go on once the daemon stops.
constexpr auto kGrace = std::chrono::seconds(2);

std::string WithPort(const std::string& address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options, Store& store, Clock& clock) {
  auto daemon = std::unique_ptr<Daemon>(new Daemon());
  BALLAST_ASSIGN_OR_RETURN(const TransportSecurity security, TransportSecurity::Create(options.tls, clock.Now()));
  daemon->metrics_ = std::make_unique<Metrics>(ControllerMetrics());
  BALLAST_ASSIGN_OR_RETURN(const int metrics_port, daemon->metrics_->Serve(options.metrics_listen));
  daemon->metrics_address_ = WithPort(options.metrics_listen, metrics_port);

  PlanningRules planning = options.planning;
  if (!options.cost_model.empty()) {
    BALLAST_ASSIGN_OR_RETURN(planning.cost_model, ReadCostModel(options.cost_model));
  }
  Runtime::Options runtime{.store_changed = [daemon = daemon.get()](bool up) { daemon->SetReady(up); },
                           .planner = [gate = options.gate, cost_model = planning.cost_model](
                                          const PlanJob& job) { return RunPlanJob(job, gate, cost_model); },
                           .expert_metrics_top = options.expert_metrics_top};
  for (const GroupConfig& group : options.groups) {
    runtime.groups.push_back({.config = group, .timing = options.timing, .planning = planning, .load = options.load});
  }
  BALLAST_ASSIGN_OR_RETURN(daemon->runtime_, Runtime::Start(std::move(runtime), store, clock, *daemon->metrics_));

  EngineRuntime::Options engines{
      .group = {.planning = planning, .load = options.load},
      .planner = [gate = options.gate, cost_model = planning.cost_model](const PlanRequest& request) {
        PlanRequest gated = request;
        gated.gate = gate;
        gated.cost_model = cost_model;
        return MakePlan(CostAwarePolicy(0, CostAwarePolicy::Split::kEqual), gated);
      }};
  for (const GroupConfig& group : options.groups) engines.taken.insert(group.name);
  BALLAST_ASSIGN_OR_RETURN(daemon->engines_, EngineRuntime::Start(std::move(engines), store, clock, *daemon->metrics_));

  daemon->sessions_ = std::make_unique<SessionServer>(*daemon->runtime_);
  daemon->groups_ = std::make_unique<GroupServiceImpl>(*daemon->runtime_);
  daemon->plans_ = std::make_unique<PlanServiceImpl>(*daemon->runtime_);
  daemon->models_ = std::make_unique<ModelServiceImpl>(*daemon->runtime_);
  daemon->telemetry_ = std::make_unique<TelemetryServiceImpl>(*daemon->runtime_, *daemon->engines_);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.listen, security.ServerCredentials(), &port);
  // A second controller on the port is an error, not a share of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Placements of large models.
  builder.SetMaxReceiveMessageSize(64 << 20);
  daemon->sessions_->Register(builder);
  builder.RegisterService(daemon->groups_.get());
  builder.RegisterService(daemon->plans_.get());
  builder.RegisterService(daemon->models_.get());
  builder.RegisterService(daemon->telemetry_.get());
  daemon->server_ = builder.BuildAndStart();
  if (daemon->server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("listen: cannot listen on ", options.listen));
  }
  {
    MutexLock lock(daemon->health_mu_);
    daemon->health_ = daemon->server_->GetHealthCheckService();
    daemon->PublishReadiness();
  }
  daemon->grpc_address_ = WithPort(options.listen, port);
  daemon->sessions_->Start();
  if (!options.console_listen.empty()) {
    grpc::ChannelArguments arguments;
    // Placements of large models.
    arguments.SetMaxReceiveMessageSize(-1);
    const bool loopback = CheckListen("console-listen", options.console_listen, false).ok();
    BALLAST_ASSIGN_OR_RETURN(daemon->console_, Console::Start(options.console_listen, options.tls, loopback,
                                                              daemon->server_->InProcessChannel(arguments), clock));
    daemon->console_address_ = WithPort(options.console_listen, daemon->console_->port());
  }
  return daemon;
}

Daemon::~Daemon() { Stop(); }

void Daemon::SetReady(bool ready) {
  MutexLock lock(health_mu_);
  ready_ = ready;
  PublishReadiness();
}

void Daemon::PublishReadiness() {
  if (health_ == nullptr) return;
  for (const char* service : {v1::WorkerSession::service_full_name(), v1::GroupService::service_full_name(),
                              v1::PlanService::service_full_name(), v1::ModelService::service_full_name(),
                              v1::TelemetryService::service_full_name()}) {
    health_->SetServingStatus(service, ready_);
  }
}

void Daemon::Stop() {
  if (runtime_ == nullptr) return;
  {
    // Every service's, the server's as a whole too.
    MutexLock lock(health_mu_);
    if (health_ != nullptr) std::exchange(health_, nullptr)->SetServingStatus(false);
  }
  console_ = nullptr;
  runtime_->Stop();
  if (engines_ != nullptr) engines_->Stop();
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + kGrace);
  if (sessions_ != nullptr) sessions_->Stop();
  server_ = nullptr;
}

}  // namespace ballast
