// drain, undrain: workers that are to go. health: what a probe asks.
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "ballast/v1/group_service.grpc.pb.h"
#include "controller/ctl/client.h"
#include "controller/ctl/context.h"
#include "controller/ctl/output.h"
#include "controller/ctl/progress.h"
#include "proto/base/clock.h"
#include "proto/base/health_client.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// Between two looks at a drain that is waited for.
constexpr absl::Duration kLook = absl::Milliseconds(200);

struct DrainOptions {
  std::string group;
  std::string worker;
  bool wait = false;
  double patience_seconds = 600;
  std::string address;
  std::string service;
};

std::string Show(const v1::Worker& worker) {
  if (worker.drain() == v1::DRAIN_STATE_UNSPECIFIED) return absl::StrCat("worker ", worker.name(), ": in use");
  return absl::StrCat("worker ", worker.name(), ": ", EnumText(worker.drain()), ", ", worker.slots_used(),
                      " replicas left", worker.drain_reason().empty() ? "" : "; ", worker.drain_reason());
}

absl::Status Report(const CtlContext& context, const v1::Worker& worker) {
  if (context.output == OutputFormat::kTable) {
    context.out << Show(worker) << "\n";
  } else {
    PrintDocument(context.output, ToJson(worker), context.out);
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Worker> FindWorker(Client& client, const std::string& group, const std::string& name) {
  BALLAST_ASSIGN_OR_RETURN(v1::ListWorkersResponse all, client.Workers(group));
  for (v1::Worker& worker : *all.mutable_workers()) {
    if (worker.name() == name) return std::move(worker);
  }
  return absl::NotFoundError(absl::StrCat("worker: group ", group, " has no worker '", name, "'"));
}

absl::Status Drain(CtlContext& context, const DrainOptions& options) {
  Client client(context);
  v1::DrainWorkerRequest request;
  BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(options.group));
  request.set_worker(options.worker);
  BALLAST_ASSIGN_OR_RETURN(auto response, client.Call(client.groups(), &v1::GroupService::Stub::DrainWorker, request));
  v1::Worker worker = std::move(*response.mutable_worker());
  const int32_t held = worker.slots_used();
  std::optional<Progress> progress;
  if (options.wait) progress.emplace(ProgressLineOf(context), Clock::Real(), "draining", held);
  const absl::Time deadline = Clock::Real().Now() + absl::Seconds(options.patience_seconds);
  while (options.wait && worker.drain() == v1::DRAIN_STATE_MOVING && Clock::Real().Now() < deadline) {
    absl::SleepFor(kLook);
    BALLAST_ASSIGN_OR_RETURN(worker, FindWorker(client, request.group(), request.worker()));
    progress->Set(held - worker.slots_used());
  }
  progress.reset();
  BALLAST_RETURN_IF_ERROR(Report(context, worker));
  if (worker.drain() == v1::DRAIN_STATE_STUCK) {
    return absl::FailedPreconditionError(
        absl::StrCat("worker ", worker.name(), " keeps its replicas: ", worker.drain_reason()));
  }
  if (options.wait && worker.drain() == v1::DRAIN_STATE_MOVING) {
    return absl::DeadlineExceededError(absl::StrCat("worker ", worker.name(), " still holds ", worker.slots_used(),
                                                    " replicas after --patience ", options.patience_seconds,
                                                    "; it goes on"));
  }
  return absl::OkStatus();
}

absl::Status Undrain(CtlContext& context, const DrainOptions& options) {
  Client client(context);
  v1::UndrainWorkerRequest request;
  BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(options.group));
  request.set_worker(options.worker);
  BALLAST_ASSIGN_OR_RETURN(auto response,
                           client.Call(client.groups(), &v1::GroupService::Stub::UndrainWorker, request));
  return Report(context, response.worker());
}

absl::Status Health(CtlContext& context, const DrainOptions& options) {
  const absl::Status status =
      CheckHealth(context.security.Connect(options.address, {}, context.tls_server_name), options.service,
                  Clock::Real().Now() + absl::Seconds(context.timeout_seconds));
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(options.address, ": ", status.message()));
  if (context.output == OutputFormat::kTable) {
    context.out << "serving\n";
  } else {
    PrintDocument(context.output, {{"status", "serving"}}, context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddDrainVerbs(CLI::App& app, CtlContext& context) {
  // Lives as long as the callbacks do: for the whole program.
  auto& o = *new DrainOptions;
  CLI::App* drain = app.add_subcommand(
      "drain",
      "Have a worker's experts moved to the others while all serve, and give it no more until 'undrain'.\n"
      "A process that gets SIGTERM does this by itself, for as long as its --drain-timeout");
  drain->callback([&context, &o] { context.run = [&context, &o] { return Drain(context, o); }; });
  drain->add_flag("--wait", o.wait, "Until it holds none; exit status 1 if it keeps them");
  drain->add_option("--patience", o.patience_seconds, "Seconds that --wait waits at most")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  CLI::App* undrain = app.add_subcommand("undrain", "Let the next plan use a drained worker again");
  undrain->callback([&context, &o] { context.run = [&context, &o] { return Undrain(context, o); }; });
  for (CLI::App* verb : {drain, undrain}) {
    verb->add_option("worker", o.worker, "Its name, from 'get workers'")->required();
    verb->add_option("--group,-g", o.group, "Name of the group; not needed when there is only one");
  }

  CLI::App* health = app.add_subcommand(
      "health",
      "Ask a daemon's grpc.health.v1, also over mutual TLS: exit status 0 if it serves, else 1.\n"
      "Liveness: no --service. Readiness: ballast.v1.Inference (worker), ballast.v1.GroupService (controller)");
  health->callback([&context, &o] { context.run = [&context, &o] { return Health(context, o); }; });
  health->add_option("address", o.address, "host:port of its gRPC services")->required();
  health->add_option("--service", o.service, "Name that the status is asked of; none: the process as a whole");
}

}  // namespace ballast
