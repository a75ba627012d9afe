// Experts from one GPU's slot into another's through UCX, between two processes: this program runs itself again as the
// second one. UCX has to have CUDA, see docs/toolchain.md.
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "worker/transport/fetch/device_fetch_peer.h"
#include "worker/transport/fetch/expert_fetcher.h"

namespace ballast {
namespace {

// Generous: only a hang reaches it.
absl::Time Soon() { return Clock::Real().Now() + absl::Minutes(4); }

// The value of UCX_TLS.
class DeviceFetchTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
    if (!FetchContext(0)->has_cuda()) {
      GTEST_SKIP() << "UCX " << ucp_get_version_string()
                   << " here has no CUDA: docs/toolchain.md says where to get one";
    }
    CheckCuda(cudaSetDevice(FetchGpu(0)));
  }
};

INSTANTIATE_TEST_SUITE_P(Transports, DeviceFetchTest, ::testing::Values("", "tcp,cuda_copy,self"),
                         [](const auto& info) { return info.param.empty() ? "default" : "tcp"; });

// Pulls the peer's weights into a slot.
absl::Status PullInto(const FetchSlot& slot, const FetchPeer& peer, int64_t rate = 0) {
  ExpertFetcher fetcher(FetchContext(0), FetchIdentity(), {.bytes_per_second = rate});
  return fetcher.Fetch({.address = peer.address(),
                        .expert = {0, 1},
                        .buffer = slot.bytes(),
                        .memory = UcxMemory::kCuda,
                        .deadline = Soon()});
}

TEST_P(DeviceFetchTest, FromSlotToSlot) {
  struct Case {
    size_t bytes;
    bool of_nccl;
  };
  for (const Case& c :
       {Case{256, false}, Case{(size_t{256} << 10) + 64, true}, Case{40'000'064, false}, Case{40'000'064, true}}) {
    SCOPED_TRACE(testing::Message() << c.bytes << " bytes, memory of " << (c.of_nccl ? "NCCL" : "CUDA"));
    FetchPeer peer({.bytes = c.bytes, .of_nccl = c.of_nccl}, GetParam());
    const FetchSlot slot(c.bytes, c.of_nccl);
    ASSERT_EQ(PullInto(slot, peer), absl::OkStatus());
    EXPECT_EQ(slot.Sum(), ComputeExpertChecksum(FetchWeights(c.bytes)));
  }
}

TEST_P(DeviceFetchTest, ARateIsKeptToAndNothingIsLost) {
  constexpr size_t kBytes = 20'000'000;
  FetchPeer peer({.bytes = kBytes}, GetParam());
  const FetchSlot slot(kBytes, false);
  const absl::Time start = Clock::Real().Now();
  ASSERT_EQ(PullInto(slot, peer, 100'000'000), absl::OkStatus());
  EXPECT_GE(Clock::Real().Now() - start, absl::Milliseconds(150));
  EXPECT_EQ(slot.Sum(), ComputeExpertChecksum(FetchWeights(kBytes)));
}

TEST_P(DeviceFetchTest, OneEndInHostMemory) {
  constexpr size_t kBytes = 3'000'064;
  const std::vector<std::byte> weights = FetchWeights(kBytes);
  {
    FetchPeer peer({.bytes = kBytes, .from_gpu = false}, GetParam());
    const FetchSlot slot(kBytes, false);
    ASSERT_EQ(PullInto(slot, peer), absl::OkStatus());
    EXPECT_EQ(slot.Sum(), ComputeExpertChecksum(weights));
  }
  FetchPeer peer({.bytes = kBytes}, GetParam());
  std::vector<std::byte> buffer(kBytes);
  ExpertFetcher fetcher(FetchContext(0), FetchIdentity());
  ASSERT_EQ(fetcher.Fetch({.address = peer.address(), .expert = {0, 1}, .buffer = buffer, .deadline = Soon()}),
            absl::OkStatus());
  EXPECT_TRUE(buffer == weights);
}

// What a pull that `end` ends in its middle says.
absl::Status EndInTheMiddle(FetchPeer& peer, size_t bytes, absl::Time deadline,
                            const std::function<void(ExpertFetcher&, PullId)>& end) {
  const FetchSlot slot(bytes, false);
  Mutex mu;
  CondVar changed;
  bool started = false;
  std::optional<absl::Status> status;
  // What follows the first chunks would take hours.
  ExpertFetcher fetcher(FetchContext(0), FetchIdentity(), {.bytes_per_second = 1000});
  const PullId id = fetcher.Start({.address = peer.address(),
                                   .expert = {0, 1},
                                   .buffer = slot.bytes(),
                                   .memory = UcxMemory::kCuda,
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

TEST_P(DeviceFetchTest, AKilledPeer_IsUnavailable) {
  FetchPeer peer({.bytes = 40'000'000}, GetParam());
  EXPECT_EQ(EndInTheMiddle(peer, 40'000'000, Soon(), [&](ExpertFetcher&, PullId) { peer.Kill(); }).code(),
            absl::StatusCode::kUnavailable);
}

// At full speed, with chunks under way.
TEST_P(DeviceFetchTest, KilledAtFullSpeed_EndsByItsDeadline) {
  constexpr size_t kBytes = 400'000'000;
  FetchPeer peer({.bytes = kBytes}, GetParam());
  const FetchSlot slot(kBytes, false);
  ExpertFetcher fetcher(FetchContext(0), FetchIdentity());
  Mutex mu;
  CondVar changed;
  bool started = false;
  std::optional<absl::Status> status;
  fetcher.Start({.address = peer.address(),
                 .expert = {0, 1},
                 .buffer = slot.bytes(),
                 .memory = UcxMemory::kCuda,
                 .deadline = Clock::Real().Now() + absl::Seconds(5),
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
  peer.Kill();
  MutexLock lock(mu);
  while (!status) changed.Wait(mu);
  // It may have been done before.
  EXPECT_TRUE(status->ok() || absl::IsUnavailable(*status) || absl::IsInternal(*status) ||
              absl::IsDeadlineExceeded(*status))
      << *status;
}

TEST_P(DeviceFetchTest, DeadlineAndCancel) {
  FetchPeer peer({.bytes = 40'000'000}, GetParam());
  const absl::Status late =
      EndInTheMiddle(peer, 40'000'000, Clock::Real().Now() + absl::Milliseconds(500), [](ExpertFetcher&, PullId) {});
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded) << late;
  EXPECT_EQ(EndInTheMiddle(peer, 40'000'000, Soon(), [](ExpertFetcher& f, PullId id) { f.Cancel(id); }).code(),
            absl::StatusCode::kCancelled);
}

// The fetcher goes while chunks are on their way; the server serves on.
TEST_P(DeviceFetchTest, CutShortInMidChunk_LeavesTheServerServing) {
  constexpr size_t kBytes = 100'000'000;
  FetchPeer peer({.bytes = kBytes}, GetParam());
  const FetchSlot slot(kBytes, false);
  for (int round = 0; round < 10; ++round) {
    Mutex mu;
    CondVar changed;
    int chunks = 0;
    bool ended = false;
    ExpertFetcher fetcher(FetchContext(0), FetchIdentity());
    fetcher.Start({.address = peer.address(),
                   .expert = {0, 1},
                   .buffer = slot.bytes(),
                   .memory = UcxMemory::kCuda,
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
    while (chunks < 1 + round % 3 && !ended) changed.Wait(mu);
  }
  ASSERT_EQ(PullInto(slot, peer), absl::OkStatus());
  EXPECT_EQ(slot.Sum(), ComputeExpertChecksum(FetchWeights(kBytes)));
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  std::string what;
  if (const auto link = ballast::PeerLink::OfChild(argc, argv, &what)) {
    ballast::ServeFetches(*link);
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
