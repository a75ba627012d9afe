#include "worker/migrate/move_agent.h"

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/experts/fake_experts.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kBytes = 96;
constexpr int kExperts = 4;

class FakePuller final : public ReplicaPuller {
 public:
  absl::Status Pull(const std::string& address, ExpertId expert, std::span<std::byte> out, int64_t max_bytes_per_second,
                    absl::Time deadline) override BALLAST_EXCLUDES(mu_) {
    pulled.push_back(address + "/" + std::to_string(expert.expert));
    if (hang) {
      MutexLock lock(mu_);
      hanging_ = true;
      changed_.NotifyAll();
      while (!cancelled_) changed_.Wait(mu_);
      return absl::CancelledError("cancelled");
    }
    std::memset(out.data(), corrupt ? 99 : expert.expert + 1, out.size());
    return status;
  }
  void Cancel() override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    cancelled_ = true;
    changed_.NotifyAll();
  }
  void AwaitHanging() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    while (!hanging_) changed_.Wait(mu_);
  }

  std::vector<std::string> pulled;
  absl::Status status;
  bool corrupt = false;
  bool hang = false;

 private:
  Mutex mu_;
  CondVar changed_;
  bool hanging_ BALLAST_GUARDED_BY(mu_) = false;
  bool cancelled_ BALLAST_GUARDED_BY(mu_) = false;
};

// Worker "a" has experts 0 and 1, "b" 2 and 3; `extra` are replicas on "a" in slots from 2.
Placement PlacementOf(uint64_t epoch, const std::vector<int>& extra = {}) {
  Placement placement{.epoch = Epoch(epoch),
                      .shares_version = SharesVersion(1),
                      .num_layers = 1,
                      .num_experts = kExperts,
                      .workers = {"a", "b"},
                      .replicas = {{{0, 0}, 0, 0}, {{0, 1}, 0, 1}, {{0, 2}, 1, 0}, {{0, 3}, 1, 1}}};
  int32_t slot = 2;
  for (const int expert : extra) placement.replicas.push_back({{0, expert}, 0, slot++});
  placement.Sort();
  return placement;
}

class MoveAgentTest : public ::testing::Test {
 protected:
  MoveAgentTest() {
    store_ = *ExpertStore::Create(source_, {.worker = "a", .capacity = {.slots = 6, .staging_slots = 2}});
    EXPECT_EQ(store_->Load(PlacementOf(1)), absl::OkStatus());
  }

  MoveJob Job(uint64_t epoch, const std::vector<int>& experts, const std::string& from = "b") {
    MoveJob job{.placement = PlacementOf(epoch, experts),
                .peers = {{"b", "host:1"}},
                .deadline = clock_.Now() + absl::Seconds(10)};
    int32_t slot = 2;
    for (const int expert : experts) {
      v1::Move move;
      move.set_expert(expert);
      move.set_source(from);
      move.set_destination("a");
      move.set_slot(slot++);
      job.moves.push_back(move);
    }
    return job;
  }
  absl::StatusOr<v1::WavePrepared> Run(const MoveJob& job) {
    return DoMoves(
        job, *store_, puller_, clock_, [this] { return cancel_; },
        [this](const v1::MoveProgress& progress) { progress_.push_back(progress.moves_done()); });
  }

  SimulatedClock clock_;
  FakeExperts source_{1, kExperts, kBytes};
  std::unique_ptr<ExpertStore> store_;
  FakePuller puller_;
  std::vector<int> progress_;
  bool cancel_ = false;
};

TEST_F(MoveAgentTest, PullsFromThePeer) {
  const auto prepared = Run(Job(2, {2, 3}));
  ASSERT_EQ(prepared.status(), absl::OkStatus());
  EXPECT_EQ(prepared->epoch(), 2u);
  EXPECT_EQ(prepared->bytes_from_peers(), static_cast<int64_t>(2 * kBytes));
  EXPECT_EQ(prepared->bytes_from_checkpoint(), 0);
  EXPECT_THAT(puller_.pulled, ElementsAre("host:1/2", "host:1/3"));
  EXPECT_THAT(progress_, ElementsAre(1, 2));
  EXPECT_TRUE(store_->Prepared({Epoch(2), SharesVersion(1)}));
}

TEST_F(MoveAgentTest, PeerFails_CheckpointInstead) {
  struct Case {
    const char* name;
    absl::Status status;
    bool corrupt;
  };
  for (const Case& c : {Case{"lost", absl::UnavailableError("gone"), false}, Case{"corrupt", absl::OkStatus(), true}}) {
    SCOPED_TRACE(c.name);
    puller_.status = c.status;
    puller_.corrupt = c.corrupt;
    const auto prepared = Run(Job(2, {2}));
    ASSERT_EQ(prepared.status(), absl::OkStatus());
    EXPECT_EQ(prepared->bytes_from_checkpoint(), static_cast<int64_t>(kBytes));
    EXPECT_TRUE(store_->Prepared({Epoch(2), SharesVersion(1)}));
    store_->Abort(Epoch(2));
  }
}

TEST_F(MoveAgentTest, NoSourceOrAStranger_Checkpoint) {
  for (const char* from : {"", "c"}) {
    const auto prepared = Run(Job(2, {2}, from));
    ASSERT_EQ(prepared.status(), absl::OkStatus());
    EXPECT_EQ(prepared->bytes_from_peers(), 0);
    store_->Abort(Epoch(2));
  }
  EXPECT_TRUE(puller_.pulled.empty());
}

TEST_F(MoveAgentTest, NothingToBring) {
  const auto prepared = Run(Job(2, {}));
  ASSERT_EQ(prepared.status(), absl::OkStatus());
  EXPECT_TRUE(store_->Prepared({Epoch(2), SharesVersion(1)}));
}

TEST_F(MoveAgentTest, ErrorsNameReplicaAndLeaveNothing) {
  source_.unreadable = {0, 2};
  const auto prepared = Run(Job(2, {2}, ""));
  EXPECT_EQ(prepared.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(prepared.status().message()), HasSubstr("layer 0 expert 2 from the checkpoint: gone"));
  EXPECT_EQ(store_->prepared(), std::nullopt);
}

TEST_F(MoveAgentTest, DeadlineAndCancel) {
  MoveJob job = Job(2, {2});
  job.deadline = clock_.Now();
  EXPECT_EQ(Run(job).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(store_->prepared(), std::nullopt);
  cancel_ = true;
  EXPECT_EQ(Run(Job(2, {2})).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(store_->prepared(), std::nullopt);
}

class RecordingListener final : public MoveListener {
 public:
  void OnMoveProgress(const v1::MoveProgress&) override {}
  void OnWavePrepared(const v1::WavePrepared& prepared) override { Add("prepared" + std::to_string(prepared.epoch())); }
  void OnWaveFailed(Epoch epoch, const std::string&) override { Add("failed" + std::to_string(epoch.value())); }
  std::string Await() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    while (events_.empty()) changed_.Wait(mu_);
    std::string event = events_.front();
    events_.erase(events_.begin());
    return event;
  }

 private:
  void Add(std::string event) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    events_.push_back(std::move(event));
    changed_.NotifyAll();
  }
  Mutex mu_;
  CondVar changed_;
  std::vector<std::string> events_ BALLAST_GUARDED_BY(mu_);
};

TEST_F(MoveAgentTest, Agent_PreparesAbortsAndGoesOn) {
  RecordingListener listener;
  puller_.hang = true;
  MoveAgent agent(*store_, puller_, listener, Clock::Real());
  MoveJob job = Job(2, {2});
  job.deadline = absl::InfiniteFuture();
  agent.Start(job);
  puller_.AwaitHanging();
  agent.Abort(Epoch(2));
  // A waiting job goes too, and an unknown epoch is nothing.
  agent.Abort(Epoch(9));
  job = Job(3, {3}, "");
  job.deadline = absl::InfiniteFuture();
  agent.Start(job);
  EXPECT_EQ(listener.Await(), "prepared3");
  agent.AbortAll();
  EXPECT_EQ(store_->prepared(), std::nullopt);
  source_.unreadable = {0, 3};
  job = Job(4, {3}, "");
  job.deadline = absl::InfiniteFuture();
  agent.Start(job);
  EXPECT_EQ(listener.Await(), "failed4");
}

TEST_F(MoveAgentTest, Agent_StopsInMidPull) {
  RecordingListener listener;
  puller_.hang = true;
  MoveAgent agent(*store_, puller_, listener, Clock::Real());
  MoveJob job = Job(2, {2});
  job.deadline = absl::InfiniteFuture();
  agent.Start(job);
  puller_.AwaitHanging();
}

}  // namespace
}  // namespace ballast
