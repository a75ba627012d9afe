#include "worker/step/step_engine.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "worker/moe/wire.h"

namespace ballast {

// The step thread runs Loop: it installs views as they are asked for, and within one runs steps until something ends
// it. What other threads ask for lies under mu_; everything else belongs to the step thread.
class StepEngine::Impl {
 public:
  Impl(const StepEngineOptions& options, const StepEngineParts& parts)
      : options_(options),
        parts_(parts),
        model_(*parts.model),
        share_chooser_(options.step_shares, parts.model->shape().moe_layers),
        layer_shares_(parts.model->shape().moe_layers),
        viewless_since_(Now()),
        thread_([this] { Loop(); }) {}
  ~Impl() { Stop(); }

  void NotifyWork() BALLAST_EXCLUDES(mu_);
  absl::Status InstallView(GroupView view, Placement placement, uint64_t policy_version) BALLAST_EXCLUDES(mu_);
  absl::Status CommitVersion(PlacementVersion version) BALLAST_EXCLUDES(mu_);
  ViewId view() const BALLAST_EXCLUDES(mu_);
  StepId last_step() const BALLAST_EXCLUDES(mu_);
  void Stop() BALLAST_EXCLUDES(mu_);

 private:
  struct ViewRequest {
    GroupView view;
    Placement placement;
    uint64_t policy_version = 0;
  };
  // What other ranks are told, and asked, outside of the layers.
  struct Follower {
    int rank = 0;
    WorkRequest message;
    RequestId receive;
    Announcement announcement;
    RequestId send;
  };

  void Loop() BALLAST_EXCLUDES(mu_);
  // Waits for the next view, or gives nothing when the engine stops. Ends requests once the patience is over.
  std::optional<ViewRequest> NextView() BALLAST_EXCLUDES(mu_);
  absl::Status Enter(ViewRequest request, std::vector<int>& unreachable) BALLAST_EXCLUDES(mu_);
  void Leave(const absl::Status& reason) BALLAST_EXCLUDES(mu_);
  void TellIfLost();
  // Runs steps until the view is to be left; says why.
  absl::Status RunView();
  absl::Status StepAlone();
  absl::Status LeadStep();
  absl::Status FollowStep();
  bool StepIsDue();
  // Counts the step on.
  Announcement NextAnnouncement();
  absl::Status TakeWorkRequest(size_t follower);
  absl::Status Announce();
  absl::Status AskForStep();
  // `start`: when it was announced, or when that was heard.
  absl::Status RunStep(const Announcement& announcement, absl::Time start);
  absl::Status FlipTo(PlacementVersion version);
  void ObserveShares();

  absl::Time Now() const { return options_.clock->Now(); }
  bool Interrupted() const BALLAST_EXCLUDES(mu_);
  // Ends the waits of the view in which steps run, or which is being entered.
  void InterruptStep() BALLAST_REQUIRES(mu_);
  // The version of the next step: a committed one that waits to be announced, or the one in force.
  PlacementVersion NextVersion() const BALLAST_EXCLUDES(mu_);

  const StepEngineOptions options_;
  const StepEngineParts parts_;
  StepModel& model_;

  // The step thread's.
  GroupView view_;
  uint64_t policy_version_ = 0;
  std::unique_ptr<Transport> transport_;
  PlacementVersion version_;
  StepId step_;  // announced last
  // Leader: what decides on the forms; the phase of the step before.
  ShareChooser share_chooser_;
  TokenPhase last_phase_ = TokenPhase::kPrefill;
  // Leader: rows of the next step. Each rank tells its room in a step's messages, so the first of a view has one row.
  int capacity_ = 0;
  // Of the open step.
  std::vector<LayerShares> layer_shares_;
  // Since when no view could be served in.
  absl::Time viewless_since_;
  // Ranks to blame for the view's end.
  std::vector<int> blamed_;
  // A version whose first step has not ended here.
  bool version_is_new_ = false;
  // Leader.
  std::vector<Follower> followers_;
  bool work_asked_ = false;  // by a follower, after step_
  std::vector<RequestId> requests_;
  // Follower.
  Announcement announcement_;
  RequestId announcement_receive_;
  WorkRequest work_request_;
  RequestId work_send_;
  bool work_request_sent_ = false;  // after step_, or said in it
  bool more_work_said_ = false;     // in step_
  absl::Time work_request_deadline_ = absl::InfiniteFuture();

  mutable Mutex mu_;
  CondVar changed_;
  bool stop_ BALLAST_GUARDED_BY(mu_) = false;
  bool work_notified_ BALLAST_GUARDED_BY(mu_) = false;
  std::optional<ViewRequest> next_view_ BALLAST_GUARDED_BY(mu_);
  // Newest view asked for.
  ViewId asked_view_ BALLAST_GUARDED_BY(mu_);
  std::optional<PlacementVersion> committed_ BALLAST_GUARDED_BY(mu_);
  // Of the view in which steps run; 0: none.
  ViewId serving_view_ BALLAST_GUARDED_BY(mu_);
  bool leads_ BALLAST_GUARDED_BY(mu_) = false;
  // Why no steps run; OK while they do.
  absl::Status not_serving_ BALLAST_GUARDED_BY(mu_) = absl::UnavailableError("the group has no view yet");
  StepId ended_step_ BALLAST_GUARDED_BY(mu_);
  // From when the step thread enters a view until it leaves it: other threads may interrupt the model, and the
  // transport once there is one.
  bool in_view_ BALLAST_GUARDED_BY(mu_) = false;
  Transport* interruptible_ BALLAST_GUARDED_BY(mu_) = nullptr;
  // The same transport while other threads may wake it.
  Transport* wakeable_ BALLAST_GUARDED_BY(mu_) = nullptr;

  // Last: it runs Loop at once.
  std::thread thread_;
};

void StepEngine::Impl::NotifyWork() {
  MutexLock lock(mu_);
  work_notified_ = true;
  if (wakeable_ != nullptr) wakeable_->Wake();
  changed_.NotifyAll();
}

absl::Status StepEngine::Impl::InstallView(GroupView view, Placement placement, uint64_t policy_version) {
  if (view.members.empty())
    return absl::InvalidArgumentError(absl::StrCat("view ", view.view.value(), " has no members"));
  if (view.rank < 0 || view.rank >= view.size()) {
    return absl::InvalidArgumentError(absl::StrCat("rank is ", view.rank, ", not between 0 and ", view.size() - 1));
  }
  if (view.size() > kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrCat("view has ", view.size(), " members, more than ", kMaxRanks));
  }
  for (int i = 0; i < view.size(); ++i) {
    for (int j = 0; j < i; ++j) {
      if (view.members[i].worker == view.members[j].worker) {
        return absl::InvalidArgumentError(
            absl::StrCat("view names worker ", view.members[i].worker, " at ranks ", j, " and ", i));
      }
    }
  }
  if (view.members[view.rank].worker != parts_.experts->worker()) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", view.rank, " is ", view.members[view.rank].worker,
                                                   ", not this worker, ", parts_.experts->worker()));
  }
  MutexLock lock(mu_);
  if (view.view <= asked_view_) {
    return absl::FailedPreconditionError(
        absl::StrCat("view ", view.view.value(), " is not newer than view ", asked_view_.value()));
  }
  if (stop_) return absl::FailedPreconditionError("the engine has stopped");
  // Ends a Connect that is under way for the view before.
  if (asked_view_ != ViewId()) parts_.transports->Cancel(asked_view_);
  asked_view_ = view.view;
  next_view_ =
      ViewRequest{.view = std::move(view), .placement = std::move(placement), .policy_version = policy_version};
  InterruptStep();
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status StepEngine::Impl::CommitVersion(PlacementVersion version) {
  const bool prepared = parts_.experts->Prepared(version);
  MutexLock lock(mu_);
  // Under the lock, which FlipTo takes after the flip: what it has not flipped yet it drops from committed_ then.
  const auto in_force = parts_.experts->in_force();
  if (in_force != nullptr && version <= in_force->version()) return absl::OkStatus();
  if (!leads_ || serving_view_ == ViewId()) return absl::OkStatus();
  if (!prepared) {
    return absl::FailedPreconditionError(absl::StrCat("epoch ", version.epoch.value(), " shares ",
                                                      version.shares.value(),
                                                      " is not prepared with every replica verified"));
  }
  committed_ = version;
  if (wakeable_ != nullptr) wakeable_->Wake();
  changed_.NotifyAll();
  return absl::OkStatus();
}

ViewId StepEngine::Impl::view() const {
  MutexLock lock(mu_);
  return serving_view_;
}

StepId StepEngine::Impl::last_step() const {
  MutexLock lock(mu_);
  return ended_step_;
}

void StepEngine::Impl::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    InterruptStep();
    if (asked_view_ != ViewId()) parts_.transports->Cancel(asked_view_);
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void StepEngine::Impl::InterruptStep() {
  if (!in_view_) return;
  if (interruptible_ != nullptr) interruptible_->Interrupt();
  model_.Interrupt();
}

bool StepEngine::Impl::Interrupted() const {
  MutexLock lock(mu_);
  return stop_ || next_view_.has_value();
}

PlacementVersion StepEngine::Impl::NextVersion() const {
  MutexLock lock(mu_);
  return std::max(version_, committed_.value_or(version_));
}

void StepEngine::Impl::Loop() {
  while (std::optional<ViewRequest> request = NextView()) {
    const ViewId view = request->view.view;
    std::vector<int> unreachable;
    const absl::Status entered = Enter(*std::move(request), unreachable);
    if (!entered.ok()) {
      TellIfLost();
      Leave(
          absl::UnavailableError(absl::StrCat("view ", view.value(), " could not be installed: ", entered.message())));
      // Overtaken by a newer view, or stopping: nobody waits for this one.
      if (!Interrupted()) parts_.events->ViewInstalled(view, entered, unreachable);
      continue;
    }
    parts_.events->ViewInstalled(view, absl::OkStatus(), {});
    blamed_.clear();
    const absl::Status why = RunView();
    TellIfLost();
    viewless_since_ = Now();
    const bool asked = Interrupted();
    if (transport_ != nullptr) {
      for (const int rank : transport_->lost_peers()) blamed_.push_back(rank);
    }
    std::sort(blamed_.begin(), blamed_.end());
    blamed_.erase(std::unique(blamed_.begin(), blamed_.end()), blamed_.end());
    std::string who;
    for (const int rank : blamed_) absl::StrAppend(&who, who.empty() ? "" : ", ", view_.members[rank].worker);
    const absl::Status reason = absl::UnavailableError(absl::StrCat(
        "view ", view.value(), " ended: ", why.message(), who.empty() ? "" : " (", who, who.empty() ? "" : ")"));
    Leave(reason);
    if (!asked) parts_.events->PeerLost(view, blamed_, reason);
  }
}

std::optional<StepEngine::Impl::ViewRequest> StepEngine::Impl::NextView() {
  const absl::Time overdue = viewless_since_ + options_.view_patience;
  bool told = false;
  while (true) {
    absl::Status reason;
    std::optional<ViewRequest> next;
    {
      MutexLock lock(mu_);
      while (!stop_ && !next_view_.has_value()) {
        // After the patience requests are ended as they come, so that none waits for a view that may never be.
        if (told && work_notified_) break;
        if (!options_.clock->WaitUntil(changed_, mu_, told ? absl::InfiniteFuture() : overdue)) break;
      }
      if (stop_) return std::nullopt;
      next = std::exchange(next_view_, std::nullopt);
      // Entering one may take long, and fail as those before it: requests do not wait for that again.
      if (next.has_value() && (told || Now() < overdue)) return next;
      work_notified_ = false;
      reason = not_serving_;
    }
    told = true;
    parts_.source->NoView(reason);
    if (next.has_value()) return next;
  }
}

absl::Status StepEngine::Impl::Enter(ViewRequest request, std::vector<int>& unreachable) {
  BALLAST_RETURN_IF_ERROR(parts_.experts->Load(request.placement));
  view_ = std::move(request.view);
  policy_version_ = request.policy_version;
  version_ = VersionOf(request.placement);
  version_is_new_ = true;
  step_ = StepId();
  if (view_.size() > 1) {
    BALLAST_ASSIGN_OR_RETURN(transport_,
                             parts_.transports->Connect(view_, Now() + options_.connect_timeout, unreachable));
  }
  {
    MutexLock lock(mu_);
    if (stop_ || next_view_.has_value()) return absl::CancelledError("a newer view is asked for");
    in_view_ = true;
    interruptible_ = transport_.get();
  }
  const absl::Status entered =
      model_.Enter(view_, transport_.get(), parts_.experts->in_force(), Now() + options_.connect_timeout);
  if (!entered.ok()) {
    if (transport_ != nullptr) unreachable = transport_->lost_peers();
    return entered;
  }

  followers_.clear();
  work_asked_ = false;
  work_request_sent_ = false;
  work_send_ = RequestId();
  share_chooser_.Enter();
  last_phase_ = TokenPhase::kPrefill;
  capacity_ = view_.size() == 1 ? model_.shape().capacity : 1;
  if (view_.leads()) {
    followers_.resize(view_.size() - 1);
    for (size_t i = 0; i < followers_.size(); ++i) {
      followers_[i].rank = static_cast<int>(i) + 1;
      followers_[i].receive = transport_->Receive(followers_[i].rank, MakeTag(MessageKind::kWork, 0, 0),
                                                  std::as_writable_bytes(std::span(&followers_[i].message, 1)));
    }
  } else {
    announcement_receive_ = transport_->Receive(0, MakeTag(MessageKind::kAnnounce, 0, 0),
                                                std::as_writable_bytes(std::span(&announcement_, 1)));
  }
  MutexLock lock(mu_);
  if (stop_ || next_view_.has_value()) return absl::CancelledError("a newer view is asked for");
  wakeable_ = transport_.get();
  serving_view_ = view_.view;
  leads_ = view_.leads();
  committed_.reset();
  ended_step_ = StepId();
  not_serving_ = absl::OkStatus();
  return absl::OkStatus();
}

// Before the view is left: what that frees may wait for a device that answers no more.
void StepEngine::Impl::TellIfLost() {
  if (const absl::Status lost = model_.Lost(); !lost.ok()) parts_.events->ProcessorLost(lost);
}

void StepEngine::Impl::Leave(const absl::Status& reason) {
  {
    MutexLock lock(mu_);
    in_view_ = false;
    interruptible_ = nullptr;
    wakeable_ = nullptr;
    serving_view_ = ViewId();
    leads_ = false;
    committed_.reset();
    not_serving_ = reason;
  }
  // The others notice at once.
  transport_.reset();
  model_.Leave();
}

absl::Status StepEngine::Impl::RunView() {
  while (true) {
    if (Interrupted()) return absl::CancelledError("a newer view is coming");
    if (view_.size() == 1) {
      BALLAST_RETURN_IF_ERROR(StepAlone());
    } else if (view_.leads()) {
      BALLAST_RETURN_IF_ERROR(LeadStep());
    } else {
      BALLAST_RETURN_IF_ERROR(FollowStep());
    }
  }
}

bool StepEngine::Impl::StepIsDue() {
  // HasWork first: it takes in what is new.
  return parts_.source->HasWork() || work_asked_ || step_ == StepId() || NextVersion() != version_;
}

Announcement StepEngine::Impl::NextAnnouncement() {
  const PlacementVersion version = NextVersion();
  step_ = step_.next();
  work_asked_ = false;
  Announcement announcement{
      .header = {.kind = MessageKind::kAnnounce, .view = view_.view.value(), .step = step_.value()},
      .epoch = version.epoch.value(),
      .shares_version = version.shares.value(),
      .policy_version = policy_version_,
      .capacity = static_cast<uint32_t>(capacity_)};
  // A step mostly is of the phase of the one before. Layers are judged by the placement of that one too: where a new
  // one has nothing to share, all forms are the same.
  share_chooser_.Choose(
      last_phase_, [&](int layer) { return model_.shared(layer); }, layer_shares_);
  for (size_t l = 0; l < layer_shares_.size(); ++l) {
    SetAnnouncedShares(static_cast<int>(l), layer_shares_[l], announcement);
  }
  return announcement;
}

// What the leader learns of forms from a step that has ended.
void StepEngine::Impl::ObserveShares() {
  const MoeStepStats& stats = model_.stats();
  // The phase that the forms were chosen for, not the step's own: what is learned goes to where it is used.
  ShareObservation seen{.phase = last_phase_};
  last_phase_ = stats.any_prefill ? TokenPhase::kPrefill : TokenPhase::kDecode;
  const int exchanged = stats.layers_by_form[static_cast<int>(ShareForm::kCurrent)];
  if (exchanged > 0) seen.exchange = absl::ToDoubleSeconds(stats.count_exchange) / exchanged;
  // A step without pairs says nothing.
  if (const int layer = stats.balancedness < 0 ? -1 : share_chooser_.probe(); layer >= 0) {
    const absl::Time start = Now();
    if (const std::optional<ShareComparison> comparison = model_.CompareShares(layer)) {
      seen.solve = absl::ToDoubleSeconds(Now() - start) / (comparison->previous_known ? 2 : 1);
      seen.layer = layer;
      seen.comparison = *comparison;
      seen.per_pair = model_.SecondsPerPair(comparison->busiest) * comparison->busiest_speed;
    }
  }
  share_chooser_.Observe(seen);
}

absl::Status StepEngine::Impl::StepAlone() {
  while (!StepIsDue()) {
    MutexLock lock(mu_);
    while (!stop_ && !next_view_.has_value() && !committed_.has_value() && !work_notified_) {
      options_.clock->WaitUntil(changed_, mu_, absl::InfiniteFuture());
    }
    work_notified_ = false;
    if (stop_ || next_view_.has_value()) return absl::OkStatus();
  }
  return RunStep(NextAnnouncement(), Now());
}

absl::Status StepEngine::Impl::LeadStep() {
  // What followers asked since the last step; then, while no step is due, sleep until something happens.
  bool due = StepIsDue();
  while (true) {
    std::vector<RequestId>& receives = requests_;
    receives.clear();
    for (const Follower& follower : followers_) receives.push_back(follower.receive);
    const absl::StatusOr<int> asked =
        transport_->WaitAny(receives, due ? absl::InfinitePast() : absl::InfiniteFuture());
    if (asked.ok()) {
      BALLAST_RETURN_IF_ERROR(TakeWorkRequest(*asked));
    } else if (due && absl::IsDeadlineExceeded(asked.status())) {
      return Announce();
    } else if (!absl::IsAborted(asked.status())) {
      return asked.status();
    } else if (Interrupted()) {
      return absl::OkStatus();
    }
    due = due || StepIsDue();
  }
}

absl::Status StepEngine::Impl::TakeWorkRequest(size_t i) {
  Follower& follower = followers_[i];
  const std::span<std::byte> buffer = std::as_writable_bytes(std::span(&follower.message, 1));
  const absl::StatusOr<WorkRequest> request =
      ParseWorkRequest(follower.rank, buffer.first(transport_->ReceivedBytes(follower.receive)));
  if (!request.ok()) {
    blamed_.push_back(follower.rank);
    return request.status();
  }
  // An older one was answered by the steps since, in which its sender could say that it has more.
  if (request->header.view == view_.view.value() && request->header.step == step_.value()) work_asked_ = true;
  follower.receive = transport_->Receive(follower.rank, MakeTag(MessageKind::kWork, 0, 0), buffer);
  return absl::OkStatus();
}

absl::Status StepEngine::Impl::Announce() {
  // The announcements of the step before are long gone; their buffers are used again.
  requests_.clear();
  for (const Follower& follower : followers_) {
    if (follower.send != RequestId()) requests_.push_back(follower.send);
  }
  BALLAST_RETURN_IF_ERROR(transport_->Wait(requests_, Now() + options_.step_timeout));
  const Announcement announcement = NextAnnouncement();
  // Before the followers can begin.
  const absl::Time start = Now();
  for (Follower& follower : followers_) {
    follower.announcement = announcement;
    follower.send = transport_->Send(follower.rank, MakeTag(MessageKind::kAnnounce, 0, 0),
                                     std::as_bytes(std::span(&follower.announcement, 1)));
  }
  BALLAST_RETURN_IF_ERROR(RunStep(announcement, start));
  // Who said in the step that more will come does not ask.
  work_asked_ = model_.stats().any_more_work;
  capacity_ = model_.stats().least_capacity;
  return absl::OkStatus();
}

absl::Status StepEngine::Impl::AskForStep() {
  if (work_request_sent_ || !parts_.source->HasWork()) return absl::OkStatus();
  if (work_send_ != RequestId()) {
    BALLAST_RETURN_IF_ERROR(transport_->Wait({&work_send_, 1}, Now() + options_.step_timeout));
  }
  work_request_ = {.header = {.kind = MessageKind::kWork, .view = view_.view.value(), .step = step_.value()}};
  work_send_ = transport_->Send(0, MakeTag(MessageKind::kWork, 0, 0), std::as_bytes(std::span(&work_request_, 1)));
  work_request_sent_ = true;
  work_request_deadline_ = Now() + options_.step_timeout;
  return absl::OkStatus();
}

absl::Status StepEngine::Impl::FollowStep() {
  while (true) {
    // The announcement is mostly there already, and then there is nothing to ask for.
    absl::StatusOr<int> done = transport_->WaitAny({&announcement_receive_, 1}, absl::InfinitePast());
    if (absl::IsDeadlineExceeded(done.status())) {
      BALLAST_RETURN_IF_ERROR(AskForStep());
      done = transport_->WaitAny({&announcement_receive_, 1},
                                 work_request_sent_ ? work_request_deadline_ : absl::InfiniteFuture());
      if (absl::IsDeadlineExceeded(done.status())) blamed_.push_back(0);
    }
    if (absl::IsAborted(done.status())) {
      if (Interrupted()) return absl::OkStatus();
      continue;
    }
    BALLAST_RETURN_IF_ERROR(done.status());
    const std::span<std::byte> buffer = std::as_writable_bytes(std::span(&announcement_, 1));
    const absl::StatusOr<Announcement> announcement =
        ParseAnnouncement(buffer.first(transport_->ReceivedBytes(announcement_receive_)));
    if (!announcement.ok()) {
      blamed_.push_back(0);
      return announcement.status();
    }
    announcement_receive_ = transport_->Receive(0, MakeTag(MessageKind::kAnnounce, 0, 0), buffer);
    if (announcement->header.view < view_.view.value()) continue;
    if (announcement->header.view != view_.view.value() || announcement->header.step != step_.next().value()) {
      blamed_.push_back(0);
      return absl::InvalidArgumentError(absl::StrCat("announcement is of view ", announcement->header.view, " step ",
                                                     announcement->header.step, ", not of view ", view_.view.value(),
                                                     " step ", step_.next().value()));
    }
    step_ = step_.next();
    work_request_sent_ = false;
    BALLAST_RETURN_IF_ERROR(RunStep(*announcement, Now()));
    if (more_work_said_) {
      // As good as having asked.
      work_request_sent_ = true;
      work_request_deadline_ = Now() + options_.step_timeout;
    }
    return absl::OkStatus();
  }
}

absl::Status StepEngine::Impl::FlipTo(PlacementVersion version) {
  if (version == version_) return absl::OkStatus();
  if (version < version_) {
    return absl::InternalError(absl::StrCat("step announced in epoch ", version.epoch.value(), " shares ",
                                            version.shares.value(), ", older than epoch ", version_.epoch.value(),
                                            " shares ", version_.shares.value()));
  }
  BALLAST_RETURN_IF_ERROR(parts_.experts->Flip(version));
  version_ = version;
  version_is_new_ = true;
  BALLAST_RETURN_IF_ERROR(model_.Flip(parts_.experts->in_force()));
  share_chooser_.Flip();
  MutexLock lock(mu_);
  if (committed_.has_value() && *committed_ <= version) committed_.reset();
  return absl::OkStatus();
}

absl::Status StepEngine::Impl::RunStep(const Announcement& announcement, absl::Time start) {
  if (announcement.capacity > static_cast<uint32_t>(model_.shape().capacity) || announcement.capacity == 0) {
    return absl::FailedPreconditionError(absl::StrCat("step announced with a capacity of ", announcement.capacity,
                                                      "; this worker has ", model_.shape().capacity));
  }
  BALLAST_RETURN_IF_ERROR(FlipTo({Epoch(announcement.epoch), SharesVersion(announcement.shares_version)}));
  StepRows rows;
  bool offered = parts_.source->HasWork();
  if (offered) rows = parts_.source->Next(static_cast<int>(announcement.capacity));
  BALLAST_CHECK(rows.labels.size() == rows.input.token_ids.size() &&
                rows.labels.size() <= static_cast<size_t>(announcement.capacity))
      << rows.labels.size() << " labels of " << rows.input.token_ids.size() << " rows";
  const size_t floats = rows.input.logit_rows.size() * static_cast<size_t>(model_.shape().vocab_size);
  BALLAST_CHECK(floats <= parts_.logits.size()) << floats << " logits, room for " << parts_.logits.size();

  const absl::Time deadline = start + options_.step_timeout;
  for (size_t l = 0; l < layer_shares_.size(); ++l) {
    layer_shares_[l] = AnnouncedShares(announcement, static_cast<int>(l));
  }
  MoeStep step{
      .step = step_, .rows = rows.labels, .more_work = rows.more_work, .shares = layer_shares_, .deadline = deadline};
  absl::Status status = model_.Run(step, rows.input, parts_.logits.data());
  if (!status.ok() && !model_.begun() && offered) {
    // The rows were refused before the first exchange: the peers still need this rank.
    parts_.source->Discard(status);
    offered = false;
    rows = StepRows{};
    step.rows = {};
    step.more_work = false;
    status = model_.Run(step, {}, parts_.logits.data());
  }
  if (!status.ok()) {
    for (const int rank : model_.late_peers()) blamed_.push_back(rank);
    // The step had begun, so what failed is the view, whatever the code: a peer's malformed message is InvalidArgument.
    if (offered) parts_.source->Discard(absl::UnavailableError(status.message()));
    return status;
  }
  model_.CountStep(*parts_.counters);
  if (version_is_new_) {
    // This step's last exchange has ended, so every rank has begun it, and with that ended all steps before.
    parts_.experts->EndOldEpochs();
    version_is_new_ = false;
    parts_.events->VersionInForce(view_.view, version_, step_);
  }
  {
    MutexLock lock(mu_);
    ended_step_ = step_;
  }
  more_work_said_ = rows.more_work;
  if (offered) {
    parts_.source->Commit({.view = view_.view,
                           .step = step_,
                           .version = version_,
                           .logits = parts_.logits.data(),
                           .failures = model_.failures()});
  }
  parts_.events->StepEnded({.view = view_.view,
                            .step = step_,
                            .version = version_,
                            .rows = static_cast<int>(rows.labels.size()),
                            .duration = Now() - start,
                            .moe = &model_.stats()});
  // Last, so that no result waits for it.
  if (view_.leads() && view_.size() > 1) ObserveShares();
  return absl::OkStatus();
}

StepEngine::StepEngine(const StepEngineOptions& options, const StepEngineParts& parts) {
  BALLAST_CHECK(parts.model && parts.experts && parts.transports && parts.source && parts.events && parts.counters);
  impl_ = std::make_unique<Impl>(options, parts);
}
StepEngine::~StepEngine() = default;

void StepEngine::NotifyWork() { impl_->NotifyWork(); }
absl::Status StepEngine::InstallView(GroupView view, Placement placement, uint64_t policy_version) {
  return impl_->InstallView(std::move(view), std::move(placement), policy_version);
}
absl::Status StepEngine::CommitVersion(PlacementVersion version) { return impl_->CommitVersion(version); }
ViewId StepEngine::view() const { return impl_->view(); }
StepId StepEngine::last_step() const { return impl_->last_step(); }
void StepEngine::Stop() { impl_->Stop(); }

}  // namespace ballast
