#include "worker/experts/expert_mover.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

// Time passes by waiting alone. Useful for: loops on one thread.
class PatientClock final : public Clock {
 public:
  absl::Time Now() override { return now_; }
  bool WaitUntil(CondVar&, Mutex&, absl::Time deadline) override {
    now_ = deadline;
    return false;
  }

 private:
  absl::Time now_ = absl::FromUnixSeconds(1'000'000'000);
};

// Useful for: seeing what a mover starts, and when. Copies when it is awaited.
class FakeCopier final : public ChunkCopier {
 public:
  explicit FakeCopier(Clock& clock) : clock_(clock) {}

  absl::Status Start(const std::byte* from, std::byte* to, size_t bytes) override {
    if (!next_error.ok()) return next_error;
    started.push_back({bytes, clock_.Now()});
    pending_.push_back({from, to, bytes});
    most_pending = std::max(most_pending, pending_.size());
    return absl::OkStatus();
  }
  absl::Status AwaitAllBut(int left) override {
    while (pending_.size() > static_cast<size_t>(left)) {
      std::memcpy(pending_.front().to, pending_.front().from, pending_.front().bytes);
      pending_.erase(pending_.begin());
    }
    return absl::OkStatus();
  }

  struct Started {
    size_t bytes;
    absl::Time at;
  };
  std::vector<Started> started;
  size_t most_pending = 0;
  absl::Status next_error;
  size_t pending() const { return pending_.size(); }

 private:
  struct Copy {
    const std::byte* from;
    std::byte* to;
    size_t bytes;
  };
  Clock& clock_;
  std::vector<Copy> pending_;
};

std::vector<std::byte> Bytes(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + i / 4096);
  return bytes;
}

TEST(ExpertMover, WithoutALimit_CopiesAllInLargePieces) {
  SimulatedClock clock;
  FakeCopier copier(clock);
  ExpertMover mover(copier, clock);
  std::vector<std::byte> from((size_t{70} << 20) + 17);
  for (size_t i = 0; i < from.size(); i += 4096) from[i] = static_cast<std::byte>(1 + i / 4096);
  std::vector<std::byte> to(from.size());
  EXPECT_EQ(mover.Move(from, to.data(), 0, absl::InfiniteFuture()), absl::OkStatus());
  EXPECT_EQ(std::memcmp(from.data(), to.data(), from.size()), 0);
  EXPECT_EQ(copier.started.size(), 3u);
  EXPECT_EQ(copier.most_pending, 3u);
  EXPECT_EQ(copier.pending(), 0u);
}

TEST(ExpertMover, KeepsToItsRate_OverAllMoves) {
  PatientClock clock;
  FakeCopier copier(clock);
  ExpertMover mover(copier, clock);
  const std::vector<std::byte> from = Bytes(size_t{1} << 20);
  std::vector<std::byte> to(from.size());
  const absl::Time start = clock.Now();
  // Four pieces of 256 KiB each at 1 MiB/s; the first of all is ahead.
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(mover.Move(from, to.data(), int64_t{1} << 20, absl::InfiniteFuture()), absl::OkStatus());
  }
  EXPECT_TRUE(from == to);
  ASSERT_EQ(copier.started.size(), 8u);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(copier.started[i].at, start + std::max(0, i - 1) * absl::Milliseconds(250));
}

TEST(ExpertMover, TheDeadlineEndsTheWait) {
  PatientClock clock;
  FakeCopier copier(clock);
  ExpertMover mover(copier, clock);
  const std::vector<std::byte> from = Bytes(size_t{1} << 20);
  std::vector<std::byte> to(from.size());
  const absl::Status status = mover.Move(from, to.data(), int64_t{1} << 20, clock.Now() + absl::Milliseconds(100));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(std::string(status.message()), "a move has come to 524288 of 1048576 bytes by its deadline");
  EXPECT_EQ(copier.pending(), 0u);
}

TEST(ExpertMover, CancelEndsTheWait) {
  SimulatedClock clock;
  FakeCopier copier(clock);
  ExpertMover mover(copier, clock);
  const std::vector<std::byte> from = Bytes(size_t{1} << 20);
  std::vector<std::byte> to(from.size());
  absl::Status status;
  std::thread thread([&] { status = mover.Move(from, to.data(), int64_t{1} << 20, absl::InfiniteFuture()); });
  clock.AwaitWaiters(1);
  mover.Cancel();
  thread.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(copier.pending(), 0u);
  // It was for that move.
  EXPECT_EQ(mover.Move(from, to.data(), 0, absl::InfiniteFuture()), absl::OkStatus());
}

TEST(ExpertMover, AFailingCopyEndsTheMove) {
  SimulatedClock clock;
  FakeCopier copier(clock);
  ExpertMover mover(copier, clock);
  copier.next_error = absl::InternalError("no");
  const std::vector<std::byte> from = Bytes(100);
  std::vector<std::byte> to(from.size());
  EXPECT_EQ(mover.Move(from, to.data(), 0, absl::InfiniteFuture()), absl::InternalError("no"));
}

}  // namespace
}  // namespace ballast
