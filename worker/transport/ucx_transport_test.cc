#include "worker/transport/ucx_transport.h"

#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "worker/transport/conformance.h"

namespace ballast {
namespace {

std::shared_ptr<UcxContext> Context() {
  static std::shared_ptr<UcxContext>& context = *new std::shared_ptr<UcxContext>(UcxContext::Create().value());
  return context;
}

using Listeners = std::vector<std::unique_ptr<MeshListener>>;

Listeners Listen(int ranks) {
  Listeners listeners;
  for (int rank = 0; rank < ranks; ++rank) {
    listeners.push_back(
        MeshListener::Start({.host = "127.0.0.1", .identity = {.group = "g", .secret = "s", .fingerprint = "f"}})
            .value());
  }
  return listeners;
}

// The view of these listeners, in this order.
Mesh Connect(const std::vector<MeshListener*>& listeners, ViewId number) {
  MeshView view{.view = number};
  for (MeshListener* listener : listeners) {
    view.members.push_back({.address = "127.0.0.1:" + std::to_string(listener->port()), .incarnation = Incarnation(1)});
  }
  Mesh mesh(listeners.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < listeners.size(); ++rank) {
    threads.emplace_back([&, rank] {
      MeshView mine = view;
      mine.rank = static_cast<int>(rank);
      absl::StatusOr<std::unique_ptr<Transport>> end = ConnectUcx(Context(), *listeners[rank], mine, Soon());
      ASSERT_EQ(end.status(), absl::OkStatus());
      mesh[rank] = *std::move(end);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return mesh;
}

// A mesh between threads of this process, over whatever UCX picks.
Mesh MakeMesh(int ranks) {
  const Listeners listeners = Listen(ranks);
  std::vector<MeshListener*> all;
  for (const auto& listener : listeners) all.push_back(listener.get());
  return Connect(all, ViewId(1));
}

INSTANTIATE_TEST_SUITE_P(Ucx, TransportTest, ::testing::Values(MeshMaker{"Default", MakeMesh}),
                         [](const auto& info) { return info.param.name; });

TEST(UcxTransportTest, ASurvivorsNewView_WorksWhileTheOldOneStillStands) {
  const Listeners listeners = Listen(3);
  MeshListener *a = listeners[0].get(), *b = listeners[1].get(), *c = listeners[2].get();
  Mesh old_view = Connect({a, b, c}, ViewId(1));
  old_view[1].reset();
  EXPECT_EQ(old_view[0]->WaitAny({}, Soon()).status().message(), "lost rank 1");
  // Ranks move up: c has rank 1 now.
  Mesh new_view = Connect({a, c}, ViewId(2));
  std::vector<std::byte> late(100, std::byte{1}), right(100, std::byte{2}), in(100);
  const RequestId late_send = old_view[2]->Send(0, 5, late);
  static_cast<void>(old_view[2]->Wait({&late_send, 1}, Clock::Real().Now() + absl::Milliseconds(50)));
  // The old view's message has the same tag, and comes first; the new view's is received.
  const RequestId receive = new_view[0]->Receive(1, 5, in);
  EXPECT_EQ(new_view[0]->Wait({&receive, 1}, Clock::Real().Now() + absl::Milliseconds(50)).code(),
            absl::StatusCode::kDeadlineExceeded);
  const RequestId send = new_view[1]->Send(0, 5, right);
  EXPECT_EQ(new_view[1]->Wait({&send, 1}, Soon()), absl::OkStatus());
  EXPECT_EQ(new_view[0]->Wait({&receive, 1}, Soon()), absl::OkStatus());
  EXPECT_TRUE(in == right);
  // The end of the old view does not touch the new one.
  old_view.clear();
  OnEveryRank(new_view, [](Transport& me) { AllToAll(me, 6, 4097); });
}

TEST(UcxTransportTest, CancelInMidMessage_GivesTheBufferBack) {
  Mesh mesh = MakeMesh(2);
  std::vector<std::byte> out(8 << 20, std::byte{1}), in(8 << 20);
  const RequestId send = mesh[1]->Send(0, 1, out);
  const RequestId receive = mesh[0]->Receive(1, 1, in);
  EXPECT_EQ(mesh[0]->Wait({&receive, 1}, absl::InfinitePast()).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(mesh[1]->Wait({&send, 1}, absl::InfinitePast()).code(), absl::StatusCode::kDeadlineExceeded);
  mesh[0]->Cancel(receive);
  const std::vector<std::byte> before = in;
  static_cast<void>(mesh[1]->Wait({&send, 1}, Clock::Real().Now() + absl::Milliseconds(50)));
  static_cast<void>(mesh[0]->WaitAny({}, Clock::Real().Now() + absl::Milliseconds(50)));
  EXPECT_TRUE(in == before);
}

}  // namespace
}  // namespace ballast
