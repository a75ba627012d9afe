// One engine among ranks that the test plays by hand: what is stale is dropped, what is malformed ends the view.
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/moe/wire.h"
#include "worker/step/group_test_util.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kTiny[] = "testdata/qwen3moe-tiny";
constexpr uint64_t kView = 5;

// Two ranks: the engine and the test.
class ProtocolTest : public ::testing::Test {
 protected:
  explicit ProtocolTest(int engine_rank = 0, bool shared = false)
      : engine_rank_(engine_rank), checkpoint_(TestWorker::Value(Checkpoint::Open(kTiny))) {
    worker_ = std::make_unique<TestWorker>(*checkpoint_, "engine", views_, TestWorkerOptions{.capacity = 8},
                                           kTestPatience, 1);
    Placement p{.epoch = Epoch(3),
                .shares_version = SharesVersion(1),
                .num_layers = layers(),
                .num_experts = checkpoint_->config().num_experts,
                .workers = {"engine", "test"}};
    // Expert 0 of each layer is with the test, the others with the engine; if `shared`, expert 1 is with both.
    int32_t slot = 0;
    for (int32_t layer = 0; layer < p.num_layers; ++layer) {
      for (int32_t e = 0; e < p.num_experts; ++e) {
        p.replicas.push_back({.expert = {layer, e}, .worker = e == 0 ? 1 : 0, .slot = slot++});
        if (shared && e == 1) p.replicas.push_back({.expert = {layer, e}, .worker = 1, .slot = slot++});
      }
    }
    GroupView view{.view = ViewId(kView), .rank = engine_rank};
    view.members.resize(2);
    view.members[engine_rank].worker = "engine";
    view.members[1 - engine_rank].worker = "test";
    BALLAST_CHECK(worker_->engine->InstallView(view, p).ok());
    GroupView mine = view;
    mine.rank = 1 - engine_rank;
    std::vector<int> unreachable;
    transports_ = views_.Factory();
    transport_ = TestWorker::Value(transports_->Connect(mine, Soon(), unreachable));
  }

  static absl::Time Soon() { return Clock::Real().Now() + kTestPatience; }
  int layers() const { return checkpoint_->config().num_moe_layers(); }
  int hidden() const { return checkpoint_->config().hidden_size; }

  template <typename T>
  static std::span<const std::byte> Bytes(const T& value) {
    return std::as_bytes(std::span(&value, 1));
  }
  void Send(Tag tag, std::span<const std::byte> message) {
    // Small ones are copied when sent, larger ones while this waits.
    const RequestId id = transport_->Send(engine_rank_, tag, message);
    ASSERT_EQ(transport_->Wait({&id, 1}, Soon()), absl::OkStatus());
  }
  std::vector<std::byte> Receive(Tag tag) {
    std::vector<std::byte> buffer(1 << 16);
    const RequestId id = transport_->Receive(engine_rank_, tag, buffer);
    const absl::Status status = transport_->Wait({&id, 1}, Soon());
    EXPECT_EQ(status, absl::OkStatus());
    buffer.resize(status.ok() ? transport_->ReceivedBytes(id) : 0);
    return buffer;
  }
  std::vector<std::byte> EmptyDispatch(uint64_t view, uint64_t step, int layer, uint32_t flags = 0) {
    const bool to_rank0 = engine_rank_ == 0;
    std::vector<std::byte> message(DispatchBytes({.destinations = to_rank0 ? 2 : 0}, 0, 0, hidden()));
    const DispatchHeader header{.header = {.kind = MessageKind::kDispatch, .view = view, .step = step},
                                .epoch = 3,
                                .layer = static_cast<uint32_t>(layer),
                                .flags = flags};
    std::memcpy(message.data(), &header, sizeof(header));
    return message;
  }
  // Takes part in a step without rows and answers zeros to whatever is asked.
  void PlayStep(uint64_t step, bool stale_first = false) {
    for (int layer = 0; layer < layers(); ++layer) {
      const Tag dispatch = MakeTag(MessageKind::kDispatch, step, layer);
      const Tag combine = MakeTag(MessageKind::kCombine, step, layer);
      if (stale_first) Send(dispatch, EmptyDispatch(kView - 1, step, layer));
      Send(dispatch, EmptyDispatch(kView, step, layer));
      const std::vector<std::byte> asked = Receive(dispatch);
      DispatchHeader header;
      ASSERT_GE(asked.size(), sizeof(header));
      std::memcpy(&header, asked.data(), sizeof(header));
      EXPECT_EQ(header.header.view, kView);
      EXPECT_EQ(header.header.step, step);
      std::vector<std::byte> answer(CombineBytes(header.pairs, hidden()));
      CombineHeader combine_header{.header = {.kind = MessageKind::kCombine, .view = kView - 1, .step = step},
                                   .layer = static_cast<uint32_t>(layer),
                                   .rows = header.pairs};
      std::memcpy(answer.data(), &combine_header, sizeof(combine_header));
      if (stale_first) Send(combine, answer);
      combine_header.header.view = kView;
      std::memcpy(answer.data(), &combine_header, sizeof(combine_header));
      Send(combine, answer);
      Receive(combine);
    }
  }
  Announcement ReceiveAnnouncement() {
    const auto announcement = ParseAnnouncement(Receive(MakeTag(MessageKind::kAnnounce, 0, 0)));
    EXPECT_EQ(announcement.status(), absl::OkStatus());
    return announcement.value_or(Announcement{});
  }
  Announcement Announce(uint64_t view, uint64_t step) {
    return {.header = {.kind = MessageKind::kAnnounce, .view = view, .step = step},
            .epoch = 3,
            .shares_version = 1,
            .capacity = 8};
  }
  void ExpectViewEnds(const std::string& reason) {
    ASSERT_TRUE(worker_->events.AwaitLoss(ViewId(kView)));
    const auto losses = worker_->events.losses();
    ASSERT_EQ(losses.size(), 1u);
    EXPECT_THAT(losses[0].ranks, ElementsAre(1 - engine_rank_));
    EXPECT_THAT(std::string(losses[0].reason.message()), HasSubstr(reason));
  }

  const int engine_rank_;
  InProcessViews views_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<TestWorker> worker_;
  std::unique_ptr<TransportFactory> transports_;
  std::unique_ptr<Transport> transport_;
};

class LeaderTest : public ProtocolTest {};

TEST_F(LeaderTest, AnnouncesTheViewsFirstStepAndThenOnlyWhatIsAskedFor) {
  const Announcement first = ReceiveAnnouncement();
  EXPECT_EQ(first.header.view, kView);
  EXPECT_EQ(first.header.step, 1u);
  EXPECT_EQ(first.epoch, 3u);
  EXPECT_EQ(first.shares_version, 1u);
  // What the others have room for is told in it.
  EXPECT_EQ(first.capacity, 1u);
  PlayStep(1);
  // Of an older view, and of an older step: nothing follows from either.
  const Tag work = MakeTag(MessageKind::kWork, 0, 0);
  Send(work, Bytes(WorkRequest{.header = {.kind = MessageKind::kWork, .view = kView - 1, .step = 1}}));
  Send(work, Bytes(WorkRequest{.header = {.kind = MessageKind::kWork, .view = kView, .step = 0}}));
  Send(work, Bytes(WorkRequest{.header = {.kind = MessageKind::kWork, .view = kView, .step = 1}}));
  // This peer does not say.
  const Announcement second = ReceiveAnnouncement();
  EXPECT_EQ(second.header.step, 2u);
  EXPECT_EQ(second.capacity, 8u);
  PlayStep(2);
  EXPECT_TRUE(worker_->events.losses().empty());
}

TEST_F(LeaderTest, WorkToCome_AndRoomForIt_AreSaidInTheStep) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  for (int layer = 0; layer < layers(); ++layer) {
    Send(MakeTag(MessageKind::kDispatch, 1, layer),
         EmptyDispatch(kView, 1, layer, DispatchFlags(/*has_prefill=*/false, /*more_work=*/true, /*capacity=*/3)));
    const CombineHeader none{.header = {.kind = MessageKind::kCombine, .view = kView, .step = 1},
                             .layer = static_cast<uint32_t>(layer)};
    Send(MakeTag(MessageKind::kCombine, 1, layer), Bytes(none));
  }
  const Announcement second = ReceiveAnnouncement();
  EXPECT_EQ(second.header.step, 2u);
  EXPECT_EQ(second.capacity, 3u);
  PlayStep(2);
}

TEST_F(LeaderTest, StaleDataMessages_AreDropped) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  PlayStep(1, /*stale_first=*/true);
  worker_->source->Submit({.tokens = {1, 2, 3}});
  EXPECT_EQ(ReceiveAnnouncement().header.step, 2u);
  PlayStep(2, /*stale_first=*/true);
  EXPECT_TRUE(worker_->events.losses().empty());
}

TEST_F(LeaderTest, MalformedDispatch_EndsTheView) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  std::vector<std::byte> message = EmptyDispatch(kView, 1, 0);
  message.push_back({});
  Send(MakeTag(MessageKind::kDispatch, 1, 0), message);
  ExpectViewEnds("message of rank 1: length is");
}

TEST_F(LeaderTest, MalformedDispatch_EndsNoRequestOfThisRank) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  PlayStep(1);
  const Job job{.tokens = {1, 2, 3}, .generate = 2};
  const int number = worker_->source->Submit(job);
  EXPECT_EQ(ReceiveAnnouncement().header.step, 2u);
  std::vector<std::byte> message = EmptyDispatch(kView, 2, 0);
  message.push_back({});
  Send(MakeTag(MessageKind::kDispatch, 2, 0), message);
  ExpectViewEnds("message of rank 1: length is");
  Placement alone = worker_->store->in_force()->placement();
  for (Replica& replica : alone.replicas) replica.worker = 0;
  alone.epoch = Epoch(4);
  ASSERT_EQ(worker_->engine->InstallView({.view = ViewId(kView + 1), .members = {{.worker = "engine"}}}, alone),
            absl::OkStatus());
  const auto result = worker_->source->Await(number);
  ASSERT_NE(result, nullptr);
  ASSERT_EQ(result->status, absl::OkStatus());
  TestModel model(kTiny, /*threads=*/1, /*max_rows=*/64);
  EXPECT_EQ(result->tokens, Reference(model, job).tokens);
}

TEST_F(LeaderTest, DispatchForAnExpertThatIsNotHere_EndsTheView) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  std::vector<std::byte> message(DispatchBytes({.destinations = 2}, 1, 1, hidden()));
  const DispatchHeader header{
      .header = {.kind = MessageKind::kDispatch, .view = kView, .step = 1}, .epoch = 3, .tokens = 1, .pairs = 1};
  const uint32_t destination_pairs[2] = {1, 0};
  std::memcpy(message.data(), &header, sizeof(header));
  std::memcpy(message.data() + sizeof(header), destination_pairs, sizeof(destination_pairs));
  Send(MakeTag(MessageKind::kDispatch, 1, 0), message);
  ExpectViewEnds("expert is 0, of which layer 0 has no replica here in epoch 3");
}

TEST_F(LeaderTest, MalformedCombine_EndsTheView) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  Send(MakeTag(MessageKind::kDispatch, 1, 0), EmptyDispatch(kView, 1, 0));
  const CombineHeader wrong{.header = {.kind = MessageKind::kCombine, .view = kView, .step = 1}, .rows = 1};
  Send(MakeTag(MessageKind::kCombine, 1, 0), Bytes(wrong));
  ExpectViewEnds("message of rank 1: rows is 1, not 0");
}

TEST_F(LeaderTest, OversizeMessage_EndsTheView) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  const std::vector<std::byte> huge(1 << 20);
  const RequestId id = transport_->Send(0, MakeTag(MessageKind::kDispatch, 1, 0), huge);
  ASSERT_TRUE(worker_->events.AwaitLoss(ViewId(kView)));
  EXPECT_THAT(std::string(worker_->events.losses()[0].reason.message()), HasSubstr("1048576 bytes"));
  static_cast<void>(transport_->Wait({&id, 1}, Soon()));
}

TEST_F(LeaderTest, MalformedWorkRequest_EndsTheView) {
  EXPECT_EQ(ReceiveAnnouncement().header.step, 1u);
  PlayStep(1);
  Send(MakeTag(MessageKind::kWork, 0, 0), std::as_bytes(std::span("hello", 5)));
  ExpectViewEnds("message of rank 1: length is 5, less than 24");
}

class FollowerTest : public ProtocolTest {
 protected:
  FollowerTest() : ProtocolTest(/*engine_rank=*/1) {}
  void SendAnnouncement(const Announcement& announcement) {
    Send(MakeTag(MessageKind::kAnnounce, 0, 0), Bytes(announcement));
  }
};

TEST_F(FollowerTest, FollowsAndAsksForSteps) {
  // An announcement of an older view means nothing.
  SendAnnouncement(Announce(kView - 1, 1));
  SendAnnouncement(Announce(kView, 1));
  PlayStep(1);
  const int job = worker_->source->Submit({.tokens = {1, 2, 3}});
  const auto request = ParseWorkRequest(1, Receive(MakeTag(MessageKind::kWork, 0, 0)));
  ASSERT_EQ(request.status(), absl::OkStatus());
  EXPECT_EQ(request->header.step, 1u);
  for (uint64_t step = 2; step <= 4; ++step) {
    SendAnnouncement(Announce(kView, step));
    ASSERT_NO_FATAL_FAILURE(PlayStep(step));
  }
  const auto result = worker_->source->Await(job);
  ASSERT_NE(result, nullptr);
  EXPECT_EQ(result->status, absl::OkStatus());
}

TEST_F(FollowerTest, AnnouncementOfAnotherStep_EndsTheView) {
  SendAnnouncement(Announce(kView, 2));
  ExpectViewEnds("announcement is of view 5 step 2, not of view 5 step 1");
}

TEST_F(FollowerTest, AnnouncementOfAnUnpreparedEpoch_EndsTheView) {
  Announcement announcement = Announce(kView, 1);
  announcement.epoch = 4;
  SendAnnouncement(announcement);
  ASSERT_TRUE(worker_->events.AwaitLoss(ViewId(kView)));
  const auto losses = worker_->events.losses();
  EXPECT_TRUE(losses[0].ranks.empty());
  EXPECT_THAT(std::string(losses[0].reason.message()), HasSubstr("epoch 4 shares 1 is not prepared"));
}

TEST_F(FollowerTest, MalformedAnnouncement_EndsTheView) {
  Send(MakeTag(MessageKind::kAnnounce, 0, 0), std::as_bytes(std::span("hello", 5)));
  ExpectViewEnds("length is 5");
}

TEST_F(FollowerTest, NothingShared_NoCountsWhateverIsAnnounced) {
  uint64_t step = 0;
  for (const LayerShares shares : {LayerShares{ShareForm::kCurrent, false}, LayerShares{ShareForm::kPrevious, true},
                                   LayerShares{ShareForm::kFixed, true}}) {
    Announcement announcement = Announce(kView, ++step);
    for (int layer = 0; layer < layers(); ++layer) SetAnnouncedShares(layer, shares, announcement);
    SendAnnouncement(announcement);
    ASSERT_NO_FATAL_FAILURE(PlayStep(step));
  }
  EXPECT_TRUE(worker_->events.losses().empty());
}

// Expert 1 is with both ranks.
class SharedFollowerTest : public ProtocolTest {
 protected:
  SharedFollowerTest() : ProtocolTest(/*engine_rank=*/1, /*shared=*/true) {}
  int experts() const { return checkpoint_->config().num_experts; }
  void AnnounceStep(uint64_t step, LayerShares shares) {
    Announcement announcement = Announce(kView, step);
    for (int layer = 0; layer < layers(); ++layer) SetAnnouncedShares(layer, shares, announcement);
    Send(MakeTag(MessageKind::kAnnounce, 0, 0), Bytes(announcement));
  }
  std::vector<std::byte> Counts(uint64_t view, uint64_t step, int layer, int32_t of_expert1) {
    std::vector<std::byte> message(CountsBytes(experts()));
    const CountsHeader header{.header = {.kind = MessageKind::kCounts, .view = view, .step = step},
                              .epoch = 3,
                              .layer = static_cast<uint32_t>(layer),
                              .experts = static_cast<uint32_t>(experts())};
    std::memcpy(message.data(), &header, sizeof(header));
    std::memcpy(message.data() + sizeof(header) + sizeof(int32_t), &of_expert1, sizeof(of_expert1));
    return message;
  }
  // As PlayStep, without rows, and with counts where `shares` has them.
  void PlaySharedStep(uint64_t step, LayerShares shares) {
    for (int layer = 0; layer < layers(); ++layer) {
      if (shares.form == ShareForm::kCurrent) {
        Send(MakeTag(MessageKind::kCounts, step, layer), Counts(kView - 1, step, layer, 5));
        Send(MakeTag(MessageKind::kCounts, step, layer), Counts(kView, step, layer, 0));
        EXPECT_EQ(Receive(MakeTag(MessageKind::kCounts, step, layer)).size(), CountsBytes(experts()));
      }
      const DispatchPreamble preamble{.counts = shares.counts ? experts() : 0};
      std::vector<std::byte> dispatch(DispatchBytes(preamble, 0, 0, hidden()));
      const DispatchHeader header{.header = {.kind = MessageKind::kDispatch, .view = kView, .step = step},
                                  .epoch = 3,
                                  .layer = static_cast<uint32_t>(layer)};
      std::memcpy(dispatch.data(), &header, sizeof(header));
      Send(MakeTag(MessageKind::kDispatch, step, layer), dispatch);
      const auto asked = Receive(MakeTag(MessageKind::kDispatch, step, layer));
      EXPECT_EQ(asked.size(), DispatchBytes({.destinations = 2, .counts = preamble.counts}, 0, 0, hidden()));
      const CombineHeader none{.header = {.kind = MessageKind::kCombine, .view = kView, .step = step},
                               .layer = static_cast<uint32_t>(layer)};
      Send(MakeTag(MessageKind::kCombine, step, layer), Bytes(none));
      Receive(MakeTag(MessageKind::kCombine, step, layer));
    }
  }
};

TEST_F(SharedFollowerTest, DoesAsAnnounced) {
  uint64_t step = 0;
  // Previous without a step before, with one, and after one that was not counted, is all alike to the peers.
  constexpr LayerShares kFixed, kCounted{ShareForm::kFixed, true}, kPrevious{ShareForm::kPrevious, true},
      kCurrent{ShareForm::kCurrent, false};
  for (const LayerShares shares :
       {kPrevious, kPrevious, kFixed, kPrevious, kCurrent, kPrevious, kCurrent, kFixed, kCounted, kPrevious}) {
    AnnounceStep(++step, shares);
    ASSERT_NO_FATAL_FAILURE(PlaySharedStep(step, shares)) << "step " << step;
  }
  EXPECT_TRUE(worker_->events.losses().empty());
}

TEST_F(SharedFollowerTest, MalformedCounts_EndTheView) {
  AnnounceStep(1, {ShareForm::kCurrent, false});
  Send(MakeTag(MessageKind::kCounts, 1, 0), Counts(kView, 1, 0, 9));
  ExpectViewEnds("message of rank 0: count is 9, more than 8");
}

TEST_F(SharedFollowerTest, CountsThatWereNotAnnounced_EndTheView) {
  AnnounceStep(1, {ShareForm::kFixed, true});
  Send(MakeTag(MessageKind::kDispatch, 1, 0), EmptyDispatch(kView, 1, 0));
  ExpectViewEnds("message of rank 0: length is");
}

TEST_F(FollowerTest, TooLargeACapacity_EndsTheView) {
  Announcement announcement = Announce(kView, 1);
  announcement.capacity = 9;
  SendAnnouncement(announcement);
  ASSERT_TRUE(worker_->events.AwaitLoss(ViewId(kView)));
  EXPECT_THAT(std::string(worker_->events.losses()[0].reason.message()), HasSubstr("capacity of 9; this worker has 8"));
}

}  // namespace
}  // namespace ballast
