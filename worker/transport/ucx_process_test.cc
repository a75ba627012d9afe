// The transport between processes: shared memory and TCP, death, silence, idleness. The test's own process starts
// neither UCX nor threads, so that it can fork.
#include <signal.h>

#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/transport/conformance.h"
#include "worker/transport/process_mesh.h"

namespace ballast {

// Its suite runs in one process, not here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TransportTest);

namespace {

int ExitStatus() { return ::testing::Test::HasFailure() ? 1 : 0; }

double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// Nobody leaves before all have come here.
void Part(Transport& me) {
  std::vector<RequestId> requests;
  for (int peer = 0; peer < me.size(); ++peer) {
    if (peer == me.rank()) continue;
    requests.push_back(me.Receive(peer, kMaxTag, {}));
    requests.push_back(me.Send(peer, kMaxTag, {}));
  }
  // Whoever is first to have everything may be gone before the last has sent.
  static_cast<void>(me.Wait(requests, Soon()));
}

// The value of UCX_TLS; "" leaves the choice to UCX.
class UcxProcessTest : public ::testing::TestWithParam<std::string> {
 protected:
  static ProcessMesh::Environment Environment() {
    if (GetParam().empty()) return {};
    return {{"UCX_TLS", GetParam()}};
  }
};

INSTANTIATE_TEST_SUITE_P(Transports, UcxProcessTest, ::testing::Values("", "shm,self", "tcp,self"),
                         [](const auto& info) {
                           return info.param.empty() ? "default" : info.param.substr(0, info.param.find(','));
                         });

TEST_P(UcxProcessTest, AllToAllOfAwkwardSizes) {
  ProcessMesh mesh(4, Environment(), [](std::unique_ptr<Transport> me, const ParentLine&) {
    Tag tag = 0;
    for (size_t bytes : {size_t{0}, size_t{1}, size_t{4097}, size_t{8} << 20, size_t{49152}, size_t{0}}) {
      AllToAll(*me, tag++, bytes);
    }
    for (int round = 0; round < 100; ++round) AllToAll(*me, tag++, round * 100);
    Part(*me);
    return ExitStatus();
  });
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(mesh.Join(rank), 0) << "rank " << rank;
}

// Rank 2 is killed, or leaves, while all exchange messages of `bytes` for ever: everybody else fails at once and leaves
// in order.
enum class Parting { kIsKilled, kLeaves };
void PartInMidExchange(Parting parting, const ProcessMesh::Environment& environment, size_t bytes) {
  ProcessMesh mesh(4, environment, [=](std::unique_ptr<Transport> me, const ParentLine& parent) {
    std::vector<std::vector<std::byte>> in(4, std::vector<std::byte>(bytes)), out = in;
    for (int round = 0;; ++round) {
      std::vector<RequestId> requests;
      for (int peer = 0; peer < 4; ++peer) {
        if (peer == me->rank()) continue;
        requests.push_back(me->Receive(peer, round, in[peer]));
        requests.push_back(me->Send(peer, round, out[peer]));
      }
      if (parting == Parting::kLeaves && round == 3 && me->rank() == 2) {
        me.reset();
        return ExitStatus();
      }
      const absl::Status status = me->Wait(requests, Soon());
      if (round == 2 && me->rank() == 2) parent.Say('k');
      if (status.ok()) continue;
      EXPECT_EQ(status, absl::UnavailableError("lost rank 2"));
      break;
    }
    // Nobody leaves before all have seen it.
    parent.Say('u');
    parent.Hear();
    // With everything still open.
    me.reset();
    return ExitStatus();
  });
  ASSERT_EQ(mesh.Hear(2), 'k');
  if (parting == Parting::kIsKilled) mesh.Kill(2);
  EXPECT_EQ(mesh.Join(2), parting == Parting::kIsKilled ? 128 + SIGKILL : 0);
  for (int rank : {0, 1, 3}) EXPECT_EQ(mesh.Hear(rank), 'u') << "rank " << rank;
  for (int rank : {0, 1, 3}) mesh.Say(rank, 'l');
  for (int rank : {0, 1, 3}) EXPECT_EQ(mesh.Join(rank), 0) << "rank " << rank;
}

TEST_P(UcxProcessTest, KilledBetweenSmallMessages_IsUnavailable) {
  PartInMidExchange(Parting::kIsKilled, Environment(), 64);
}
TEST_P(UcxProcessTest, KilledBetweenMessagesOfAStep_IsUnavailable) {
  PartInMidExchange(Parting::kIsKilled, Environment(), 49152);
}
TEST_P(UcxProcessTest, KilledInLongMessages_IsUnavailable) {
  PartInMidExchange(Parting::kIsKilled, Environment(), 8 << 20);
}
// Several times: what this guards against, in UCX over TCP, did not happen each time.
TEST(UcxProcess, LeftInLongMessages_IsUnavailable) {
  for (int time = 0; time < 4; ++time) PartInMidExchange(Parting::kLeaves, {{"UCX_TLS", "tcp,self"}}, 16 << 20);
}

TEST_P(UcxProcessTest, SilentPeer_IsLateAndTeardownDoesNotWaitForIt) {
  ProcessMesh mesh(2, Environment(), [](std::unique_ptr<Transport> me, const ParentLine& parent) {
    AllToAll(*me, 0, 1000);
    if (me->rank() == 1) {
      parent.Say('s');
      raise(SIGSTOP);
      return 0;
    }
    EXPECT_EQ(parent.Hear(), 's');
    std::vector<std::byte> in(100), out(8 << 20);
    const RequestId requests[] = {me->Receive(1, 1, in), me->Send(1, 1, out)};
    const absl::Status status = me->Wait(requests, Clock::Real().Now() + absl::Milliseconds(100));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    me->Cancel(requests[0]);
    // The peer stands still until this process has ended.
    me.reset();
    return ExitStatus();
  });
  ASSERT_EQ(mesh.Hear(1), 's');
  mesh.Say(0, 's');
  EXPECT_EQ(mesh.Join(0), 0);
}

TEST_P(UcxProcessTest, IdleMesh_TakesNoTime) {
  ProcessMesh mesh(2, Environment(), [](std::unique_ptr<Transport> me, const ParentLine&) {
    AllToAll(*me, 0, 1000);
    std::byte buffer[1];
    const RequestId receive = me->Receive(1 - me->rank(), 1, buffer);
    const double before = CpuSeconds();
    EXPECT_EQ(me->WaitAny({&receive, 1}, Clock::Real().Now() + absl::Seconds(1)).status().code(),
              absl::StatusCode::kDeadlineExceeded);
    EXPECT_LT(CpuSeconds() - before, 0.05);
    AllToAll(*me, 2, 1);
    // Still awake when it matters.
    const RequestId send = me->Send(1 - me->rank(), 1, buffer);
    EXPECT_EQ(me->WaitAny({&receive, 1}, Soon()).status(), absl::OkStatus());
    EXPECT_EQ(me->Wait({&send, 1}, Soon()), absl::OkStatus());
    Part(*me);
    return ExitStatus();
  });
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(mesh.Join(rank), 0) << "rank " << rank;
}

// One message to and fro, each side asleep when it comes: a lost wake-up is a hang.
TEST_P(UcxProcessTest, SleepersWakeForEveryMessage) {
  ProcessMesh mesh(2, Environment(),
                   [](std::unique_ptr<Transport> me, const ParentLine&) {
                     std::byte buffer[1] = {};
                     for (int round = 0; round < 2000; ++round) {
                       const bool mine = round % 2 == me->rank();
                       const RequestId id =
                           mine ? me->Send(1 - me->rank(), round, buffer) : me->Receive(1 - me->rank(), round, buffer);
                       const absl::Status status = me->Wait({&id, 1}, Soon());
                       EXPECT_EQ(status, absl::OkStatus()) << "round " << round;
                       if (!status.ok()) break;
                     }
                     Part(*me);
                     return ExitStatus();
                   },
                   {.spin = absl::ZeroDuration()});
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(mesh.Join(rank), 0) << "rank " << rank;
}

}  // namespace
}  // namespace ballast
