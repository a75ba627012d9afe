#include "worker/daemon/worker.h"

#include <algorithm>
#include <deque>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ballast/v1/worker_session.grpc.pb.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "proto/base/tls.h"
#include "worker/daemon/mesh_factory.h"
#include "worker/daemon/model_parts.h"
#include "worker/daemon/peer_experts.h"
#include "worker/daemon/views.h"
#include "worker/homes/request_router.h"
#include "worker/migrate/move_agent.h"
#include "worker/service/inference_service.h"
#include "worker/service/remote_call.h"
#include "worker/session/session_client.h"
#include "worker/step/step_engine.h"
#include "worker/telemetry/report_queue.h"
#include "worker/telemetry/worker_metrics.h"
#include "worker/transport/mesh_listener.h"

namespace ballast {
namespace {

// The health service's name for "takes requests"; "" says that the process lives.
constexpr char kReadiness[] = "ballast.v1.Inference";

absl::StatusOr<std::string> ReadSecret(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::string secret((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError(absl::StrCat("--group-secret-file ", path, " cannot be read"));
  while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) secret.pop_back();
  if (secret.empty()) return absl::InvalidArgumentError(absl::StrCat("--group-secret-file ", path, " is empty"));
  return secret;
}

// host:port as others reach it.
std::string Advertised(const WorkerConfig& config, const std::string& bound_host, int port) {
  return JoinHostPort(config.advertise_host.empty() ? bound_host : config.advertise_host, port);
}

}  // namespace

// Threads: the session thread (Do), the step thread (StepEvents), the move agent's (MoveListener), gRPC's, and the
// control thread, which does whatever blocks or must keep its order: loading, views, commits, reports.
class Worker::Impl final : public SessionHandler, public StepEvents, public MoveListener {
 public:
  Impl(const WorkerConfig& config, std::function<void(const absl::Status&)> give_up)
      : config_(config), give_up_(std::move(give_up)) {}
  ~Impl() override { Stop(); }

  absl::Status Start();
  const WorkerAddresses& addresses() const { return addresses_; }
  bool Drain(const std::string& reason);

  // SessionHandler
  void Do(SessionAction action) override;
  WorkerStats Stats() override;

  // StepEvents
  void ViewInstalled(ViewId view, const absl::Status& status, std::span<const int> unreachable) override;
  void PeerLost(ViewId view, std::span<const int> ranks, const absl::Status& reason) override;
  void ProcessorLost(const absl::Status& reason) override;
  void VersionInForce(ViewId view, PlacementVersion version, StepId first_step) override;
  void StepEnded(const StepRecord& record) override;

  // MoveListener
  void OnMoveProgress(const v1::MoveProgress& progress) override;
  void OnWavePrepared(const v1::WavePrepared& prepared) override;
  void OnWaveFailed(Epoch epoch, const std::string& error) override;

 private:
  absl::Status StartDataPort();
  void MakeEngine() BALLAST_EXCLUDES(engine_mu_);
  absl::Status StartServer();
  void StartSession();
  void Stop();

  void ControlLoop() BALLAST_EXCLUDES(control_mu_);
  void Enqueue(std::function<void()> task) BALLAST_EXCLUDES(control_mu_);
  void Post(std::function<SessionActions(SessionCore&)> event) BALLAST_EXCLUDES(control_mu_);
  // Control thread.
  void Load(const Placement& placement);
  void Join(const JoinView& join);
  void Leave(const std::string& reason);
  void Prepare(PrepareMoves prepare);
  void Commit(Epoch epoch);
  void NoteDrainState(const NoteDrain& drain) BALLAST_EXCLUDES(state_mu_);
  void NoteProfiles(const v1::TaskProfiles& profiles);
  void StartReporting(absl::Duration interval);
  void Report();

  absl::Status Serving() BALLAST_EXCLUDES(engine_mu_);
  // Homes of tasks are where the placement in force has them, among the members of the view.
  void InstallHomes() BALLAST_EXCLUDES(state_mu_);
  void UpdateReadiness() BALLAST_EXCLUDES(state_mu_);
  // This worker is to go, or is not: its requests go to others from now on, or no longer.
  void UpdateAway() BALLAST_EXCLUDES(state_mu_);
  // Blocks until the drain's state is one of `states`, this worker is in no view, or `deadline` comes.
  void AwaitDrain(std::initializer_list<v1::DrainState> states, absl::Time deadline) BALLAST_EXCLUDES(state_mu_);
  int HeldReplicas() const;

  const WorkerConfig config_;
  const std::function<void(const absl::Status&)> give_up_;
  Clock& clock_ = Clock::Real();
  TransportSecurity security_;
  WorkerAddresses addresses_;

  std::unique_ptr<WorkerMetrics> metrics_;
  std::unique_ptr<ModelParts> model_;

  std::shared_ptr<UcxContext> ucx_;
  std::unique_ptr<MeshListener> listener_;
  std::unique_ptr<UcxMeshFactory> meshes_;
  std::unique_ptr<PeerExperts> peer_experts_;

  Mutex engine_mu_;
  // Replaced when this incarnation was declared dead; null in between.
  std::unique_ptr<StepEngine> engine_ BALLAST_GUARDED_BY(engine_mu_);

  std::unique_ptr<MoveAgent> mover_;
  std::unique_ptr<RequestRouter> router_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::WorkerSession::Stub> stub_;

  Mutex state_mu_;
  // The view asked for last, its placement, and whether it is installed and whole.
  v1::View view_ BALLAST_GUARDED_BY(state_mu_);
  int missing_ BALLAST_GUARDED_BY(state_mu_) = 0;
  bool installed_ BALLAST_GUARDED_BY(state_mu_) = false;
  // This process stops; and what the controller says of this worker's drain.
  bool leaving_ BALLAST_GUARDED_BY(state_mu_) = false;
  v1::DrainState drain_ BALLAST_GUARDED_BY(state_mu_) = v1::DRAIN_STATE_UNSPECIFIED;
  CondVar drain_changed_;
  bool ready_ BALLAST_GUARDED_BY(state_mu_) = false;

  Mutex control_mu_;
  CondVar control_changed_;
  std::deque<std::function<void()>> tasks_ BALLAST_GUARDED_BY(control_mu_);
  bool stopping_ BALLAST_GUARDED_BY(control_mu_) = false;
  std::shared_ptr<SessionClient> client_ BALLAST_GUARDED_BY(control_mu_);

  // The control thread's.
  ReportQueue reports_{ReportQueue::Options{}};
  absl::Duration report_interval_ = absl::InfiniteDuration();
  absl::Time next_report_ = absl::InfiniteFuture();
  absl::Time window_start_;

  std::thread control_thread_;
};

absl::Status Worker::Impl::StartDataPort() {
  BALLAST_ASSIGN_OR_RETURN(const HostPort data, ParseHostPort(config_.data_listen));
  BALLAST_ASSIGN_OR_RETURN(std::string secret, ReadSecret(config_.group_secret_file));
  BALLAST_ASSIGN_OR_RETURN(ucx_, UcxContext::Create(model_->processor.enter_thread));
  if (model_->processor.moves != nullptr) {
    Log(Severity::kInfo, "UCX", {{"version", ucp_get_version_string()}, {"cuda", ucx_->has_cuda() ? "yes" : "no"}});
  }
  const std::string host = data.host == "localhost" ? "127.0.0.1" : data.host;
  BALLAST_ASSIGN_OR_RETURN(listener_,
                           MeshListener::Start({.host = host,
                                                .port = data.port,
                                                .identity = {.group = config_.group,
                                                             .secret = std::move(secret),
                                                             .fingerprint = model_->checkpoint->fingerprint()}}));
  addresses_.data = Advertised(config_, host, listener_->port());
  meshes_ = std::make_unique<UcxMeshFactory>(ucx_, *listener_);
  BALLAST_ASSIGN_OR_RETURN(peer_experts_, PeerExperts::Start(ucx_, *listener_, model_->processor));
  return absl::OkStatus();
}

void Worker::Impl::MakeEngine() {
  auto engine = std::make_unique<StepEngine>(
      StepEngineOptions{.step_timeout = absl::Seconds(config_.step_timeout_seconds),
                        .connect_timeout = model_->processor.connect_timeout,
                        .view_patience = absl::Seconds(config_.view_patience_seconds),
                        .step_shares = ParseShareMode(config_.step_shares).value_or(ShareMode::kAuto)},
      StepEngineParts{.model = model_->processor.step_model.get(),
                      .experts = model_->processor.store.get(),
                      .transports = meshes_.get(),
                      .source = model_->batcher.get(),
                      .events = this,
                      .counters = model_->counters.get(),
                      .logits = model_->processor.logits});
  MutexLock lock(engine_mu_);
  engine_ = std::move(engine);
}

absl::Status Worker::Impl::StartServer() {
  BALLAST_ASSIGN_OR_RETURN(const HostPort listen, ParseHostPort(config_.listen));
  BALLAST_ASSIGN_OR_RETURN(const HostPort metrics, ParseHostPort(config_.metrics_listen));
  BALLAST_ASSIGN_OR_RETURN(const int metrics_port, metrics_->registry().Serve(config_.metrics_listen));
  addresses_.metrics = Advertised(config_, metrics.host, metrics_port);

  router_ = std::make_unique<RequestRouter>(
      config_.name,
      [this](const std::string& address) { return v1::Inference::NewStub(OpenPeerChannel(security_, address)); },
      [this] {
        const BatcherStats stats = model_->batcher->stats();
        return WorkerLoad{
            .requests = stats.running + stats.waiting, .waiting = stats.waiting, .kv_used_ratio = stats.kv_used_ratio};
      });
  const ModelConfig& model = model_->checkpoint->config();
  service_ = std::make_unique<InferenceService>(
      *model_->batcher, InferenceServiceOptions{
                            .rules = {.vocab_size = model.vocab_size,
                                      .eos_token_ids = model.eos_token_ids,
                                      .tokenizer = model_->tokenizer.get()},
                            .serving = [this] { return Serving(); },
                            .router = router_.get(),
                            .worker = config_.name,
                            .ended =
                                [this](const RequestRecord& record) {
                                  // The worker that the client asked counts it.
                                  if (record.handed_in) return;
                                  metrics_->RequestRouted(record.task, record.route,
                                                          record.redirected  ? "redirected"
                                                          : record.came_back ? "came_back"
                                                                             : CodeLabel(record.code));
                                  // The worker that the client is sent to counts it.
                                  if (record.redirected) return;
                                  metrics_->RequestEnded(record.task, record.code);
                                  metrics_->TokenTimes(record.time_to_first_token, record.time_per_output_token);
                                },
                        });
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  // Two daemons on one port are a mistake, not a load balancer.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  int port = 0;
  builder.AddListeningPort(config_.listen, security_.ServerCredentials(), &port);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("--listen ", config_.listen, " cannot be bound"));
  }
  addresses_.serving = Advertised(config_, listen.host, port);
  server_->GetHealthCheckService()->SetServingStatus(kReadiness, false);
  return absl::OkStatus();
}

void Worker::Impl::StartSession() {
  v1::Hello hello = MakeHello(config_, *model_);
  hello.set_data_address(addresses_.data);
  hello.set_serving_address(addresses_.serving);

  stub_ = v1::WorkerSession::NewStub(OpenSessionChannel(security_, config_.controller));
  auto client = std::make_shared<SessionClient>(*stub_, std::move(hello), SessionOptions{}, *this, clock_);
  MutexLock lock(control_mu_);
  client_ = std::move(client);
}

absl::Status Worker::Impl::Start() {
  BALLAST_ASSIGN_OR_RETURN(security_, TransportSecurity::Create(config_.tls, clock_.Now()));
  metrics_ = std::make_unique<WorkerMetrics>(config_.name, config_.group);
  BALLAST_ASSIGN_OR_RETURN(
      model_, OpenModel(config_, clock_, [this](const Classification& told) { metrics_->RequestClassified(told); }));
  BALLAST_RETURN_IF_ERROR(StartDataPort());
  mover_ = std::make_unique<MoveAgent>(*model_->processor.store, *peer_experts_, *this, clock_);
  MakeEngine();
  model_->batcher->set_notify([this] {
    MutexLock lock(engine_mu_);
    if (engine_ != nullptr) engine_->NotifyWork();
  });
  BALLAST_RETURN_IF_ERROR(StartServer());
  window_start_ = clock_.Now();
  control_thread_ = std::thread([this] { ControlLoop(); });
  StartSession();
  return absl::OkStatus();
}

void Worker::Impl::Stop() {
  // Outside in: commands, then requests, then steps.
  std::shared_ptr<SessionClient> client;
  {
    MutexLock lock(control_mu_);
    client = std::exchange(client_, nullptr);
  }
  client.reset();
  if (control_thread_.joinable()) {
    {
      MutexLock lock(control_mu_);
      stopping_ = true;
      control_changed_.NotifyAll();
    }
    control_thread_.join();
  }
  mover_.reset();
  std::unique_ptr<StepEngine> engine;
  {
    MutexLock lock(engine_mu_);
    engine = std::move(engine_);
  }
  engine.reset();
  if (model_ != nullptr) {
    const absl::Status stopping = absl::UnavailableError("this worker is stopping");
    model_->batcher->CloseAdmission(stopping);
    // The step thread has ended: its part falls to this one.
    model_->batcher->NoView(stopping);
  }
  if (server_ != nullptr) {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    server_->Wait();
    // Calls to other workers have been cancelled with those that they are for; what hears of their ends stays until
    // then.
    router_->Close();
    router_->AwaitIdle(clock_, absl::InfiniteFuture());
  }
  peer_experts_.reset();
}

bool Worker::Impl::Drain(const std::string& reason) {
  Log(Severity::kInfo, "draining", {{"reason", reason}, {"timeout_seconds", config_.drain_timeout_seconds}});
  {
    MutexLock lock(state_mu_);
    leaving_ = true;
  }
  UpdateAway();
  Post([reason](SessionCore& core) { return core.OnLeaving(reason); });
  const absl::Time deadline = clock_.Now() + absl::Seconds(config_.drain_timeout_seconds);
  // Until the replicas are elsewhere, what no other worker takes is still run here.
  AwaitDrain({v1::DRAIN_STATE_EMPTY, v1::DRAIN_STATE_STUCK, v1::DRAIN_STATE_OUT}, deadline);
  model_->batcher->CloseAdmission(absl::UnavailableError("this worker is leaving; try another"));
  const bool idle = model_->batcher->AwaitIdle(deadline) && router_->AwaitIdle(clock_, deadline);
  // Others take steps with this worker until a view without it is issued.
  AwaitDrain({v1::DRAIN_STATE_OUT}, deadline);
  if (const int held = HeldReplicas(); held > 0) {
    MutexLock lock(state_mu_);
    if (drain_ != v1::DRAIN_STATE_OUT) {
      Log(Severity::kWarning, "leaving with replicas: the group may miss experts until this worker is back",
          {{"replicas", held}, {"drain", v1::DrainState_Name(drain_)}});
    }
  }
  return idle;
}

void Worker::Impl::AwaitDrain(std::initializer_list<v1::DrainState> states, absl::Time deadline) {
  MutexLock lock(state_mu_);
  const auto there = [&]() BALLAST_REQUIRES(state_mu_) {
    return view_.members().empty() || std::find(states.begin(), states.end(), drain_) != states.end();
  };
  while (!there() && clock_.WaitUntil(drain_changed_, state_mu_, deadline)) {
  }
}

void Worker::Impl::NoteDrainState(const NoteDrain& drain) {
  {
    MutexLock lock(state_mu_);
    if (drain.state == drain_) return;
    drain_ = drain.state;
    drain_changed_.NotifyAll();
  }
  Log(drain.state == v1::DRAIN_STATE_STUCK ? Severity::kWarning : Severity::kInfo, "drain",
      {{"state", v1::DrainState_Name(drain.state)}, {"reason", drain.reason}});
  UpdateAway();
}

void Worker::Impl::NoteProfiles(const v1::TaskProfiles& profiles) {
  if (model_->classifier == nullptr) return;
  const absl::Status status = model_->classifier->SetProfiles(profiles);
  Log(status.ok() ? Severity::kInfo : Severity::kError, "task profiles",
      {{"tasks", profiles.tasks_size()}, {"status", status}});
}

void Worker::Impl::UpdateAway() {
  bool away = false;
  {
    MutexLock lock(state_mu_);
    away = leaving_ || drain_ == v1::DRAIN_STATE_MOVING || drain_ == v1::DRAIN_STATE_EMPTY;
  }
  router_->SetAway(away);
  UpdateReadiness();
}

absl::Status Worker::Impl::Serving() {
  MutexLock lock(engine_mu_);
  // Between two views requests are taken in: a new view is mostly a matter of milliseconds, and the engine ends what
  // waits for one longer than its patience.
  return engine_ == nullptr ? absl::UnavailableError("this worker is joining its group anew") : absl::OkStatus();
}

void Worker::Impl::InstallHomes() {
  const auto table = model_->processor.store->in_force();
  if (table == nullptr) return;
  v1::View view;
  {
    MutexLock lock(state_mu_);
    view = view_;
  }
  router_->Install(view, table->placement());
}

void Worker::Impl::UpdateReadiness() {
  bool ready = false;
  {
    MutexLock lock(state_mu_);
    ready = installed_ && missing_ == 0 && !router_->away();
    if (ready == ready_) return;
    ready_ = ready;
    if (server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(kReadiness, ready);
  }
  Log(Severity::kInfo, ready ? "ready" : "not ready", {{"worker", config_.name}});
}

// --- The session's commands.

void Worker::Impl::Do(SessionAction action) {
  if (auto* load = std::get_if<LoadReplicas>(&action)) {
    Enqueue([this, placement = std::move(load->placement)] { Load(placement); });
  } else if (auto* join = std::get_if<JoinView>(&action)) {
    Enqueue([this, join = std::move(*join)] { Join(join); });
  } else if (auto* leave = std::get_if<LeaveView>(&action)) {
    Enqueue([this, reason = std::move(leave->reason)] { Leave(reason); });
  } else if (auto* prepare = std::get_if<PrepareMoves>(&action)) {
    Enqueue([this, prepare = std::move(*prepare)]() mutable { Prepare(std::move(prepare)); });
  } else if (auto* commit = std::get_if<CommitEpoch>(&action)) {
    Enqueue([this, epoch = commit->epoch] { Commit(epoch); });
  } else if (auto* abort = std::get_if<AbortEpoch>(&action)) {
    Log(Severity::kInfo, "wave aborted", {{"epoch", abort->epoch}, {"reason", abort->reason}});
    // In order after the preparation that it aborts.
    Enqueue([this, epoch = abort->epoch] { mover_->Abort(epoch); });
  } else if (auto* forget = std::get_if<ForgetReports>(&action)) {
    Enqueue([this, sequence = forget->sequence] { reports_.Stored(sequence); });
  } else if (auto* loads = std::get_if<NotePeerLoads>(&action)) {
    router_->SetLoads(loads->ack);
  } else if (auto* profiles = std::get_if<NoteTaskProfiles>(&action)) {
    Enqueue([this, profiles = std::move(profiles->profiles)] { NoteProfiles(profiles); });
  } else if (auto* drain = std::get_if<NoteDrain>(&action)) {
    NoteDrainState(*drain);
  } else if (auto* every = std::get_if<ReportEvery>(&action)) {
    Enqueue([this, interval = every->interval] { StartReporting(interval); });
  } else if (auto* give_up = std::get_if<GiveUp>(&action)) {
    Log(Severity::kError, "the controller refuses this worker", {{"status", give_up->status}});
    give_up_(give_up->status);
  }
}

WorkerStats Worker::Impl::Stats() {
  const BatcherStats stats = model_->batcher->stats();
  metrics_->Requests(stats.running, stats.waiting, stats.kv_used_ratio);
  MutexLock lock(engine_mu_);
  return {.step = engine_ == nullptr ? 0 : engine_->last_step().value(),
          // Others need this worker in the view until they have what they asked it for.
          .requests_running = std::max(stats.running, service_->handed_in()),
          .requests_waiting = stats.waiting,
          .kv_cache_used_ratio = stats.kv_used_ratio};
}

void Worker::Impl::Enqueue(std::function<void()> task) {
  MutexLock lock(control_mu_);
  tasks_.push_back(std::move(task));
  control_changed_.NotifyAll();
}

void Worker::Impl::Post(std::function<SessionActions(SessionCore&)> event) {
  std::shared_ptr<SessionClient> client;
  {
    MutexLock lock(control_mu_);
    client = client_;
  }
  if (client != nullptr) client->Post(std::move(event));
}

void Worker::Impl::ControlLoop() {
  for (;;) {
    std::function<void()> task;
    {
      MutexLock lock(control_mu_);
      while (tasks_.empty() && !stopping_ && clock_.Now() < next_report_) {
        clock_.WaitUntil(control_changed_, control_mu_, next_report_);
      }
      if (stopping_) return;
      if (!tasks_.empty()) {
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
    }
    if (task) {
      task();
    } else {
      next_report_ = clock_.Now() + report_interval_;
      Report();
    }
  }
}

void Worker::Impl::Load(const Placement& placement) {
  const absl::Time start = clock_.Now();
  const absl::Status status = model_->processor.store->Load(placement);
  Log(status.ok() ? Severity::kInfo : Severity::kError, "placement loaded",
      {{"epoch", placement.epoch}, {"took", absl::FormatDuration(clock_.Now() - start)}, {"status", status}});
  Post([epoch = placement.epoch, status](SessionCore& core) { return core.OnPlacementLoaded(epoch, status); });
}

void Worker::Impl::Join(const JoinView& join) {
  {
    MutexLock lock(state_mu_);
    view_ = join.view;
    missing_ = CountMissing(join.placement, join.view);
    installed_ = false;
  }
  absl::Status status;
  {
    MutexLock lock(engine_mu_);
    if (engine_ == nullptr) return;
    status = engine_->InstallView(ToGroupView(join.view, config_.name), join.placement);
  }
  if (status.ok()) return;
  Post([view = ViewId(join.view.view()), epoch = join.placement.epoch, status](SessionCore& core) {
    return core.OnViewInstalled(view, epoch, status, {});
  });
}

void Worker::Impl::Leave(const std::string& reason) {
  Log(Severity::kWarning, "declared dead: joining anew", {{"reason", reason}});
  mover_->AbortAll();
  std::unique_ptr<StepEngine> engine;
  {
    MutexLock lock(engine_mu_);
    engine = std::move(engine_);
  }
  // Ends the step thread, and with it this incarnation's part in its view.
  engine.reset();
  model_->batcher->NoView(absl::UnavailableError(absl::StrCat("this worker was declared dead: ", reason)));
  {
    MutexLock lock(state_mu_);
    view_.Clear();
    installed_ = false;
    drain_changed_.NotifyAll();
  }
  router_->Clear();
  UpdateReadiness();
  MakeEngine();
}

void Worker::Impl::Prepare(PrepareMoves prepare) {
  MoveJob job{.placement = std::move(prepare.placement),
              .moves = std::move(prepare.moves),
              .deadline = prepare.deadline,
              .max_bytes_per_second = prepare.max_bytes_per_second};
  {
    MutexLock lock(state_mu_);
    for (const v1::Member& member : view_.members()) {
      if (member.worker() != config_.name) job.peers[member.worker()] = member.data_address();
    }
  }
  Log(Severity::kInfo, "preparing wave",
      {{"plan", prepare.plan}, {"epoch", job.placement.epoch}, {"moves", job.moves.size()}});
  mover_->Start(std::move(job));
}

void Worker::Impl::Commit(Epoch epoch) {
  const auto prepared = model_->processor.store->prepared();
  if (!prepared.has_value() || prepared->epoch != epoch) {
    // In force already: the leader's announcement was faster than the controller's word.
    return;
  }
  MutexLock lock(engine_mu_);
  if (engine_ == nullptr) return;
  if (absl::Status status = engine_->CommitVersion(*prepared); !status.ok()) {
    Log(Severity::kError, "a committed epoch cannot be announced", {{"epoch", epoch}, {"status", status}});
  }
}

void Worker::Impl::StartReporting(absl::Duration interval) {
  report_interval_ = interval;
  next_report_ = clock_.Now() + interval;
  // The session before may have lost these.
  for (v1::LoadReport& report : reports_.Sent()) {
    Post([report = std::move(report)](SessionCore& core) { return core.OnReport(report); });
  }
}

void Worker::Impl::Report() {
  const absl::Time now = clock_.Now();
  const LoadWindow window = model_->counters->Take();
  if (!IsEmpty(window)) reports_.Add(MakeReport(window, window_start_, now));
  window_start_ = now;
  for (v1::LoadReport& report : reports_.TakeUnsent()) {
    Post([report = std::move(report)](SessionCore& core) { return core.OnReport(report); });
  }
}

// --- The step thread's events.

int Worker::Impl::HeldReplicas() const {
  const std::vector<SlotInfo> slots = model_->processor.store->slots();
  return static_cast<int>(std::count_if(slots.begin(), slots.end(),
                                        [](const SlotInfo& slot) { return slot.state == SlotState::kInForce; }));
}

void Worker::Impl::ViewInstalled(ViewId view, const absl::Status& status, std::span<const int> unreachable) {
  const auto table = model_->processor.store->in_force();
  const Epoch epoch = status.ok() && table != nullptr ? table->version().epoch : Epoch();
  {
    MutexLock lock(state_mu_);
    if (view.value() == view_.view()) installed_ = status.ok();
  }
  if (status.ok()) InstallHomes();
  UpdateReadiness();
  metrics_->ReplicaBytes(static_cast<double>(HeldReplicas()) *
                         static_cast<double>(model_->processor.store->expert_bytes()));
  Log(status.ok() ? Severity::kInfo : Severity::kWarning, "view installed",
      {{"view", view}, {"epoch", epoch}, {"status", status}});
  Post([view, epoch, status, ranks = std::vector<int32_t>(unreachable.begin(), unreachable.end())](SessionCore& core) {
    return core.OnViewInstalled(view, epoch, status, ranks);
  });
}

void Worker::Impl::PeerLost(ViewId view, std::span<const int> ranks, const absl::Status& reason) {
  {
    MutexLock lock(state_mu_);
    if (view.value() == view_.view()) installed_ = false;
  }
  UpdateReadiness();
  Log(Severity::kWarning, "view lost", {{"view", view}, {"reason", reason}});
  Post([view, ranks = std::vector<int32_t>(ranks.begin(), ranks.end()),
        text = std::string(reason.message())](SessionCore& core) { return core.OnPeersLost(view, ranks, text); });
}

void Worker::Impl::ProcessorLost(const absl::Status& reason) {
  Log(Severity::kError, "the device is lost to this process", {{"status", reason}});
  give_up_(reason);
}

void Worker::Impl::VersionInForce(ViewId view, PlacementVersion version, StepId first_step) {
  {
    MutexLock lock(state_mu_);
    const auto table = model_->processor.store->in_force();
    if (view.value() == view_.view() && table != nullptr) missing_ = CountMissing(table->placement(), view_);
  }
  InstallHomes();
  UpdateReadiness();
  metrics_->ReplicaBytes(static_cast<double>(HeldReplicas()) *
                         static_cast<double>(model_->processor.store->expert_bytes()));
  Log(Severity::kInfo, "epoch in force",
      {{"view", view}, {"epoch", version.epoch}, {"shares", version.shares}, {"step", first_step}});
  Post([view, epoch = version.epoch, first_step](SessionCore& core) {
    return core.OnEpochInForce(view, epoch, first_step);
  });
}

void Worker::Impl::StepEnded(const StepRecord& record) {
  const BatchedRows rows = model_->batcher->last_rows();
  metrics_->StepEnded(record.rows == 0 ? 0 : rows.prefill, record.rows == 0 ? 0 : rows.decode, record.duration,
                      model_->checkpoint->config().num_moe_layers(), *record.moe);
}

// --- The move agent's results.

void Worker::Impl::OnMoveProgress(const v1::MoveProgress& progress) {
  Post([progress](SessionCore& core) { return core.OnMoveProgress(progress); });
}

void Worker::Impl::OnWavePrepared(const v1::WavePrepared& prepared) {
  metrics_->MoveBytes(static_cast<double>(prepared.bytes_from_peers()),
                      static_cast<double>(prepared.bytes_from_checkpoint()));
  Log(Severity::kInfo, "wave prepared",
      {{"epoch", prepared.epoch()},
       {"bytes_from_peers", prepared.bytes_from_peers()},
       {"bytes_from_checkpoint", prepared.bytes_from_checkpoint()}});
  Post([prepared](SessionCore& core) { return core.OnWavePrepared(prepared); });
}

void Worker::Impl::OnWaveFailed(Epoch epoch, const std::string& error) {
  Log(Severity::kWarning, "wave failed", {{"epoch", epoch}, {"error", error}});
  Post([epoch, error](SessionCore& core) { return core.OnWaveFailed(epoch, error); });
}

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(const WorkerConfig& config,
                                                      std::function<void(const absl::Status&)> give_up) {
  auto impl = std::make_unique<Impl>(config, std::move(give_up));
  BALLAST_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Worker>(new Worker(std::move(impl)));
}

const WorkerAddresses& Worker::addresses() const { return impl_->addresses(); }
bool Worker::Drain(const std::string& reason) { return impl_->Drain(reason); }

}  // namespace ballast
