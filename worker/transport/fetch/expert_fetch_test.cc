// Fetcher and server together, over links on loopback.
#include <algorithm>
#include <atomic>
#include <ctime>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "worker/transport/fetch/expert_fetcher.h"
#include "worker/transport/fetch/expert_server.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const GroupIdentity kIdentity{.group = "g", .secret = "s3cret", .fingerprint = "f00d"};

std::shared_ptr<UcxContext> Context() {
  static std::shared_ptr<UcxContext>& context = *new std::shared_ptr<UcxContext>(UcxContext::Create().value());
  return context;
}

// Generous: only a hang reaches it.
absl::Time Soon() { return Clock::Real().Now() + absl::Minutes(4); }

std::vector<std::byte> Weights(int32_t seed, size_t bytes) {
  std::vector<std::byte> out(bytes);
  uint32_t x = seed * 2654435761u + 1;
  for (std::byte& b : out) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<std::byte>(x >> 24);
  }
  return out;
}

// A worker that serves some replicas, and counts how many are pinned.
class Peer {
 public:
  explicit Peer(std::map<ExpertId, std::vector<std::byte>> replicas, GroupIdentity identity = kIdentity)
      : replicas_(std::move(replicas)),
        listener_(MeshListener::Start({.host = "127.0.0.1", .identity = identity}).value()),
        server_(ExpertServer::Start(Context(), *listener_, [this](ExpertId id) { return Pin(id); }).value()) {}

  std::string address() const { return "127.0.0.1:" + std::to_string(listener_->port()); }
  void Stop() { server_.reset(); }
  void StopListening() {
    Stop();
    listener_.reset();
  }
  int pins() const { return pins_; }

 private:
  absl::StatusOr<PinnedReplica> Pin(ExpertId id) {
    const auto it = replicas_.find(id);
    if (it == replicas_.end()) return absl::NotFoundError("no verified replica here");
    ++pins_;
    return PinnedReplica{it->second, std::shared_ptr<const void>(nullptr, [this](const void*) { --pins_; })};
  }

  const std::map<ExpertId, std::vector<std::byte>> replicas_;
  std::atomic<int> pins_{0};
  std::unique_ptr<MeshListener> listener_;
  std::unique_ptr<ExpertServer> server_;
};

TEST(ExpertFetchTest, PullsAwkwardSizesWhole) {
  std::map<ExpertId, std::vector<std::byte>> replicas;
  const std::vector<size_t> sizes = {1, 4097, 256 * 1024, 256 * 1024 + 1, 3'000'000};
  for (size_t i = 0; i < sizes.size(); ++i) replicas[{1, static_cast<int>(i)}] = Weights(i, sizes[i]);
  Peer a(replicas), b(replicas);
  ExpertFetcher fetcher(Context(), kIdentity);
  for (const auto& [id, weights] : replicas) {
    for (const Peer* peer : {&a, &a, &b}) {
      std::vector<std::byte> buffer(weights.size());
      size_t last = 0;
      EXPECT_EQ(fetcher.Fetch({.address = peer->address(),
                               .expert = id,
                               .buffer = buffer,
                               .deadline = Soon(),
                               .on_progress =
                                   [&last](size_t bytes) {
                                     EXPECT_GT(bytes, last);
                                     last = bytes;
                                   }}),
                absl::OkStatus());
      EXPECT_TRUE(buffer == weights) << weights.size();
      EXPECT_EQ(last, weights.size());
    }
  }
  a.Stop();
  b.Stop();
  EXPECT_EQ(a.pins(), 0);
  EXPECT_EQ(b.pins(), 0);
}

TEST(ExpertFetchTest, MissingReplica_IsNotFoundAndTheLinkGoesOn) {
  Peer peer({{{0, 1}, Weights(1, 1000)}});
  ExpertFetcher fetcher(Context(), kIdentity);
  std::vector<std::byte> buffer(1000);
  const absl::Status status =
      fetcher.Fetch({.address = peer.address(), .expert = {0, 2}, .buffer = buffer, .deadline = Soon()});
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("expert 2 of layer 0"), HasSubstr(peer.address()), HasSubstr("no verified replica")));
  EXPECT_EQ(fetcher.Fetch({.address = peer.address(), .expert = {0, 1}, .buffer = buffer, .deadline = Soon()}),
            absl::OkStatus());
}

TEST(ExpertFetchTest, OtherSize_NamesBoth) {
  Peer peer({{{0, 1}, Weights(1, 1000)}});
  ExpertFetcher fetcher(Context(), kIdentity);
  for (const size_t bytes : {999, 1001}) {
    std::vector<std::byte> buffer(bytes);
    const absl::Status status =
        fetcher.Fetch({.address = peer.address(), .expert = {0, 1}, .buffer = buffer, .deadline = Soon()});
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("1000 bytes"), HasSubstr(std::to_string(bytes))));
  }
}

TEST(ExpertFetchTest, OtherCheckpointOrSecret_IsRefused) {
  Peer peer({{{0, 1}, Weights(1, 10)}});
  std::vector<std::byte> buffer(10);
  const ExpertPull pull{.address = peer.address(), .expert = {0, 1}, .buffer = buffer, .deadline = Soon()};
  ExpertFetcher other_checkpoint(Context(), {.group = "g", .secret = "s3cret", .fingerprint = "beef"});
  const absl::Status status = other_checkpoint.Fetch(pull);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fingerprint \"beef\" against \"f00d\""));
  ExpertFetcher other_secret(Context(), {.group = "g", .secret = "guess", .fingerprint = "f00d"});
  EXPECT_EQ(other_secret.Fetch(pull).code(), absl::StatusCode::kPermissionDenied);
}

TEST(ExpertFetchTest, UnreachablePeers_AreUnavailable) {
  ExpertFetcher fetcher(Context(), kIdentity);
  std::vector<std::byte> buffer(10);
  ExpertPull pull{.expert = {0, 1}, .buffer = buffer, .deadline = Soon()};
  pull.address = "nonsense";
  EXPECT_EQ(fetcher.Fetch(pull).code(), absl::StatusCode::kInvalidArgument);
  Peer peer({{{0, 1}, Weights(1, 10)}});
  pull.address = peer.address();
  peer.Stop();
  const absl::Status no_server = fetcher.Fetch(pull);
  EXPECT_EQ(no_server.code(), absl::StatusCode::kUnavailable) << no_server;
  peer.StopListening();
  const absl::Status no_listener = fetcher.Fetch(pull);
  EXPECT_EQ(no_listener.code(), absl::StatusCode::kUnavailable) << no_listener;
}

// Ends a slow pull in the middle by `end`, and returns its status.
absl::Status EndInTheMiddle(Peer& peer, const std::function<void(ExpertFetcher&, PullId)>& end,
                            absl::Time deadline = Soon()) {
  std::vector<std::byte> buffer(4 << 20);
  // The burst of one chunk goes at once; the rest would take hours.
  ExpertFetcher fetcher(Context(), kIdentity, {.chunk_bytes = 4096, .bytes_per_second = 1000});
  Mutex mu;
  CondVar changed;
  bool started = false;
  std::optional<absl::Status> status;
  const PullId id = fetcher.Start({.address = peer.address(),
                                   .expert = {0, 1},
                                   .buffer = buffer,
                                   .deadline = deadline,
                                   .on_progress =
                                       [&](size_t) {
                                         MutexLock lock(mu);
                                         started = true;
                                         changed.NotifyAll();
                                       },
                                   .done =
                                       [&](const absl::Status& result) {
                                         MutexLock lock(mu);
                                         status = result;
                                         changed.NotifyAll();
                                       }});
  {
    MutexLock lock(mu);
    while (!started && !status) changed.Wait(mu);
  }
  end(fetcher, id);
  MutexLock lock(mu);
  while (!status) changed.Wait(mu);
  return *status;
}

TEST(ExpertFetchTest, Cancel_EndsThePull) {
  Peer peer({{{0, 1}, Weights(1, 4 << 20)}});
  EXPECT_EQ(EndInTheMiddle(peer, [](ExpertFetcher& fetcher, PullId id) { fetcher.Cancel(id); }).code(),
            absl::StatusCode::kCancelled);
}

TEST(ExpertFetchTest, LostPeer_EndsThePull) {
  Peer peer({{{0, 1}, Weights(1, 4 << 20)}});
  EXPECT_EQ(EndInTheMiddle(peer, [&peer](ExpertFetcher&, PullId) { peer.Stop(); }).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(peer.pins(), 0);
}

TEST(ExpertFetchTest, Deadline_TellsHowFarItCame) {
  Peer peer({{{0, 1}, Weights(1, 4 << 20)}});
  const absl::Status status = EndInTheMiddle(
      peer, [](ExpertFetcher&, PullId) {}, Clock::Real().Now() + absl::Milliseconds(300));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("of 4194304 bytes here"));
}

TEST(ExpertFetchTest, ANewRate_FreesAPacedPull) {
  Peer peer({{{0, 1}, Weights(1, 4 << 20)}});
  EXPECT_EQ(EndInTheMiddle(peer, [](ExpertFetcher& fetcher, PullId) { fetcher.SetBytesPerSecond(0); }),
            absl::OkStatus());
}

TEST(ExpertFetchTest, Destruction_EndsEveryPull) {
  Peer peer({{{0, 1}, Weights(1, 4 << 20)}});
  std::vector<std::byte> buffer(4 << 20), other(4 << 20);
  std::atomic<int> cancelled{0};
  {
    ExpertFetcher fetcher(Context(), kIdentity, {.bytes_per_second = 1000});
    for (std::span<std::byte> b : {std::span(buffer), std::span(other)}) {
      fetcher.Start({.address = peer.address(),
                     .expert = {0, 1},
                     .buffer = b,
                     .deadline = absl::InfiniteFuture(),
                     .done = [&](const absl::Status& status) { cancelled += absl::IsCancelled(status); }});
    }
  }
  EXPECT_EQ(cancelled, 2);
}

// Both ends close while chunks are under way: the server its endpoint, the fetcher its UCX worker. The server goes on.
TEST(ExpertFetchTest, PullsCutShortInMidChunk_LeaveTheServerServing) {
  constexpr size_t kBytes = 8 << 20;
  Peer peer({{{0, 1}, Weights(1, kBytes)}, {{0, 2}, Weights(2, 5000)}});
  std::vector<std::byte> buffer(kBytes);
  for (int round = 0; round < 20; ++round) {
    Mutex mu;
    CondVar changed;
    int chunks = 0;
    bool ended = false;
    ExpertFetcher fetcher(Context(), kIdentity, {.chunk_bytes = round % 2 == 0 ? 128 << 10 : 16 << 10});
    fetcher.Start({.address = peer.address(),
                   .expert = {0, 1},
                   .buffer = buffer,
                   .deadline = absl::InfiniteFuture(),
                   .on_progress =
                       [&](size_t) {
                         MutexLock lock(mu);
                         ++chunks;
                         changed.NotifyAll();
                       },
                   .done =
                       [&](const absl::Status&) {
                         MutexLock lock(mu);
                         ended = true;
                         changed.NotifyAll();
                       }});
    MutexLock lock(mu);
    while (chunks < 1 + round % 2 && !ended) changed.Wait(mu);
  }
  std::vector<std::byte> small(5000);
  ExpertFetcher fetcher(Context(), kIdentity);
  EXPECT_EQ(fetcher.Fetch({.address = peer.address(), .expert = {0, 2}, .buffer = small, .deadline = Soon()}),
            absl::OkStatus());
  EXPECT_TRUE(small == Weights(2, 5000));
  peer.Stop();
  EXPECT_EQ(peer.pins(), 0);
}

TEST(ExpertFetchTest, Rate_IsKept) {
  Peer peer({{{0, 1}, Weights(1, 1 << 20)}});
  std::vector<std::byte> buffer(1 << 20);
  ExpertFetcher fetcher(Context(), kIdentity, {.chunk_bytes = 65536, .bytes_per_second = 4 << 20});
  const absl::Time start = Clock::Real().Now();
  EXPECT_EQ(fetcher.Fetch({.address = peer.address(), .expert = {0, 1}, .buffer = buffer, .deadline = Soon()}),
            absl::OkStatus());
  // 15 of the 16 chunks at 4 MiB/s; the upper bound is the machine's business.
  EXPECT_GE(Clock::Real().Now() - start, absl::Milliseconds(200));
}

TEST(ExpertFetchTest, Idle_TakesNoTime) {
  Peer peer({{{0, 1}, Weights(1, 1000)}});
  ExpertFetcher fetcher(Context(), kIdentity);
  std::vector<std::byte> buffer(1000);
  ASSERT_EQ(fetcher.Fetch({.address = peer.address(), .expert = {0, 1}, .buffer = buffer, .deadline = Soon()}),
            absl::OkStatus());
  const std::clock_t before = std::clock();
  // Waits without a sleep: for a lock's condition that nobody signals.
  Mutex mu;
  CondVar never;
  MutexLock lock(mu);
  const absl::Time until = Clock::Real().Now() + absl::Milliseconds(500);
  while (Clock::Real().WaitUntil(never, mu, until)) {
  }
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.05);
}

}  // namespace
}  // namespace ballast
