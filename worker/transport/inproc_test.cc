#include "worker/transport/inproc.h"

#include <thread>

#include "gtest/gtest.h"
#include "worker/transport/conformance.h"

namespace ballast {
namespace {

Mesh MakeMesh(int ranks, InProcessOptions options) {
  InProcessMesh maker(ranks, options);
  Mesh mesh;
  for (int rank = 0; rank < ranks; ++rank) mesh.push_back(maker.Join(rank));
  return mesh;
}

INSTANTIATE_TEST_SUITE_P(InProcess, TransportTest,
                         ::testing::Values(MeshMaker{"Default", [](int ranks) { return MakeMesh(ranks, {}); }},
                                           MeshMaker{"Rendezvous",
                                                     [](int ranks) { return MakeMesh(ranks, {.eager_limit = 0}); }}),
                         [](const auto& info) { return info.param.name; });

TEST(InProcessMeshTest, LongSend_WaitsForItsReceive) {
  InProcessMesh maker(2, {.eager_limit = 4});
  const auto a = maker.Join(0), b = maker.Join(1);
  std::byte short_message[4] = {}, long_message[5] = {}, in[5];
  const RequestId short_send = a->Send(1, 1, short_message), long_send = a->Send(1, 2, long_message);
  EXPECT_EQ(a->Wait({&short_send, 1}, absl::InfinitePast()), absl::OkStatus());
  EXPECT_EQ(a->Wait({&long_send, 1}, absl::InfinitePast()).message(),
            "deadline passed waiting for rank 1 to take tag 0x2");
  static_cast<void>(b->Receive(0, 2, in));
  EXPECT_EQ(a->Wait({&long_send, 1}, absl::InfinitePast()), absl::OkStatus());
}

TEST(InProcessMeshTest, Deadline_IsTheClocks) {
  SimulatedClock clock;
  InProcessMesh maker(2, {.clock = &clock});
  const auto a = maker.Join(0), b = maker.Join(1);
  absl::Status status;
  std::thread waiter([&] {
    std::byte buffer[1];
    const RequestId id = a->Receive(1, 1, buffer);
    status = a->Wait({&id, 1}, clock.Now() + absl::Seconds(5));
    a->Cancel(id);
  });
  clock.AwaitWaiters(1);
  clock.Advance(absl::Seconds(5));
  waiter.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
}

// The fates, one message each, from rank 0 to rank 1 of three.
class HookTest : public ::testing::Test {
 protected:
  // Sends one message that meets `fate` and returns what rank 1 gets of it.
  absl::Status SendWith(MessageFate fate) {
    maker_.SetHook([this, fate](const InProcessMessage& message) {
      seen_.push_back(message);
      return fate;
    });
    static_cast<void>(a_->Send(1, 9, out_));
    receive_ = b_->Receive(0, 9, in_);
    return b_->Wait({&receive_, 1}, absl::InfinitePast());
  }

  InProcessMesh maker_{3};
  std::unique_ptr<Transport> a_ = maker_.Join(0), b_ = maker_.Join(1), c_ = maker_.Join(2);
  std::byte out_[2] = {}, in_[2] = {};
  RequestId receive_;
  std::vector<InProcessMessage> seen_;
};

TEST_F(HookTest, Deliver_SeesTheMessage) {
  EXPECT_EQ(SendWith(MessageFate::kDeliver), absl::OkStatus());
  ASSERT_EQ(seen_.size(), 1u);
  EXPECT_EQ(seen_[0].from, 0);
  EXPECT_EQ(seen_[0].to, 1);
  EXPECT_EQ(seen_[0].tag, 9u);
  EXPECT_EQ(seen_[0].bytes, 2u);
  EXPECT_EQ(seen_[0].index, 0);
}

TEST_F(HookTest, Drop_NeverArrives) {
  EXPECT_EQ(SendWith(MessageFate::kDrop).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(HookTest, Hold_ArrivesWhenReleased) {
  EXPECT_EQ(SendWith(MessageFate::kHold).code(), absl::StatusCode::kDeadlineExceeded);
  maker_.ReleaseHeld();
  EXPECT_EQ(b_->Wait({&receive_, 1}, absl::InfinitePast()), absl::OkStatus());
}

TEST_F(HookTest, KillSender_LosesItForAll) {
  EXPECT_EQ(SendWith(MessageFate::kKillSender).message(), "lost rank 0");
  EXPECT_EQ(c_->Wait({}, absl::InfinitePast()), absl::OkStatus());
  EXPECT_EQ(c_->WaitAny({}, absl::InfinitePast()).status().message(), "lost rank 0");
  EXPECT_EQ(a_->WaitAny({}, absl::InfinitePast()).status().message(), "lost rank 0");
}

TEST_F(HookTest, KillReceiver_LosesIt) {
  EXPECT_EQ(SendWith(MessageFate::kKillReceiver).message(), "lost rank 1");
  EXPECT_EQ(a_->WaitAny({}, absl::InfinitePast()).status().message(), "lost rank 1");
}

TEST_F(HookTest, Kill_WhatWasSentBeforeStillArrives) {
  static_cast<void>(a_->Send(1, 1, out_));
  maker_.Kill(0);
  receive_ = b_->Receive(0, 1, in_);
  EXPECT_EQ(b_->Wait({&receive_, 1}, absl::InfinitePast()), absl::OkStatus());
  EXPECT_EQ(b_->WaitAny({}, absl::InfinitePast()).status().message(), "lost rank 0");
}

}  // namespace
}  // namespace ballast
