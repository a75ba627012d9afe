#include "worker/experts/expert_store.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/check.h"
#include "worker/experts/fake_experts.h"
#include "worker/experts/slot_arena.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kLayers = 2;
constexpr int kExperts = 4;

// Two workers: `a` holds experts 0 and 1 of each layer in slots 0 to 3, `b` experts 2 and 3.
Placement Initial() {
  Placement p{.epoch = Epoch(1), .shares_version = SharesVersion(1), .num_layers = kLayers, .num_experts = kExperts};
  p.workers = {"a", "b"};
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t e = 0; e < kExperts; ++e) {
      p.replicas.push_back({.expert = {layer, e}, .worker = e / 2, .slot = layer * 2 + e % 2});
    }
  }
  p.Sort();
  return p;
}

// Initial, and `a` has expert (0, 3) in `slot` too.
Placement WithExtra(uint64_t epoch, int32_t slot) {
  Placement p = Initial();
  p.epoch = Epoch(epoch);
  p.replicas.push_back({.expert = {0, 3}, .worker = 0, .slot = slot});
  p.Sort();
  return p;
}

constexpr PlacementVersion Version(uint64_t epoch, uint64_t shares = 1) {
  return {Epoch(epoch), SharesVersion(shares)};
}

class ExpertStoreTest : public ::testing::Test {
 protected:
  ExpertStoreTest() {
    auto store = ExpertStore::Create(
        source_, {.worker = "a", .capacity = {.slots = 7, .staging_slots = 2}, .load_patience = absl::Milliseconds(1)});
    BALLAST_CHECK(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  void ExpectWeights(ExpertId id) {
    const uint16_t* weights = store_->in_force()->OwnWeights(id);
    ASSERT_NE(weights, nullptr);
    const auto* bytes = reinterpret_cast<const std::byte*>(weights);
    EXPECT_TRUE(std::all_of(bytes, bytes + 100, [&](std::byte b) { return b == source_.Value(id); }));
  }

  FakeExperts source_{kLayers, kExperts, 100};
  std::unique_ptr<ExpertStore> store_;
};

TEST_F(ExpertStoreTest, LoadsWhatThePlacementGivesIt) {
  EXPECT_EQ(store_->in_force(), nullptr);
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  EXPECT_EQ(store_->in_force()->version(), Version(1));
  for (const ExpertId id : {ExpertId{0, 0}, ExpertId{0, 1}, ExpertId{1, 0}, ExpertId{1, 1}}) ExpectWeights(id);
  EXPECT_EQ(store_->in_force()->OwnWeights({0, 2}), nullptr);
  EXPECT_EQ(store_->in_force()->layers()[0].replicas.size(), 4u);
  EXPECT_EQ(store_->slots()[0], (SlotInfo{.state = SlotState::kInForce, .expert = {0, 0}}));
  EXPECT_EQ(store_->slots()[4].state, SlotState::kFree);
}

TEST_F(ExpertStoreTest, LoadAgain_ReadsOnlyWhatIsMissing) {
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  const int reads = source_.reads;
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  EXPECT_EQ(source_.reads, reads);
  ASSERT_EQ(store_->Load(WithExtra(2, 4)), absl::OkStatus());
  EXPECT_EQ(source_.reads, reads + 1);
  ExpectWeights({0, 3});
  EXPECT_THAT(store_->Load(Initial()).message(), HasSubstr("epoch 1 shares 1 is older than epoch 2 shares 1"));
}

TEST_F(ExpertStoreTest, Load_UnsoundPlacements_AreRefusedAndChangeNothing) {
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  Placement p = WithExtra(2, 7);
  EXPECT_THAT(store_->Load(p).message(), HasSubstr("slot of layer 0 expert 3 on a is 7; it has slots 0 to 6"));
  p = WithExtra(2, 4);
  p.num_experts = 5;
  EXPECT_THAT(store_->Load(p).message(), HasSubstr("2 layers and 5 experts; the model has 2 and 4"));
  p = WithExtra(2, 4);
  p.replicas.push_back({.expert = {0, 2}, .worker = 0, .slot = 5});
  p.Sort();
  EXPECT_THAT(store_->Load(p).message(), HasSubstr("placement uses 6 slots of a; at most 5"));
  EXPECT_EQ(store_->in_force()->version(), Version(1));
}

TEST_F(ExpertStoreTest, Load_FailingSource_LeavesNothingInForceUntilItWorks) {
  source_.unreadable = {1, 1};
  EXPECT_EQ(store_->Load(Initial()).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->in_force(), nullptr);
  source_.unreadable = {-1, -1};
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  ExpectWeights({1, 1});
}

TEST_F(ExpertStoreTest, StageVerifyFlipEnd) {
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  // Expert (0, 3) comes to `a`, (0, 1) goes to `b`.
  Placement next = WithExtra(2, 4);
  for (Replica& r : next.replicas) {
    if (r.expert == ExpertId{0, 1}) r = {.expert = {0, 1}, .worker = 1, .slot = 4};
  }
  next.Sort();
  const auto staged = store_->Prepare(next);
  ASSERT_EQ(staged.status(), absl::OkStatus());
  EXPECT_THAT(*staged, ElementsAre(StagedReplica{.expert = {0, 3}, .slot = 4}));
  EXPECT_EQ(store_->prepared(), Version(2));
  EXPECT_FALSE(store_->Prepared(Version(2)));
  EXPECT_EQ(store_->Flip(Version(2)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->Pin({0, 3}).status().code(), absl::StatusCode::kNotFound);
  ASSERT_EQ(store_->StageFromSource(staged->front()), absl::OkStatus());
  EXPECT_TRUE(store_->Prepared(Version(2)));
  EXPECT_EQ(store_->in_force()->OwnWeights({0, 3}), nullptr);
  EXPECT_THAT(store_->Prepare(next).value(), IsEmpty());

  const auto old = store_->in_force();
  ASSERT_EQ(store_->Flip(Version(2)), absl::OkStatus());
  ExpectWeights({0, 3});
  EXPECT_EQ(store_->in_force()->OwnWeights({0, 1}), nullptr);
  EXPECT_EQ(store_->slots()[1], (SlotInfo{.state = SlotState::kDraining, .expert = {0, 1}}));
  EXPECT_TRUE(store_->Pin({0, 1}).ok());
  // The old table's weights are still there.
  EXPECT_EQ(*reinterpret_cast<const std::byte*>(old->OwnWeights({0, 1})), source_.Value({0, 1}));
  store_->EndOldEpochs();
  EXPECT_EQ(store_->slots()[1].state, SlotState::kFree);
  EXPECT_EQ(store_->Pin({0, 1}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ExpertStoreTest, WrongBytes_DoNotCount) {
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  const StagedReplica replica = store_->Prepare(WithExtra(2, 4))->front();
  {
    auto write = store_->StartWrite(replica);
    ASSERT_EQ(write.status(), absl::OkStatus());
    EXPECT_EQ(store_->StartWrite(replica).status().code(), absl::StatusCode::kFailedPrecondition);
    const absl::Status status = std::move(*write).Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr("layer 0 expert 3 in slot 4"));
  }
  EXPECT_FALSE(store_->Prepared(Version(2)));
  { auto dropped = store_->StartWrite(replica); }
  EXPECT_FALSE(store_->Prepared(Version(2)));
  EXPECT_EQ(store_->StageFromSource(replica), absl::OkStatus());
  EXPECT_TRUE(store_->Prepared(Version(2)));
}

TEST_F(ExpertStoreTest, Abort_FreesAtOnceOrWhenTheWriteEnds) {
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  store_->Abort(Epoch(2));
  StagedReplica replica = store_->Prepare(WithExtra(2, 4))->front();
  store_->Abort(Epoch(3));
  EXPECT_EQ(store_->prepared(), Version(2));
  store_->Abort(Epoch(2));
  EXPECT_EQ(store_->slots()[4].state, SlotState::kFree);
  EXPECT_EQ(store_->StageFromSource(replica).code(), absl::StatusCode::kFailedPrecondition);

  replica = store_->Prepare(WithExtra(3, 4))->front();
  auto write = store_->StartWrite(replica);
  ASSERT_EQ(write.status(), absl::OkStatus());
  EXPECT_FALSE(write->cancelled());
  store_->Abort(Epoch(3));
  EXPECT_TRUE(write->cancelled());
  EXPECT_THAT(store_->Prepare(WithExtra(4, 4)).status().message(), HasSubstr("slot 4 for layer 0 expert 3 is staging"));
  EXPECT_EQ(std::move(*write).Finish().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(store_->slots()[4].state, SlotState::kFree);
  EXPECT_TRUE(store_->Prepare(WithExtra(4, 4)).ok());
}

TEST_F(ExpertStoreTest, Prepare_Refusals) {
  EXPECT_EQ(store_->Prepare(WithExtra(2, 4)).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  EXPECT_THAT(store_->Prepare(Initial()).status().message(), HasSubstr("not newer"));
  EXPECT_THAT(store_->Prepare(WithExtra(2, 3)).status().code(), absl::StatusCode::kInvalidArgument);
  Placement shares = WithExtra(1, 4);
  shares.shares_version = SharesVersion(2);
  EXPECT_THAT(store_->Prepare(shares).status().message(), HasSubstr("other replicas"));
  ASSERT_TRUE(store_->Prepare(WithExtra(2, 4)).ok());
  EXPECT_THAT(store_->Prepare(WithExtra(3, 4)).status().message(), HasSubstr("epoch 2 shares 1 is prepared already"));
}

TEST_F(ExpertStoreTest, NewShares_NeedNoMove) {
  ASSERT_EQ(store_->Load(WithExtra(1, 4)), absl::OkStatus());
  Placement shares = WithExtra(1, 4);
  shares.shares_version = SharesVersion(2);
  for (Replica& r : shares.replicas) r.weight = 7;
  EXPECT_THAT(store_->Prepare(shares).value(), IsEmpty());
  ASSERT_TRUE(store_->Prepared(Version(1, 2)));
  ASSERT_EQ(store_->Flip(Version(1, 2)), absl::OkStatus());
  EXPECT_EQ(store_->in_force()->placement().replicas[0].weight, 7u);
  EXPECT_EQ(store_->slots()[4].state, SlotState::kInForce);
}

TEST_F(ExpertStoreTest, Load_TakesOverWhatWasPrepared) {
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  ASSERT_EQ(store_->StageFromSource(store_->Prepare(WithExtra(2, 4))->front()), absl::OkStatus());
  // The view in force changes, not the placement: what is prepared stays.
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  EXPECT_TRUE(store_->Prepared(Version(2)));
  const int reads = source_.reads;
  ASSERT_EQ(store_->Load(WithExtra(2, 4)), absl::OkStatus());
  EXPECT_EQ(source_.reads, reads);
  EXPECT_EQ(store_->prepared(), std::nullopt);
  ExpectWeights({0, 3});
  // Overtaken by a placement that does not want it.
  ASSERT_TRUE(store_->Prepare(WithExtra(3, 5)).ok());
  Placement newer = Initial();
  newer.epoch = Epoch(4);
  ASSERT_EQ(store_->Load(newer), absl::OkStatus());
  EXPECT_EQ(store_->slots()[4].state, SlotState::kFree);
  EXPECT_EQ(store_->slots()[5].state, SlotState::kFree);
}

TEST_F(ExpertStoreTest, Pin_KeepsTheSlotFromReuse) {
  ASSERT_EQ(store_->Load(WithExtra(1, 4)), absl::OkStatus());
  Placement next = Initial();
  next.epoch = Epoch(2);
  {
    auto pin = store_->Pin({0, 3});
    ASSERT_EQ(pin.status(), absl::OkStatus());
    ASSERT_TRUE(store_->Prepare(next).ok());
    ASSERT_EQ(store_->Flip(Version(2)), absl::OkStatus());
    store_->EndOldEpochs();
    EXPECT_EQ(store_->slots()[4], (SlotInfo{.state = SlotState::kDraining, .expert = {0, 3}, .pins = 1}));
    EXPECT_EQ(pin->bytes()[99], source_.Value({0, 3}));
    EXPECT_EQ(store_->Prepare(WithExtra(3, 4)).status().code(), absl::StatusCode::kFailedPrecondition);
    Placement other = Initial();
    other.epoch = Epoch(3);
    other.replicas.push_back({.expert = {1, 3}, .worker = 0, .slot = 4});
    other.Sort();
    EXPECT_EQ(store_->Load(other).code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_EQ(store_->in_force(), nullptr);
    PinnedExpert moved = *std::move(pin);
    EXPECT_EQ(store_->slots()[4].pins, 1);
  }
  EXPECT_EQ(store_->slots()[4].state, SlotState::kFree);
  ASSERT_EQ(store_->Load(WithExtra(4, 4)), absl::OkStatus());
}

TEST_F(ExpertStoreTest, PullsWhileEpochsGoOn_NeverSeeWrongBytes) {
  ASSERT_EQ(store_->Load(Initial()), absl::OkStatus());
  std::atomic<int64_t> pulls{0};
  std::jthread puller([&](std::stop_token stop) {
    std::minstd_rand random(1);
    while (!stop.stop_requested()) {
      const ExpertId id{static_cast<int32_t>(random() % kLayers), static_cast<int32_t>(random() % kExperts)};
      const auto pin = store_->Pin(id);
      if (!pin.ok()) continue;
      for (std::byte b : pin->bytes()) ASSERT_EQ(b, source_.Value(id));
      ++pulls;
    }
  });
  uint64_t epoch = 1;
  std::minstd_rand random(2);
  while (epoch < 300 || pulls < 100) {
    Placement next = Initial();
    next.epoch = Epoch(epoch + 1);
    const auto slots = store_->slots();
    std::vector<int32_t> free;
    for (int32_t s = 0; s < 7; ++s) {
      if (slots[s].state == SlotState::kFree) free.push_back(s);
    }
    if (!free.empty()) {
      next.replicas.push_back(
          {.expert = {static_cast<int32_t>(random() % kLayers), 2 + static_cast<int32_t>(random() % 2)},
           .worker = 0,
           .slot = free[random() % free.size()]});
      next.Sort();
    }
    auto staged = store_->Prepare(next);
    ASSERT_EQ(staged.status(), absl::OkStatus());
    for (const StagedReplica& replica : *staged) ASSERT_EQ(store_->StageFromSource(replica), absl::OkStatus());
    ASSERT_EQ(store_->Flip(Version(epoch + 1)), absl::OkStatus());
    ++epoch;
    store_->EndOldEpochs();
  }
}

TEST(ExpertStoreOptions, AreChecked) {
  FakeExperts source(kLayers, kExperts, 100);
  EXPECT_THAT(ExpertStore::Create(source, {.worker = "", .capacity = {.slots = 3}}).status().message(),
              HasSubstr("worker is empty"));
  EXPECT_THAT(
      ExpertStore::Create(source, {.worker = "a", .capacity = {.slots = 2, .staging_slots = 2}}).status().message(),
      HasSubstr("staging_slots is 2, not between 0 and slots - 1 = 1"));
}

TEST(SlotArena, SlotsAreAlignedAndApart) {
  const auto arena = SlotArena::Create(5, 100);
  ASSERT_EQ(arena.status(), absl::OkStatus());
  for (int32_t s = 0; s < 5; ++s) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arena->Slot(s).data()) % 64, 0u);
    EXPECT_EQ(arena->Slot(s).size(), 100u);
    std::memset(arena->Slot(s).data(), s, 100);
  }
  for (int32_t s = 0; s < 5; ++s) EXPECT_EQ(arena->Slot(s)[99], static_cast<std::byte>(s));
  EXPECT_EQ(SlotArena::Create(0, 100).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SlotArena::Create(1 << 30, size_t{1} << 60).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SlotArena::Create(1 << 20, size_t{1} << 42).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace ballast
