#include "controller/service/runtime.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/store/term.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr size_t kEventsKept = 100;
constexpr absl::Duration kGaugesEvery = absl::Seconds(1);

}  // namespace

Runtime::Runtime(Options options, Store& store, Clock& clock, Metrics& metrics)
    : options_(std::move(options)), store_(store), clock_(clock), metrics_(metrics) {}

absl::StatusOr<std::unique_ptr<Runtime>> Runtime::Start(Options options, Store& store, Clock& clock, Metrics& metrics) {
  auto runtime = std::unique_ptr<Runtime>(new Runtime(std::move(options), store, clock, metrics));
  BALLAST_ASSIGN_OR_RETURN(runtime->term_, BeginTerm(store));
  const absl::Time now = clock.Now();
  for (const GroupOptions& group : runtime->options_.groups) {
    const std::string& name = group.config.name;
    BALLAST_ASSIGN_OR_RETURN(std::unique_ptr<Group> loaded, Group::Load(group, runtime->term_, store, now));
    if (!runtime->groups_.emplace(name, std::move(loaded)).second) {
      return absl::InvalidArgumentError(absl::StrCat("group: name: ", name, " is given twice"));
    }
    runtime->gauges_[name] = std::make_unique<Gauges>(metrics, runtime->options_.expert_metrics_top);
  }
  metrics.Gauge("ballast_store_up").Set(1);
  metrics.Gauge("ballast_leader").Set(1);
  runtime->next_tick_ = runtime->next_gauges_ = now;
  for (auto& [name, group] : runtime->groups_) runtime->Publish(*group, now);
  runtime->loop_ = std::thread([r = runtime.get()] { r->Loop(); });
  runtime->planner_ = std::thread([r = runtime.get()] { r->PlannerLoop(); });
  return runtime;
}

Runtime::~Runtime() { Stop(); }

void Runtime::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    work_.NotifyAll();
    answered_.NotifyAll();
    published_.NotifyAll();
    jobs_changed_.NotifyAll();
  }
  if (loop_.joinable()) loop_.join();
  if (planner_.joinable()) planner_.join();
}

void Runtime::Post(std::function<void(absl::Time)> run, SessionId session) {
  MutexLock lock(mu_);
  if (stopping_) return;
  queue_.push_back({clock_.Now(), std::move(run), session});
  work_.NotifyOne();
}

SessionId Runtime::Open(std::shared_ptr<SessionSink> sink) {
  MutexLock lock(mu_);
  const SessionId id = ++last_session_;
  if (stopping_) {
    sink->Close(absl::UnavailableError("the controller is stopping"));
  } else {
    opened_[id] = std::move(sink);
  }
  return id;
}

void Runtime::Receive(SessionId session, v1::ConnectRequest message) {
  Post([this, session, message = std::move(message)](absl::Time now) { OnMessage(session, message, now); }, session);
}

void Runtime::Lost(SessionId session) {
  std::shared_ptr<SessionSink> never_greeted;
  {
    MutexLock lock(mu_);
    if (const auto found = opened_.find(session); found != opened_.end()) {
      never_greeted = std::move(found->second);
      opened_.erase(found);
      std::erase_if(queue_, [session](const Event& event) { return event.session == session; });
      return;
    }
  }
  Post([this, session](absl::Time now) {
    const auto found = sessions_.find(session);
    if (found == sessions_.end()) return;
    Group& group = *found->second.group;
    sessions_.erase(found);
    Effects effects;
    group.Lost(session, now, effects);
    Perform(group, std::move(effects));
  });
}

void Runtime::OnMessage(SessionId id, const v1::ConnectRequest& message, absl::Time now) {
  Effects effects;
  if (const auto found = sessions_.find(id); found != sessions_.end()) {
    Group& group = *found->second.group;
    group.Receive(id, message, now, effects);
    Perform(group, std::move(effects));
    return;
  }
  std::shared_ptr<SessionSink> sink;
  {
    MutexLock lock(mu_);
    const auto found = opened_.find(id);
    if (found == opened_.end()) return;
    sink = std::move(found->second);
    opened_.erase(found);
  }
  if (!message.has_hello()) return sink->Close(absl::InvalidArgumentError("hello: must be the first message"));
  const auto group = groups_.find(message.hello().group());
  if (group == groups_.end()) {
    return sink->Close(absl::FailedPreconditionError(
        absl::StrCat("hello.group: '", message.hello().group(), "' is none of ", absl::StrJoin(group_names(), ", "))));
  }
  sessions_[id] = {std::move(sink), group->second.get()};
  group->second->Hello(id, message.hello(), now, effects);
  Perform(*group->second, std::move(effects));
}

bool Runtime::Write(const std::vector<StoreWrite>& writes) {
  bool down = false;
  while (true) {
    const absl::Status status = store_.Apply(writes);
    MutexLock lock(mu_);
    if (status.ok()) {
      store_up_ = true;
      if (down) {
        Log(Severity::kInfo, "the store can be written again");
        metrics_.Gauge("ballast_store_up").Set(1);
        options_.store_changed(true);
      }
      return true;
    }
    if (!down) {
      Log(Severity::kError, "the store cannot be written; nothing is decided until it can",
          {{"error", status.message()}});
      metrics_.Gauge("ballast_store_up").Set(0);
      options_.store_changed(false);
    }
    down = true;
    store_up_ = false;
    answered_.NotifyAll();
    const absl::Time until = clock_.Now() + options_.store_retry;
    while (!stopping_ && clock_.Now() < until) clock_.WaitUntil(work_, mu_, until);
    if (stopping_) {
      gave_up_ = true;
      return false;
    }
  }
}

bool Runtime::Perform(Group& group, Effects effects) {
  for (EffectStep& step : effects.steps) {
    if (!step.writes.empty() && !Write(step.writes)) return false;
    for (auto& send : step.sends) {
      if (auto* message = std::get_if<SendMessage>(&send)) {
        if (const auto session = sessions_.find(message->session); session != sessions_.end()) {
          session->second.sink->Send(std::move(message->message));
        }
      } else {
        auto& close = std::get<CloseSession>(send);
        if (const auto session = sessions_.find(close.session); session != sessions_.end()) {
          session->second.sink->Close(std::move(close.status));
          sessions_.erase(session);
        }
      }
    }
  }
  for (const GroupEvent& event : effects.events) {
    Log(event.severity, event.text, {{"group", group.name()}});
    v1::Event& shown = unpublished_[group.name()].emplace_back();
    *shown.mutable_at() = ToProto(event.at);
    shown.set_text(event.text);
  }
  for (const MetricUpdate& update : effects.metrics) {
    const auto& defs = ControllerMetrics();
    const auto def = std::find_if(defs.begin(), defs.end(), [&](const MetricDef& d) { return d.name == update.name; });
    if (def != defs.end() && def->type == MetricType::kHistogram) {
      HistogramHandle histogram = metrics_.Histogram(update.name, update.labels);
      if (update.buckets.empty()) {
        histogram.Observe(update.value);
      } else {
        histogram.Add(update.buckets, update.value);
      }
    } else {
      metrics_.Counter(update.name, update.labels).Add(update.value);
    }
  }
  if (effects.job.has_value()) {
    MutexLock lock(mu_);
    jobs_.push_back(*std::move(effects.job));
    jobs_changed_.NotifyOne();
  }
  for (PlanReply& reply : effects.replies) {
    const auto pending = pending_plans_.find(reply.call);
    if (pending == pending_plans_.end()) continue;
    *pending->second.result = std::move(reply.plan);
    Done(*pending->second.waiter, absl::OkStatus());
    pending_plans_.erase(pending);
  }
  if (effects.changed) changed_[group.name()] = true;
  return true;
}

void Runtime::Publish(Group& group, absl::Time now) {
  v1::Group shown = group.Describe(now);
  std::vector<v1::Event> events = std::exchange(unpublished_[group.name()], {});
  changed_[group.name()] = false;
  MutexLock lock(mu_);
  Board& board = boards_[group.name()];
  if (board.version != 0 && events.empty() && board.group.SerializeAsString() == shown.SerializeAsString()) return;
  ++board.version;
  board.group = std::move(shown);
  for (v1::Event& event : events) board.events.emplace_back(board.version, std::move(event));
  while (board.events.size() > kEventsKept) board.events.pop_front();
  published_.NotifyAll();
}

absl::StatusOr<std::optional<Runtime::Watched>> Runtime::Watch(const std::string& group, uint64_t seen,
                                                               absl::Time deadline) {
  MutexLock lock(mu_);
  const auto board = boards_.find(group);
  if (board == boards_.end()) return absl::NotFoundError(absl::StrCat("group: there is no group '", group, "'"));
  while (!stopping_ && board->second.version == seen) {
    if (!clock_.WaitUntil(published_, mu_, deadline)) break;
  }
  if (stopping_) return absl::UnavailableError("the controller is stopping");
  if (board->second.version == seen) return std::optional<Watched>();
  Watched watched{.version = board->second.version, .group = board->second.group};
  for (const auto& [version, event] : board->second.events) {
    if (version > seen && seen != 0) watched.events.push_back(event);
  }
  return std::optional<Watched>(std::move(watched));
}

void Runtime::TickAll(absl::Time now) {
  next_tick_ = now + options_.tick;
  const bool gauges = now >= next_gauges_;
  if (gauges) next_gauges_ = now + kGaugesEvery;
  for (auto& [name, group] : groups_) {
    Effects effects;
    group->Tick(now, effects);
    if (!Perform(*group, std::move(effects))) return;
    if (!gauges) continue;
    gauges_.at(name)->Update(*group, now);
    changed_[name] = true;
  }
}

void Runtime::Round(std::deque<Event> events, absl::Time now) {
  for (auto& [name, group] : groups_) {
    Effects effects;
    group->StoodStill(now - next_tick_, now, effects);
    Perform(*group, std::move(effects));
  }
  for (Event& event : events) {
    event.run(event.at);
    if (gave_up_) return;
  }
  if (now >= next_tick_) TickAll(now);
  if (gave_up_) return;
  for (auto& [name, group] : groups_) {
    if (changed_[name]) Publish(*group, now);
  }
}

void Runtime::Loop() {
  while (true) {
    std::deque<Event> events;
    absl::Time now;
    {
      MutexLock lock(mu_);
      while (!stopping_ && queue_.empty() && clock_.Now() < next_tick_) clock_.WaitUntil(work_, mu_, next_tick_);
      if (stopping_) break;
      events = std::exchange(queue_, {});
      now = clock_.Now();
    }
    Round(std::move(events), now);
  }
  std::map<SessionId, std::shared_ptr<SessionSink>> opened;
  {
    MutexLock lock(mu_);
    opened = std::exchange(opened_, {});
  }
  const absl::Status stopping = absl::UnavailableError("the controller is stopping");
  for (auto& [id, sink] : opened) sink->Close(stopping);
  for (auto& [id, session] : sessions_) session.sink->Close(stopping);
  sessions_.clear();
  metrics_.Gauge("ballast_leader").Set(0);
}

void Runtime::PlannerLoop() {
  while (true) {
    PlanJob job;
    {
      MutexLock lock(mu_);
      while (!stopping_ && jobs_.empty()) jobs_changed_.Wait(mu_);
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    absl::StatusOr<PlanOutcome> outcome = options_.planner(job);
    Post([this, name = job.group, ticket = job.ticket, outcome = std::move(outcome)](absl::Time now) {
      Group& group = *groups_.at(name);
      Effects effects;
      group.Planned(ticket, outcome, now, effects);
      Perform(group, std::move(effects));
    });
  }
}

void Runtime::Done(Waiter& waiter, absl::Status status) {
  MutexLock lock(mu_);
  waiter.done = true;
  waiter.status = std::move(status);
  answered_.NotifyAll();
}

absl::Status Runtime::Await(Waiter& waiter, absl::Time deadline) {
  MutexLock lock(mu_);
  while (!waiter.done) {
    if (stopping_) return absl::UnavailableError("the controller is stopping");
    if (!store_up_) return absl::UnavailableError("the store cannot be written");
    if (!clock_.WaitUntil(answered_, mu_, deadline) && !waiter.done) {
      return absl::DeadlineExceededError("the controller did not get to it in time");
    }
  }
  return waiter.status;
}

absl::Status Runtime::Run(const std::string& group, absl::Time deadline,
                          std::function<void(Group&, absl::Time, Effects&)> work) {
  const auto found = groups_.find(group);
  if (found == groups_.end()) return absl::NotFoundError(absl::StrCat("group: there is no group '", group, "'"));
  auto waiter = std::make_shared<Waiter>();
  Post([this, waiter, g = found->second.get(), work = std::move(work)](absl::Time now) {
    Effects effects;
    work(*g, now, effects);
    if (Perform(*g, std::move(effects))) Done(*waiter, absl::OkStatus());
  });
  return Await(*waiter, deadline);
}

absl::StatusOr<v1::GetPlanResponse> Runtime::CreatePlan(const v1::CreatePlanRequest& request, absl::Time deadline) {
  const auto found = groups_.find(request.group());
  if (found == groups_.end()) {
    return absl::NotFoundError(absl::StrCat("group: there is no group '", request.group(), "'"));
  }
  PendingPlan pending{std::make_shared<Waiter>(),
                      std::make_shared<absl::StatusOr<v1::GetPlanResponse>>(absl::UnknownError("not run"))};
  Post([this, pending, request, g = found->second.get()](absl::Time now) {
    const uint64_t call = ++last_call_;
    pending_plans_[call] = pending;
    Effects effects;
    g->CreatePlan(call, request, now, effects);
    Perform(*g, std::move(effects));
  });
  BALLAST_RETURN_IF_ERROR(Await(*pending.waiter, deadline));
  return std::move(*pending.result);
}

std::vector<std::string> Runtime::group_names() const {
  std::vector<std::string> names;
  for (const auto& [name, group] : groups_) names.push_back(name);
  return names;
}

}  // namespace ballast
