// Expert slots, moves and flips on GPUs; the last test needs two of them, and runs itself again as the second process.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/test_support.h"
#include "worker/experts/device_copier.h"
#include "worker/experts/device_groups.h"
#include "worker/experts/device_slots.h"
#include "worker/experts/expert_mover.h"
#include "worker/experts/expert_store.h"
#include "worker/experts/fake_experts.h"
#include "worker/experts/group_slots.h"
#include "worker/experts/host_tier.h"
#include "worker/transport/nccl/communicator.h"
#include "worker/transport/nccl/peer_communicator.h"
#include "worker/transport/nccl/peer_process.h"

namespace ballast {
namespace {

constexpr int kHidden = 128, kIntermediate = 64;
constexpr size_t kBytes = size_t{6} * kHidden * kIntermediate;

void CheckOk(const absl::Status& status) { BALLAST_CHECK(status.ok()) << status.ToString(); }
absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

void FillRandomly(ExpertId expert, std::span<std::byte> out) {
  std::memcpy(out.data(), internal::RandomBf16(out.size() / 2, expert.expert, 0.1f).data(), out.size());
}

// `a` has two of the experts 0, 1 and 3, in the slots given.
Placement Having(uint64_t epoch, int32_t first, int32_t first_slot, int32_t second, int32_t second_slot) {
  Placement p{.epoch = Epoch(epoch), .shares_version = SharesVersion(1), .num_layers = 1, .num_experts = 4};
  p.workers = {"a", "b"};
  p.replicas = {{.expert = {0, first}, .worker = 0, .slot = first_slot},
                {.expert = {0, second}, .worker = 0, .slot = second_slot}};
  for (int32_t e = 0; e < 4; ++e) p.replicas.push_back({.expert = {0, e}, .worker = 1, .slot = e});
  p.Sort();
  return p;
}

class DeviceExpertsTest : public testing::Test {
 protected:
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
    CheckCuda(cudaSetDevice(0));
    auto slots = DeviceSlots::Create({.slots = 4, .slot_bytes = kBytes});
    CheckOk(slots.status());
    first_slot_ = (*slots)->Slot(0).data();
    auto store =
        ExpertStore::Create(source_, {.worker = "a", .capacity = {.slots = 4, .staging_slots = 2}}, *std::move(slots));
    CheckOk(store.status());
    store_ = *std::move(store);
    auto copier = DeviceCopier::Create();
    CheckOk(copier.status());
    copier_ = *std::move(copier);
    mover_ = std::make_unique<ExpertMover>(*copier_, Clock::Real());
  }

  FakeExperts source_{1, 4, kBytes, FillRandomly};
  std::unique_ptr<ExpertStore> store_;
  std::byte* first_slot_ = nullptr;
  std::unique_ptr<DeviceCopier> copier_;
  std::unique_ptr<ExpertMover> mover_;
};

TEST_F(DeviceExpertsTest, AMoveAndAFlipBetweenTwoLaunchesOfAGraph) {
  constexpr int kRows = 20;
  cudaStream_t stream;
  CheckCuda(cudaStreamCreate(&stream));
  ASSERT_EQ(store_->Load(Having(1, 0, 0, 1, 1)), absl::OkStatus());
  auto groups = DeviceGroups::Create(1, 2);
  ASSERT_TRUE(groups.ok()) << groups.status();
  const auto flip = [&] {
    const auto slots = GroupSlots(store_->in_force()->placement(), "a", 2);
    CheckOk(slots.status());
    CheckOk((*groups)->Flip(*slots, stream));
  };
  flip();

  const auto experts = CudaExperts::Create({first_slot_, DeviceSlots::StrideBytes(kBytes), 4, kHidden, kIntermediate});
  ASSERT_TRUE(experts.ok()) << experts.status();
  std::vector<uint16_t> x(kRows * kHidden);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(0x3f00 + i * 37 % 256);
  std::vector<int32_t> order(kRows);
  std::iota(order.begin(), order.end(), 0);
  const DeviceArray<uint16_t> device_x(x);
  const DeviceArray<int32_t> device_order(order), begin(std::vector<int32_t>{0, 7, kRows});
  DeviceArray<uint16_t> out(x.size());
  DeviceArray<uint8_t> workspace(experts->WorkspaceBytes(kRows, 2));
  workspace.Fill(0);
  const auto enqueue = [&](const int32_t* slots) {
    CheckOk(experts->Run({device_x.data(), device_order.data(), 1, begin.data(), slots, 2, kRows, out.data()},
                         workspace.data(), kRows, 2, stream));
  };
  const auto wanted = [&](int32_t first, int32_t second) {
    const DeviceArray<int32_t> slots(std::vector<int32_t>{first, second});
    enqueue(slots.data());
    CheckCuda(cudaStreamSynchronize(stream));
    return out.Read();
  };
  const std::vector<uint16_t> before = wanted(0, 1);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue((*groups)->layer(0));
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  const auto launch = [&] {
    out.Fill(0xff);
    CheckCuda(cudaDeviceSynchronize());
    CheckCuda(cudaGraphLaunch(executable, stream));
    CheckCuda(cudaStreamSynchronize(stream));
    return out.Read();
  };
  EXPECT_EQ(launch(), before);

  // Expert 3 comes from the host tier for expert 1.
  auto memory = PinnedMemory::Allocate(2 * kBytes);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const auto tier = HostTier::Load(source_, {{0, 2}, {0, 3}}, memory->bytes());
  ASSERT_TRUE(tier.ok()) << tier.status();
  const auto staged = store_->Prepare(Having(2, 0, 0, 3, 2));
  ASSERT_TRUE(staged.ok()) << staged.status();
  ASSERT_THAT(*staged, testing::ElementsAre(StagedReplica{.expert = {0, 3}, .slot = 2}));
  {
    // The wrong expert's bytes do not count.
    auto write = store_->StartWrite(staged->front());
    ASSERT_TRUE(write.ok()) << write.status();
    CheckOk(mover_->Move(tier->Find({0, 2}), write->bytes().data(), 0, Soon()));
    EXPECT_EQ(std::move(*write).Finish().code(), absl::StatusCode::kDataLoss);
  }
  auto write = store_->StartWrite(staged->front());
  ASSERT_TRUE(write.ok()) << write.status();
  CheckOk(mover_->Move(tier->Find({0, 3}), write->bytes().data(), 1'000'000'000, Soon()));
  EXPECT_EQ(std::move(*write).Finish(), absl::OkStatus());
  EXPECT_EQ(launch(), before);
  ASSERT_EQ(store_->Flip({Epoch(2), SharesVersion(1)}), absl::OkStatus());
  EXPECT_EQ(launch(), before);
  flip();
  const std::vector<uint16_t> after = launch();
  EXPECT_NE(after, before);
  EXPECT_EQ(after, wanted(0, 2));
  store_->EndOldEpochs();

  CheckCuda(cudaGraphExecDestroy(executable));
  CheckCuda(cudaGraphDestroy(graph));
  CheckCuda(cudaStreamDestroy(stream));
}

TEST_F(DeviceExpertsTest, ErrorsNameFieldValueAndLimits) {
  EXPECT_EQ(DeviceSlots::Create({.slots = 0, .slot_bytes = 8}).status().message(), "slots is 0, not at least 1");
  EXPECT_THAT(std::string(DeviceSlots::Create({.slots = 1, .slot_bytes = 0}).status().message()),
              testing::HasSubstr("slot_bytes is 0, not between 1 and"));
  auto few = DeviceSlots::Create({.slots = 3, .slot_bytes = kBytes});
  ASSERT_TRUE(few.ok()) << few.status();
  EXPECT_EQ(ExpertStore::Create(source_, {.worker = "a", .capacity = {.slots = 4, .staging_slots = 2}}, *std::move(few))
                .status()
                .message(),
            "memory has 3 slots of 49152 bytes; 4 of 49152 are wanted");
  const auto groups = DeviceGroups::Create(2, 3);
  ASSERT_TRUE(groups.ok()) << groups.status();
  EXPECT_EQ((*groups)->Flip(std::vector<int32_t>(5), nullptr).message(), "slots has 5 numbers, not 6");
}

// A rank's slots in memory that the other GPU reaches.
struct SharedSlots {
  SharedSlots(int rank, const PeerLink& link) {
    communicator = ConnectPeers(rank, link);
    auto shared = communicator->AllocateShared(4 * DeviceSlots::StrideBytes(kBytes), Soon());
    CheckOk(shared.status());
    memory = *shared;
    auto slots = DeviceSlots::Create({.slots = 4, .slot_bytes = kBytes, .memory = memory.own});
    CheckOk(slots.status());
    auto made_store = ExpertStore::Create(
        source, {.worker = rank == 0 ? "a" : "b", .capacity = {.slots = 4, .staging_slots = rank == 0 ? 2 : 0}},
        *std::move(slots));
    CheckOk(made_store.status());
    store = *std::move(made_store);
    CheckOk(store->Load(Having(1, 0, 0, 1, 1)));
    link.Meet();
  }

  FakeExperts source{1, 4, kBytes, FillRandomly};
  std::unique_ptr<NcclCommunicator> communicator;
  NcclCommunicator::Memory memory;
  std::unique_ptr<ExpertStore> store;
};

TEST_F(DeviceExpertsTest, AReplicaComesFromTheOtherGpu_EvenOfADeadProcess) {
  int gpus = 0;
  CheckCuda(cudaGetDeviceCount(&gpus));
  if (gpus < 2) GTEST_SKIP() << gpus << " GPUs, two are needed";
  ChildProcess child("slots");
  SharedSlots slots(0, child.link());
  const auto pull = [&](uint64_t epoch, int32_t slot, int64_t rate) {
    const auto staged = slots.store->Prepare(Having(epoch, 0, 0, 3, slot));
    CheckOk(staged.status());
    auto write = slots.store->StartWrite(staged->front());
    CheckOk(write.status());
    const std::byte* const from = slots.memory.peers[1] + 3 * DeviceSlots::StrideBytes(kBytes);
    CheckOk(mover_->Move({from, kBytes}, write->bytes().data(), rate, Soon()));
    return std::move(*write).Finish();
  };
  EXPECT_EQ(pull(2, 2, 0), absl::OkStatus());
  slots.store->Abort(Epoch(2));
  child.Kill();
  // What it has shared stays as long as somebody reaches it; the checksum would tell otherwise.
  EXPECT_EQ(pull(3, 3, 100'000'000), absl::OkStatus());
}

}  // namespace

void RunChild(const PeerLink& link) {
  const SharedSlots slots(1, link);
  char c;
  link.Read(&c, 1);
}

}  // namespace ballast

int main(int argc, char** argv) {
  std::string what;
  if (const auto link = ballast::PeerLink::OfChild(argc, argv, &what)) {
    ballast::RunChild(*link);
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
