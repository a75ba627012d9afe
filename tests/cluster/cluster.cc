#include "tests/cluster/cluster.h"

#include <signal.h>
#include <sys/wait.h>

#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/clock.h"
#include "proto/base/health_client.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

void AddTlsFlags(const TlsFiles& tls, std::vector<std::string>& argv) {
  if (!tls.given()) return;
  argv.push_back("--tls-cert=" + tls.certificate);
  argv.push_back("--tls-key=" + tls.key);
  argv.push_back("--tls-ca=" + tls.authorities);
}

}  // namespace

void MakePatient(ClusterOptions& options) {
  options.controller_flags.push_back("--lease=5m");
  for (const char* flag : {"--step-timeout=600", "--view-patience=600"}) options.worker_flags.push_back(flag);
}

std::shared_ptr<grpc::Channel> Cluster::OpenChannel(const std::string& address) const {
  grpc::ChannelArguments args;
  // A channel of its own, so that one stub's trouble is not another's; and quick to find a restarted daemon, but
  // patient with one that is there: on a busy machine a connection can take its time.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10000);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 250);
  return security_.Connect(address, args);
}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(ClusterOptions options) {
  {
    std::ofstream secret(options.directory + "/group.secret");
    secret << "a secret for processes on this machine alone\n";
  }
  std::unique_ptr<Cluster> cluster(new Cluster(std::move(options)));
  BALLAST_ASSIGN_OR_RETURN(cluster->security_, TransportSecurity::Create(cluster->options_.tls, Clock::Real().Now()));
  BALLAST_RETURN_IF_ERROR(cluster->StartController("127.0.0.1:0", "127.0.0.1:0", cluster->options_.environment));
  const auto channel = cluster->OpenChannel(cluster->controller_address_);
  cluster->groups_ = v1::GroupService::NewStub(channel);
  cluster->plans_ = v1::PlanService::NewStub(channel);
  return cluster;
}

Cluster::~Cluster() {
  for (auto& [name, worker] : workers_) worker.process->Signal(SIGKILL);
  workers_.clear();
  if (controller_ != nullptr) {
    controller_->Signal(SIGTERM);
    // What does not stop by itself is killed by ~Process.
    controller_->Wait(absl::Seconds(5)).IgnoreError();
  }
}

absl::Status Cluster::StartController(const std::string& listen, const std::string& metrics_listen,
                                      const std::map<std::string, std::string>& environment) {
  std::vector<std::string> argv = {options_.controller_binary, "--listen=" + listen,
                                   "--metrics-listen=" + metrics_listen, "--console-listen=127.0.0.1:0",
                                   "--store=" + store_path()};
  for (const std::string& group : options_.groups) argv.push_back("--group=" + group);
  AddTlsFlags(options_.tls, argv);
  argv.insert(argv.end(), options_.controller_flags.begin(), options_.controller_flags.end());
  BALLAST_ASSIGN_OR_RETURN(controller_, Process::Start(argv, options_.directory + "/controller.log", environment));
  BALLAST_ASSIGN_OR_RETURN(auto ready, controller_->AwaitReady(kPatience));
  controller_address_ = ready["grpc"];
  controller_metrics_ = ready["metrics"];
  controller_console_ = ready["console"];
  return absl::OkStatus();
}

absl::Status Cluster::RestartController() { return RestartController(options_.environment); }

absl::Status Cluster::RestartController(const std::map<std::string, std::string>& environment) {
  return StartController(controller_address_, controller_metrics_, environment);
}

absl::Status Cluster::StartWorker(const WorkerOptions& options) { return StartWorkers({options}); }

absl::Status Cluster::StartWorkers(const std::vector<WorkerOptions>& options) {
  for (const WorkerOptions& o : options) {
    std::vector<std::string> argv = {options_.worker_binary,
                                     "--model=" + options_.model,
                                     "--controller=" + controller_address_,
                                     "--name=" + o.name,
                                     "--group=" + o.group,
                                     "--listen=127.0.0.1:0",
                                     "--metrics-listen=127.0.0.1:0",
                                     "--data-listen=127.0.0.1:0",
                                     "--combine=" + options_.combine,
                                     "--group-secret-file=" + options_.directory + "/group.secret",
                                     absl::StrCat("--compute-threads=", o.compute_threads)};
    AddTlsFlags(options_.tls, argv);
    if (o.slots > 0) argv.push_back(absl::StrCat("--slots=", o.slots));
    argv.insert(argv.end(), options_.worker_flags.begin(), options_.worker_flags.end());
    argv.insert(argv.end(), o.extra_flags.begin(), o.extra_flags.end());
    std::map<std::string, std::string> environment = o.environment;
    environment.insert(options_.environment.begin(), options_.environment.end());
    BALLAST_ASSIGN_OR_RETURN(workers_[o.name].process,
                             Process::Start(argv, absl::StrCat(options_.directory, "/", o.name, ".log"), environment));
  }
  for (const WorkerOptions& o : options) {
    Worker& worker = workers_[o.name];
    BALLAST_ASSIGN_OR_RETURN(auto ready, worker.process->AwaitReady(kPatience));
    worker.address = ready["grpc"];
    worker.metrics = ready["metrics"];
  }
  return absl::OkStatus();
}

void Cluster::KillWorker(const std::string& name) {
  workers_.at(name).process->Signal(SIGKILL);
  workers_.at(name).process->Wait(kPatience).IgnoreError();
}

void Cluster::KillController() {
  controller_->Signal(SIGKILL);
  controller_->Wait(kPatience).IgnoreError();
}

absl::Status Cluster::StopController() {
  controller_->Signal(SIGTERM);
  return controller_->Wait(kPatience).status();
}

int Cluster::CtlAs(const TlsFiles& tls, const std::vector<std::string>& arguments, std::string* text) {
  std::vector<std::string> argv = {"/bin/sh", "-c", "exec \"$0\" \"$@\" >&2", options_.ctl_binary,
                                   "--controller=" + controller_address_};
  AddTlsFlags(tls, argv);
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const std::string log = absl::StrCat(options_.directory, "/ctl", ++ctl_runs_, ".log");
  const auto process = Process::Start(argv, log, options_.environment);
  if (!process.ok()) {
    *text = process.status().ToString();
    return -1;
  }
  const auto status = (*process)->Wait(kPatience);
  *text = TailOfFile(log);
  return status.ok() && WIFEXITED(*status) ? WEXITSTATUS(*status) : -1;
}

absl::Status Cluster::AwaitHealth(const std::string& worker, const std::string& service, bool serving,
                                  absl::Duration timeout) {
  const absl::Time deadline = Clock::Real().Now() + timeout;
  const auto channel = OpenChannel(worker_address(worker));
  while (CheckHealth(channel, service, deadline).ok() != serving) {
    if (Clock::Real().Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(worker, ": ", service, serving ? " does not serve" : " serves"));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::OkStatus();
}

absl::Status Cluster::AwaitLog(const std::string& worker, const std::string& text, absl::Duration timeout) {
  const absl::Time deadline = Clock::Real().Now() + timeout;
  const std::string& path = workers_.at(worker).process->log_path();
  const auto logged = [&] {
    std::ifstream log(path);
    return std::string(std::istreambuf_iterator<char>(log), {}).find(text) != std::string::npos;
  };
  while (!logged()) {
    if (Clock::Real().Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("'", text, "' is not in the log of ", worker, ":\n", TailOfFile(path)));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::OkStatus();
}

std::unique_ptr<v1::Inference::Stub> Cluster::inference(const std::string& worker) const {
  return v1::Inference::NewStub(OpenChannel(workers_.at(worker).address));
}

absl::StatusOr<v1::Group> Cluster::AwaitGroup(const std::string& group, absl::Duration timeout,
                                              const std::function<bool(const v1::Group&)>& done) {
  const absl::Time deadline = Clock::Real().Now() + timeout;
  v1::Group last;
  while (Clock::Real().Now() < deadline) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(deadline - Clock::Real().Now()));
    v1::WatchGroupRequest request;
    request.set_group(group);
    const auto stream = groups_->WatchGroup(&context, request);
    v1::WatchGroupResponse response;
    while (stream->Read(&response)) {
      last = response.group();
      if (done(last)) {
        context.TryCancel();
        return last;
      }
    }
    const grpc::Status status = stream->Finish();
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE &&
        status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) {
      return absl::InternalError(absl::StrCat("WatchGroup ", group, ": ", status.error_message()));
    }
  }
  return absl::DeadlineExceededError(absl::StrCat("group ", group, " after ", absl::FormatDuration(timeout),
                                                  ", last seen: ", last.ShortDebugString(), "\ncontroller's log:\n",
                                                  TailOfFile(controller_->log_path())));
}

absl::StatusOr<v1::Group> Cluster::AwaitServing(const std::string& group, int size, absl::Duration timeout) {
  return AwaitGroup(group, timeout, [size](const v1::Group& g) {
    return g.state() == v1::GROUP_STATE_SERVING && g.view().members_size() == size;
  });
}

}  // namespace ballast
