// What every Transport must do, as a test suite over ways to make a mesh within one process. A test file includes this
// header and instantiates the suite:
//
//   INSTANTIATE_TEST_SUITE_P(InProcess, TransportTest, ::testing::Values(MeshMaker{"default", [](int n) {...}}));
#ifndef BALLAST_WORKER_TRANSPORT_CONFORMANCE_H_
#define BALLAST_WORKER_TRANSPORT_CONFORMANCE_H_

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "worker/transport/transport.h"

namespace ballast {

using Mesh = std::vector<std::unique_ptr<Transport>>;

struct MeshMaker {
  std::string name;
  std::function<Mesh(int ranks)> make;
};

// Generous: only a hang reaches it.
inline absl::Time Soon() { return Clock::Real().Now() + absl::Minutes(4); }

// Contents that tell sender, receiver and tag apart.
inline std::vector<std::byte> Pattern(int from, int to, Tag tag, size_t bytes) {
  std::vector<std::byte> out(bytes);
  uint64_t x = (tag * 31 + from) * 31 + to + 1;
  for (size_t i = 0; i < bytes; i += sizeof x) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(out.data() + i, &x, std::min(sizeof x, bytes - i));
  }
  return out;
}

// Every rank sends Pattern of `bytes` to every other rank, receives theirs and compares.
inline void AllToAll(Transport& me, Tag tag, size_t bytes) {
  std::vector<std::vector<std::byte>> in(me.size()), out(me.size());
  std::vector<RequestId> requests, receives;
  for (int peer = 0; peer < me.size(); ++peer) {
    if (peer == me.rank()) continue;
    in[peer].resize(bytes);
    receives.push_back(me.Receive(peer, tag, in[peer]));
  }
  requests = receives;
  for (int peer = 0; peer < me.size(); ++peer) {
    if (peer == me.rank()) continue;
    out[peer] = Pattern(me.rank(), peer, tag, bytes);
    requests.push_back(me.Send(peer, tag, out[peer]));
  }
  ASSERT_EQ(me.Wait(requests, Soon()), absl::OkStatus());
  for (RequestId id : receives) EXPECT_EQ(me.ReceivedBytes(id), bytes);
  for (int peer = 0; peer < me.size(); ++peer) {
    if (peer == me.rank()) continue;
    EXPECT_TRUE(in[peer] == Pattern(peer, me.rank(), tag, bytes)) << "from " << peer << ", " << bytes << " bytes";
  }
}

// Runs `work` for each rank on a thread of its own.
inline void OnEveryRank(Mesh& mesh, const std::function<void(Transport&)>& work) {
  std::vector<std::thread> threads;
  for (auto& transport : mesh) threads.emplace_back([&work, &transport] { work(*transport); });
  for (std::thread& thread : threads) thread.join();
}

class TransportTest : public ::testing::TestWithParam<MeshMaker> {
 protected:
  static Mesh Make(int ranks) { return GetParam().make(ranks); }
};

TEST_P(TransportTest, OneRankAlone_WaitsForNothing) {
  Mesh mesh = Make(1);
  EXPECT_EQ(mesh[0]->size(), 1);
  EXPECT_EQ(mesh[0]->Wait({}, absl::InfinitePast()), absl::OkStatus());
  EXPECT_EQ(mesh[0]->WaitAny({}, absl::InfinitePast()).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(TransportTest, AllToAllOfAwkwardSizes) {
  Mesh mesh = Make(4);
  OnEveryRank(mesh, [](Transport& me) {
    Tag tag = 0;
    for (size_t bytes : {size_t{0}, size_t{1}, size_t{4097}, size_t{8} << 20, size_t{49152}, size_t{0}}) {
      AllToAll(me, tag++, bytes);
    }
    AllToAll(me, kMaxTag, 17);
  });
}

TEST_P(TransportTest, ManyOutstanding_EachFindsItsOwn) {
  Mesh mesh = Make(2);
  constexpr int kMessages = 1000;
  OnEveryRank(mesh, [](Transport& me) {
    const int peer = 1 - me.rank();
    std::vector<std::vector<std::byte>> in(kMessages), out(kMessages);
    std::vector<RequestId> requests;
    // Received in the opposite order of the sends, with sizes across the library's protocols.
    for (int i = kMessages - 1; i >= 0; --i) {
      in[i].resize(i * 37);
      requests.push_back(me.Receive(peer, i, in[i]));
    }
    for (int i = 0; i < kMessages; ++i) {
      out[i] = Pattern(me.rank(), peer, i, i * 37);
      requests.push_back(me.Send(peer, i, out[i]));
    }
    ASSERT_EQ(me.Wait(requests, Soon()), absl::OkStatus());
    for (int i = 0; i < kMessages; ++i) EXPECT_TRUE(in[i] == Pattern(peer, me.rank(), i, i * 37)) << i;
  });
}

TEST_P(TransportTest, SameTag_ReceivedInTheOrderSent) {
  Mesh mesh = Make(2);
  constexpr int kMessages = 200;
  OnEveryRank(mesh, [](Transport& me) {
    std::vector<std::vector<std::byte>> buffers(kMessages);
    std::vector<RequestId> requests;
    for (int i = 0; i < kMessages; ++i) {
      buffers[i].assign(i % 3 == 0 ? 20000 : 8, static_cast<std::byte>(me.rank() == 0 ? i : 0));
      requests.push_back(me.rank() == 0 ? me.Send(1, 7, buffers[i]) : me.Receive(0, 7, buffers[i]));
    }
    ASSERT_EQ(me.Wait(requests, Soon()), absl::OkStatus());
    if (me.rank() == 1) {
      for (int i = 0; i < kMessages; ++i) EXPECT_EQ(buffers[i][0], static_cast<std::byte>(i)) << i;
    }
  });
}

TEST_P(TransportTest, ShorterMessage_ReportsItsOwnLength) {
  Mesh mesh = Make(2);
  OnEveryRank(mesh, [](Transport& me) {
    std::vector<std::byte> buffer(me.rank() == 0 ? 10 : 100000);
    const RequestId id = me.rank() == 0 ? me.Send(1, 1, buffer) : me.Receive(0, 1, buffer);
    ASSERT_EQ(me.Wait({&id, 1}, Soon()), absl::OkStatus());
    // Found done before: done for ever.
    if (me.rank() == 1) {
      EXPECT_EQ(me.ReceivedBytes(id), 10u);
    }
    EXPECT_EQ(me.Wait({&id, 1}, absl::InfinitePast()), absl::OkStatus());
  });
}

TEST_P(TransportTest, OversizeMessage_FailsTheReceiveAndNamesSizes) {
  for (const size_t bytes : {size_t{101}, size_t{1} << 20}) {
    Mesh mesh = Make(2);
    OnEveryRank(mesh, [bytes](Transport& me) {
      std::vector<std::byte> buffer(me.rank() == 0 ? bytes : 100);
      if (me.rank() == 0) {
        std::vector<std::byte> after(1);
        const RequestId ids[] = {me.Send(1, 0x2a, buffer), me.Receive(1, 3, after)};
        EXPECT_EQ(me.Wait(ids, Soon()), absl::OkStatus());
        return;
      }
      const RequestId id = me.Receive(0, 0x2a, buffer);
      const absl::Status status = me.Wait({&id, 1}, Soon());
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_THAT(
          std::string(status.message()),
          ::testing::AllOf(::testing::HasSubstr("rank 0"), ::testing::HasSubstr("0x2a"),
                           ::testing::HasSubstr(std::to_string(bytes) + " bytes"), ::testing::HasSubstr("holds 100")));
      me.Cancel(id);
      // The rest goes on.
      const RequestId after = me.Send(0, 3, std::span(buffer).first(1));
      EXPECT_EQ(me.Wait({&after, 1}, Soon()), absl::OkStatus());
    });
  }
}

TEST_P(TransportTest, WaitAny_ReturnsWhatIsDone) {
  Mesh mesh = Make(3);
  OnEveryRank(mesh, [](Transport& me) {
    std::byte buffer[3] = {};
    if (me.rank() == 0) {
      const RequestId ids[] = {me.Receive(1, 5, std::span(buffer, 1)), me.Receive(2, 5, std::span(buffer + 1, 1))};
      const absl::StatusOr<int> first = me.WaitAny(ids, Soon());
      ASSERT_EQ(first.status(), absl::OkStatus());
      EXPECT_EQ(*first, 1);
      EXPECT_EQ(me.ReceivedBytes(ids[1]), 1u);
      const RequestId go = me.Send(1, 6, std::span(buffer + 2, 1));
      EXPECT_EQ(me.WaitAny(std::span(ids, 1), Soon()).value_or(-1), 0);
      EXPECT_EQ(me.Wait({&go, 1}, Soon()), absl::OkStatus());
    } else {
      if (me.rank() == 1) {
        const RequestId go = me.Receive(0, 6, std::span(buffer, 1));
        ASSERT_EQ(me.Wait({&go, 1}, Soon()), absl::OkStatus());
      }
      const RequestId send = me.Send(0, 5, std::span(buffer, 1));
      EXPECT_EQ(me.Wait({&send, 1}, Soon()), absl::OkStatus());
    }
  });
}

TEST_P(TransportTest, Deadline_NamesTheRanksThatAreLate) {
  Mesh mesh = Make(3);
  std::byte buffer[2] = {};
  const RequestId ids[] = {mesh[0]->Receive(2, 0xab, std::span(buffer, 1)),
                           mesh[0]->Receive(1, 0xcd, std::span(buffer + 1, 1))};
  const absl::Status status = mesh[0]->Wait(ids, Clock::Real().Now() + absl::Milliseconds(20));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message(), "deadline passed waiting for rank 1 to send tag 0xcd, rank 2 to send tag 0xab");
  EXPECT_EQ(mesh[0]->WaitAny(ids, absl::InfinitePast()).status().code(), absl::StatusCode::kDeadlineExceeded);
  for (RequestId id : ids) mesh[0]->Cancel(id);
}

TEST_P(TransportTest, CancelledReceive_LeavesItsBufferAlone) {
  std::byte buffers[2][2] = {};
  Mesh mesh = Make(2);
  OnEveryRank(mesh, [&buffers](Transport& me) {
    const std::span<std::byte> buffer = buffers[me.rank()];
    if (me.rank() == 1) {
      const RequestId cancelled = me.Receive(0, 1, buffer.first(1));
      me.Cancel(cancelled);
      me.Cancel(cancelled);
      const RequestId ids[] = {me.Receive(0, 2, buffer.last(1)), me.Send(0, 3, {})};
      ASSERT_EQ(me.Wait(ids, Soon()), absl::OkStatus());
      EXPECT_EQ(buffer[0], std::byte{0});
      EXPECT_EQ(buffer[1], std::byte{9});
    } else {
      buffer[0] = std::byte{9};
      const RequestId go = me.Receive(1, 3, {});
      ASSERT_EQ(me.Wait({&go, 1}, Soon()), absl::OkStatus());
      // Nobody takes the first: it may stay open for ever.
      static_cast<void>(me.Send(1, 1, buffer.first(1)));
      const RequestId second = me.Send(1, 2, buffer.first(1));
      ASSERT_EQ(me.Wait({&second, 1}, Soon()), absl::OkStatus());
    }
  });
}

TEST_P(TransportTest, Wake_EndsOneWaitAnyFromAnyThread) {
  Mesh mesh = Make(2);
  Transport& me = *mesh[0];
  // Before the wait: not lost. Twice is once.
  me.Wake();
  me.Wake();
  EXPECT_EQ(me.Wait({}, absl::InfinitePast()), absl::OkStatus());
  EXPECT_EQ(me.WaitAny({}, Soon()).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(me.WaitAny({}, absl::InfinitePast()).status().code(), absl::StatusCode::kDeadlineExceeded);
  // During the wait, many times over: none is lost.
  std::thread waker;
  for (int i = 0; i < 200; ++i) {
    waker = std::thread([&me] { me.Wake(); });
    EXPECT_EQ(me.WaitAny({}, Soon()).status().code(), absl::StatusCode::kAborted);
    waker.join();
  }
}

TEST_P(TransportTest, Interrupt_FailsEverythingFromThenOn) {
  Mesh mesh = Make(2);
  Transport& me = *mesh[0];
  std::byte buffer[1];
  const RequestId id = me.Receive(1, 1, buffer);
  std::thread interrupter([&me] { me.Interrupt(); });
  EXPECT_EQ(me.Wait({&id, 1}, Soon()).code(), absl::StatusCode::kCancelled);
  interrupter.join();
  EXPECT_EQ(me.Wait({}, Soon()).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(me.WaitAny({&id, 1}, Soon()).status().code(), absl::StatusCode::kCancelled);
}

TEST_P(TransportTest, LostRank_FailsTheOthersAndIsNamed) {
  Mesh mesh = Make(4);
  std::thread dies([transport = std::exchange(mesh[2], nullptr)]() mutable { transport.reset(); });
  for (int rank : {0, 1, 3}) {
    std::byte buffer[1];
    // Even a wait for somebody else.
    const RequestId id = mesh[rank]->Receive((rank + 1) % 4 == 2 ? 2 : (rank == 0 ? 1 : 0), 1, buffer);
    const absl::Status status = mesh[rank]->Wait({&id, 1}, Soon());
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_EQ(status.message(), "lost rank 2");
    EXPECT_THAT(mesh[rank]->lost_peers(), ::testing::ElementsAre(2));
    EXPECT_EQ(mesh[rank]->WaitAny({}, Soon()).status().code(), absl::StatusCode::kUnavailable);
    mesh[rank]->Cancel(id);
  }
  dies.join();
}

TEST_P(TransportTest, DestroyedWithOpenRequests) {
  Mesh mesh = Make(2);
  std::vector<std::byte> big(1 << 20), in(1 << 20);
  static_cast<void>(mesh[0]->Send(1, 1, big));
  static_cast<void>(mesh[1]->Receive(0, 2, in));
  static_cast<void>(mesh[1]->Send(0, 3, big));
  mesh[0].reset();
  mesh[1].reset();
}

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_CONFORMANCE_H_
