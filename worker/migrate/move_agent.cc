#include "worker/migrate/move_agent.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// How often and how long slots that the last wave has freed, but that a peer still reads, are waited for.
constexpr absl::Duration kSlotPoll = absl::Milliseconds(20);
constexpr absl::Duration kSlotPatience = absl::Seconds(5);

absl::Status Annotate(const absl::Status& status, const StagedReplica& replica, const std::string& source) {
  return absl::Status(status.code(), absl::StrCat("layer ", replica.expert.layer, " expert ", replica.expert.expert,
                                                  " from ", source, ": ", status.message()));
}

absl::StatusOr<std::vector<StagedReplica>> PrepareSlots(const MoveJob& job, ExpertStore& store, Clock& clock,
                                                        const std::function<bool()>& cancelled) {
  const absl::Time patience = std::min(job.deadline, clock.Now() + kSlotPatience);
  Mutex mu;
  CondVar never;
  MutexLock lock(mu);
  for (;;) {
    absl::StatusOr<std::vector<StagedReplica>> staged = store.Prepare(job.placement);
    if (!absl::IsFailedPrecondition(staged.status()) || cancelled() || clock.Now() >= patience) return staged;
    const absl::Time next = clock.Now() + kSlotPoll;
    while (clock.Now() < next) clock.WaitUntil(never, mu, next);
  }
}

// Pulls one replica into its slot.
absl::Status PullReplica(const MoveJob& job, const StagedReplica& replica, const std::string& address,
                         ExpertStore& store, ReplicaPuller& puller) {
  BALLAST_ASSIGN_OR_RETURN(StagedWrite write, store.StartWrite(replica));
  BALLAST_RETURN_IF_ERROR(puller.Pull(address, replica.expert, write.bytes(), job.max_bytes_per_second, job.deadline));
  return std::move(write).Finish();
}

}  // namespace

absl::StatusOr<v1::WavePrepared> DoMoves(const MoveJob& job, ExpertStore& store, ReplicaPuller& puller, Clock& clock,
                                         const std::function<bool()>& cancelled,
                                         const std::function<void(const v1::MoveProgress&)>& progress) {
  const Epoch epoch = job.placement.epoch;
  v1::MoveProgress done;
  done.set_epoch(epoch.value());
  const auto bring_in = [&]() -> absl::Status {
    BALLAST_ASSIGN_OR_RETURN(const std::vector<StagedReplica> staged, PrepareSlots(job, store, clock, cancelled));
    const auto bytes = static_cast<int64_t>(store.expert_bytes());
    done.set_moves_total(static_cast<int32_t>(staged.size()));
    done.set_bytes_total(done.moves_total() * bytes);
    for (const StagedReplica& replica : staged) {
      if (cancelled()) return absl::CancelledError("the wave was aborted");
      if (clock.Now() >= job.deadline) {
        return absl::DeadlineExceededError(absl::StrCat("the wave's deadline passed with ", done.moves_done(), " of ",
                                                        done.moves_total(), " replicas brought in"));
      }
      const auto move = std::find_if(job.moves.begin(), job.moves.end(), [&](const v1::Move& m) {
        return m.layer() == replica.expert.layer && m.expert() == replica.expert.expert && m.slot() == replica.slot;
      });
      const std::string source = move == job.moves.end() ? "" : move->source();
      const auto peer = job.peers.find(source);
      bool pulled = false;
      if (peer != job.peers.end()) {
        const absl::Status status = PullReplica(job, replica, peer->second, store, puller);
        pulled = status.ok();
        if (!pulled) {
          if (cancelled()) return absl::CancelledError("the wave was aborted");
          Log(Severity::kWarning, "pull failed, reading the checkpoint instead",
              {{"epoch", epoch}, {"status", Annotate(status, replica, source)}});
        }
      }
      if (!pulled) {
        if (absl::Status status = store.StageFromSource(replica); !status.ok()) {
          return Annotate(status, replica, "the checkpoint");
        }
      }
      done.set_moves_done(done.moves_done() + 1);
      done.set_bytes_done(done.bytes_done() + bytes);
      if (pulled) {
        done.set_bytes_from_peers(done.bytes_from_peers() + bytes);
      } else {
        done.set_bytes_from_checkpoint(done.bytes_from_checkpoint() + bytes);
      }
      progress(done);
    }
    if (cancelled()) return absl::CancelledError("the wave was aborted");
    if (!store.Prepared(VersionOf(job.placement))) return absl::CancelledError("the prepared epoch was overtaken");
    return absl::OkStatus();
  };
  if (absl::Status status = bring_in(); !status.ok()) {
    store.Abort(epoch);
    return status;
  }
  v1::WavePrepared prepared;
  prepared.set_epoch(epoch.value());
  prepared.set_bytes_from_peers(done.bytes_from_peers());
  prepared.set_bytes_from_checkpoint(done.bytes_from_checkpoint());
  return prepared;
}

MoveAgent::MoveAgent(ExpertStore& store, ReplicaPuller& puller, MoveListener& listener, Clock& clock)
    : store_(store), puller_(puller), listener_(listener), clock_(clock), thread_([this] { Loop(); }) {}

MoveAgent::~MoveAgent() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    cancelled_ = true;
    jobs_.clear();
    changed_.NotifyAll();
  }
  puller_.Cancel();
  thread_.join();
}

void MoveAgent::Start(MoveJob job) {
  MutexLock lock(mu_);
  jobs_.push_back(std::move(job));
  changed_.NotifyAll();
}

void MoveAgent::Abort(Epoch epoch) {
  bool running = false;
  {
    MutexLock lock(mu_);
    std::erase_if(jobs_, [epoch](const MoveJob& job) { return job.placement.epoch == epoch; });
    running = running_ == epoch;
    if (running) cancelled_ = true;
  }
  store_.Abort(epoch);
  // A pull that begins after this finds the cancelled flag or the store's first.
  if (running) puller_.Cancel();
}

void MoveAgent::AbortAll() {
  std::vector<Epoch> epochs;
  {
    MutexLock lock(mu_);
    for (const MoveJob& job : jobs_) epochs.push_back(job.placement.epoch);
    if (running_.has_value()) epochs.push_back(*running_);
  }
  if (const auto prepared = store_.prepared(); prepared.has_value()) epochs.push_back(prepared->epoch);
  for (const Epoch epoch : epochs) Abort(epoch);
}

void MoveAgent::Loop() {
  for (;;) {
    MoveJob job;
    {
      MutexLock lock(mu_);
      while (jobs_.empty() && !stopping_) changed_.Wait(mu_);
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      running_ = job.placement.epoch;
      cancelled_ = false;
    }
    const auto cancelled = [this] {
      MutexLock lock(mu_);
      return cancelled_;
    };
    const absl::StatusOr<v1::WavePrepared> result =
        DoMoves(job, store_, puller_, clock_, cancelled,
                [this](const v1::MoveProgress& progress) { listener_.OnMoveProgress(progress); });
    bool aborted = false;
    {
      MutexLock lock(mu_);
      aborted = cancelled_;
      running_.reset();
      if (stopping_) return;
    }
    if (aborted) {
      store_.Abort(job.placement.epoch);
    } else if (result.ok()) {
      listener_.OnWavePrepared(*result);
    } else {
      listener_.OnWaveFailed(job.placement.epoch, result.status().ToString());
    }
  }
}

}  // namespace ballast
