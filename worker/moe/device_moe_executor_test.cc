// Two ranks, a thread and a GPU each, against one GPU with every expert.
#include "worker/moe/device_moe_executor.h"

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/test_support.h"
#include "worker/experts/expert_store.h"
#include "worker/experts/fake_experts.h"
#include "worker/transport/inproc.h"
#include "worker/transport/nccl/communicator.h"

namespace ballast {
namespace {

using internal::RandomBf16;

constexpr int kLayers = 3, kExperts = 16, kTopK = 4, kHidden = 256, kIntermediate = 128, kCapacity = 40;
constexpr int kRanks = 2;
constexpr size_t kExpertBytes = size_t{6} * kHidden * kIntermediate;

void CheckOk(const absl::Status& status) { BALLAST_CHECK(status.ok()) << status.ToString(); }
template <typename T>
T Value(absl::StatusOr<T> value) {
  BALLAST_CHECK(value.ok()) << value.status().ToString();
  return *std::move(value);
}
absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

void FillRandomly(ExpertId expert, std::span<std::byte> out) {
  const uint32_t number = 100 + expert.layer * kExperts + expert.expert;
  std::memcpy(out.data(), RandomBf16(out.size() / 2, number, 0.09f).data(), out.size());
}

// Expert e of layer l on worker (e + l) % 2, every third on both; `c` instead of `b`: a worker that no view has.
Placement Spread(uint64_t epoch, int shift, const char* second = "b") {
  Placement p{.epoch = Epoch(epoch),
              .shares_version = SharesVersion(1),
              .num_layers = kLayers,
              .num_experts = kExperts,
              .workers = {"a", second}};
  for (int32_t l = 0; l < kLayers; ++l) {
    for (int32_t e = 0; e < kExperts; ++e) {
      const int32_t slot = (static_cast<int32_t>(epoch) % 2 * kLayers + l) * kExperts + e;
      for (int32_t w = 0; w < 2; ++w) {
        if ((e + l + shift) % 2 != w && e % 3 != 0) continue;
        p.replicas.push_back(
            {.expert = {l, e}, .worker = w, .slot = slot, .weight = static_cast<uint32_t>(1 + (e + w) % 3)});
      }
    }
  }
  p.Sort();
  return p;
}

Placement Everything() {
  Placement p = Spread(1, 0);
  p.workers = {"whole"};
  p.replicas.clear();
  for (int32_t l = 0; l < kLayers; ++l) {
    for (int32_t e = 0; e < kExperts; ++e) {
      p.replicas.push_back({.expert = {l, e}, .worker = 0, .slot = l * kExperts + e, .weight = 1});
    }
  }
  p.Sort();
  return p;
}

// A worker's experts and executor on the current GPU.
struct Rank {
  Rank(const std::string& name, absl::Duration wait_limit, CombineMode combine = CombineMode::kFast,
       int capacity = kCapacity)
      : counters(kLayers, kExperts, kTopK), hidden(size_t{kCapacity} * kHidden), out(size_t{kCapacity} * kHidden) {
    for (int l = 0; l < kLayers; ++l) {
      router_weights.push_back(std::make_unique<DeviceArray<uint16_t>>(RandomBf16(kExperts * kHidden, l, 0.2f)));
    }
    constexpr int kSlots = 2 * kLayers * kExperts + 2;
    auto memory = Value(DeviceSlots::Create({.slots = kSlots, .slot_bytes = kExpertBytes}));
    const SlotMemory& slots = *memory;
    store = Value(ExpertStore::Create(source, {.worker = name, .capacity = {.slots = kSlots, .staging_slots = 2}},
                                      std::move(memory)));
    DeviceMoeModel model{.rule = {.num_experts = kExperts, .top_k = kTopK, .renormalize = true},
                         .hidden_size = kHidden,
                         .intermediate_size = kIntermediate};
    for (const auto& weights : router_weights) model.router_weights.push_back(weights->data());
    executor = Value(DeviceMoeExecutor::Create(std::move(model), slots,
                                               {.capacity = capacity, .combine = combine, .wait_limit = wait_limit}));
    CheckCuda(cudaStreamCreate(&stream));
    task = counters.InternTask("task");
  }
  ~Rank() {
    executor.reset();
    cudaStreamDestroy(stream);
  }

  // The same rows through every layer, each layer's output after another.
  absl::Status Step(uint64_t number, const std::vector<uint16_t>& rows, ShareForm form,
                    std::vector<std::vector<uint16_t>>* outputs, bool prefill = false, absl::Time deadline = Soon()) {
    const int n = static_cast<int>(rows.size() / kHidden);
    labels.assign(n, {.task = task, .phase = prefill ? TokenPhase::kPrefill : TokenPhase::kDecode});
    shares.assign(kLayers, {.form = form, .counts = form == ShareForm::kPrevious});
    if (n > 0) CheckCuda(cudaMemcpy(hidden.data(), rows.data(), rows.size() * 2, cudaMemcpyHostToDevice));
    if (absl::Status s = executor->BeginStep(
            {.step = StepId(number), .rows = labels, .more_work = prefill, .shares = shares, .deadline = deadline},
            stream);
        !s.ok()) {
      return s;
    }
    std::vector<std::unique_ptr<DeviceArray<uint16_t>>> outs;
    for (int l = 0; l < kLayers; ++l) {
      outs.push_back(std::make_unique<DeviceArray<uint16_t>>(out.size()));
      outs.back()->Fill(0xff);
      if (absl::Status s = executor->Run(l, hidden.data(), n, outs.back()->data(), stream); !s.ok()) return s;
    }
    if (absl::Status s = executor->Await(stream); !s.ok()) return s;
    if (absl::Status s = executor->EndStep(stream); !s.ok()) return s;
    executor->CountStep(counters);
    outputs->clear();
    for (const auto& o : outs) {
      outputs->push_back(o->Read());
      outputs->back().resize(rows.size());
    }
    return absl::OkStatus();
  }

  FakeExperts source{kLayers, kExperts, kExpertBytes, FillRandomly};
  std::vector<std::unique_ptr<DeviceArray<uint16_t>>> router_weights;
  LoadCounters counters;
  int32_t task = 0;
  std::unique_ptr<ExpertStore> store;
  std::unique_ptr<DeviceMoeExecutor> executor;
  DeviceArray<uint16_t> hidden, out;
  std::vector<RowLabel> labels;
  std::vector<LayerShares> shares;
  cudaStream_t stream = nullptr;
};

GroupView ViewOf(int rank, std::vector<std::string> workers) {
  GroupView view{.view = ViewId(1), .rank = rank};
  for (std::string& worker : workers) view.members.push_back({.worker = std::move(worker)});
  return view;
}

double ErrorOf(const std::vector<uint16_t>& got, const std::vector<uint16_t>& wanted) {
  BALLAST_CHECK(got.size() == wanted.size());
  RelativeError error;
  for (size_t i = 0; i < got.size(); ++i) error.Add(FromBf16(got[i]), FromBf16(wanted[i]));
  return error.value();
}

class DeviceMoeExecutorTest : public testing::Test {
 protected:
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < kRanks) GTEST_SKIP() << gpus << " GPUs, two are needed";
  }
  // `body` of both ranks at once. Within one process a rank's memory is gone with it, so both meet before they leave.
  static void OnBoth(
      const std::function<void(int rank, std::unique_ptr<Transport> transport, std::barrier<>& both)>& body) {
    InProcessMesh mesh(kRanks);
    std::barrier<> both(kRanks);
    std::vector<std::thread> threads;
    for (int r = 0; r < kRanks; ++r) {
      threads.emplace_back([&, r] {
        CheckCuda(cudaSetDevice(r));
        body(r, mesh.Join(r), both);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

TEST_F(DeviceMoeExecutorTest, TwoGpusComputeWhatOneDoes) {
  OnBoth([](int rank, std::unique_ptr<Transport> transport, std::barrier<>& both) {
    Rank whole("whole", absl::Seconds(20));
    CheckOk(whole.store->Load(Everything()));
    CheckOk(whole.executor->Enter(ViewOf(0, {"whole"}), nullptr, whole.store->in_force(), Soon(), whole.stream));
    Rank own(rank == 0 ? "a" : "b", absl::Seconds(20));
    CheckOk(own.store->Load(Spread(1, 0)));
    CheckOk(own.executor->Enter(ViewOf(rank, {"a", "b"}), transport.get(), own.store->in_force(), Soon(), own.stream));
    EXPECT_FALSE(own.executor->capturable());
    EXPECT_TRUE(whole.executor->capturable());
    const int rows_of[][kRanks] = {{40, 40}, {1, 0}, {0, 17}, {0, 0}, {33, 7}, {40, 40}, {12, 12}, {5, 40}, {40, 3}};
    uint64_t number = 0;
    for (const ShareForm form : {ShareForm::kFixed, ShareForm::kPrevious, ShareForm::kCurrent}) {
      for (const auto& rows : rows_of) {
        ++number;
        if (number == 6 || number == 20) {
          // The next placement comes into force between two steps.
          const Placement next = Spread(number, 1);
          for (const StagedReplica& replica : Value(own.store->Prepare(next))) {
            CheckOk(own.store->StageFromSource(replica));
          }
          CheckOk(own.store->Flip(VersionOf(next)));
          CheckOk(own.executor->Flip(own.store->in_force(), own.stream));
        }
        const std::vector<uint16_t> hidden = RandomBf16(size_t{kHidden} * rows[rank], 1000 * number + rank);
        std::vector<std::vector<uint16_t>> got, wanted;
        CheckOk(own.Step(number, hidden, form, &got, rank == 1 && number % 4 == 0));
        CheckOk(whole.Step(number, hidden, ShareForm::kFixed, &wanted, rank == 1 && number % 4 == 0));
        for (int l = 0; l < kLayers && rows[rank] > 0; ++l) {
          EXPECT_LT(ErrorOf(got[l], wanted[l]), 0.01) << "step " << number << " layer " << l << " rank " << rank;
        }
        const MoeStepStats& stats = own.executor->stats();
        EXPECT_EQ(stats.any_prefill, number % 4 == 0 && rows[1] > 0);
        EXPECT_EQ(stats.any_more_work, number % 4 == 0);
        EXPECT_GE(stats.copies_self + stats.copies_node, int64_t{kLayers} * rows[rank]);
        EXPECT_TRUE(own.executor->failures().empty());
        if (rank == 0) {
          EXPECT_EQ(stats.balancedness >= 0, rows[0] + rows[1] > 0);
        }
        if (form == ShareForm::kCurrent) {
          EXPECT_EQ(stats.layers_by_form[static_cast<int>(form)], kLayers);
          if (rows[0] + rows[1] > 20 && rank == 0) {
            EXPECT_GT(stats.balancedness, 0.9) << "step " << number;
          }
        }
      }
    }
    // Both counted the same; a weight's last bits depend on the kernel that few rows are routed by.
    const LoadWindow counted = own.counters.Take(), wanted = whole.counters.Take();
    EXPECT_EQ(counted.tasks, wanted.tasks);
    EXPECT_FALSE(counted.counts.empty());
    ASSERT_EQ(counted.counts.size(), wanted.counts.size());
    for (size_t i = 0; i < wanted.counts.size(); ++i) {
      EXPECT_EQ(counted.counts[i].expert, wanted.counts[i].expert);
      EXPECT_EQ(counted.counts[i].phase, wanted.counts[i].phase);
      EXPECT_EQ(counted.counts[i].tokens, wanted.counts[i].tokens);
      EXPECT_NEAR(counted.counts[i].gate_mass, wanted.counts[i].gate_mass, 1e-4);
    }
    both.arrive_and_wait();
  });
}

TEST_F(DeviceMoeExecutorTest, ExactHasTheSameBitsInEveryPlacement) {
  OnBoth([](int rank, std::unique_ptr<Transport> transport, std::barrier<>& both) {
    Rank whole("whole", absl::Seconds(20), CombineMode::kExact);
    CheckOk(whole.store->Load(Everything()));
    CheckOk(whole.executor->Enter(ViewOf(0, {"whole"}), nullptr, whole.store->in_force(), Soon(), whole.stream));
    Rank own(rank == 0 ? "a" : "b", absl::Seconds(20), CombineMode::kExact);
    CheckOk(own.store->Load(Spread(1, 0)));
    CheckOk(own.executor->Enter(ViewOf(rank, {"a", "b"}), transport.get(), own.store->in_force(), Soon(), own.stream));
    uint64_t number = 0;
    for (const ShareForm form : {ShareForm::kFixed, ShareForm::kCurrent}) {
      for (const int rows : {40, 1, 17}) {
        ++number;
        const std::vector<uint16_t> hidden = RandomBf16(size_t{kHidden} * rows, 1000 * number + rank);
        std::vector<std::vector<uint16_t>> got, wanted;
        CheckOk(own.Step(number, hidden, form, &got));
        CheckOk(whole.Step(number, hidden, ShareForm::kFixed, &wanted));
        EXPECT_EQ(got, wanted) << "step " << number;
        // A row by itself.
        CheckOk(whole.Step(number, {hidden.end() - kHidden, hidden.end()}, ShareForm::kFixed, &wanted));
        for (int l = 0; l < kLayers; ++l) {
          EXPECT_TRUE(std::equal(wanted[l].begin(), wanted[l].end(), got[l].end() - kHidden)) << "layer " << l;
        }
      }
    }
    both.arrive_and_wait();
  });
}

// Each may take more or fewer rows than the other: together they take the fewest that either does.
TEST_F(DeviceMoeExecutorTest, RanksOfDifferentCapacityComputeWhatOneDoes) {
  for (const bool first_is_larger : {false, true}) {
    OnBoth([&](int rank, std::unique_ptr<Transport> transport, std::barrier<>& both) {
      Rank whole("whole", absl::Seconds(20), CombineMode::kExact);
      CheckOk(whole.store->Load(Everything()));
      CheckOk(whole.executor->Enter(ViewOf(0, {"whole"}), nullptr, whole.store->in_force(), Soon(), whole.stream));
      const int capacity = (rank == 0) == first_is_larger ? 32 : 16;
      Rank own(rank == 0 ? "a" : "b", absl::Seconds(20), CombineMode::kExact, capacity);
      CheckOk(own.store->Load(Spread(1, 0)));
      CheckOk(
          own.executor->Enter(ViewOf(rank, {"a", "b"}), transport.get(), own.store->in_force(), Soon(), own.stream));
      uint64_t number = 0;
      for (const ShareForm form : {ShareForm::kFixed, ShareForm::kPrevious, ShareForm::kCurrent}) {
        for (const int rows : {16, 1, 7}) {
          ++number;
          const std::vector<uint16_t> hidden = RandomBf16(size_t{kHidden} * rows, 1000 * number + rank);
          std::vector<std::vector<uint16_t>> got, wanted;
          CheckOk(own.Step(number, hidden, form, &got));
          CheckOk(whole.Step(number, hidden, ShareForm::kFixed, &wanted));
          EXPECT_EQ(got, wanted) << "step " << number;
          EXPECT_EQ(own.executor->stats().least_capacity, 16);
        }
      }
      both.arrive_and_wait();
    });
  }
}

TEST_F(DeviceMoeExecutorTest, RowsFailThatNeedALostExpert) {
  OnBoth([](int rank, std::unique_ptr<Transport> transport, std::barrier<>& both) {
    // What only `c` had is lost: both take part with what is left of the placement.
    Rank own(rank == 0 ? "a" : "d", absl::Seconds(20));
    const Placement placement = Spread(1, 0, "c");
    CheckOk(own.store->Load(placement));
    CheckOk(own.executor->Enter(ViewOf(rank, {"a", "d"}), transport.get(), own.store->in_force(), Soon(), own.stream));
    std::vector<std::vector<uint16_t>> out;
    CheckOk(own.Step(1, RandomBf16(size_t{kHidden} * 20, rank), ShareForm::kFixed, &out));
    const auto failures = own.executor->failures();
    EXPECT_FALSE(failures.empty());
    for (const RowFailure& failure : failures) {
      EXPECT_THAT(failure.workers, testing::ElementsAre("c"));
      for (int l = failure.expert.layer; l < kLayers; ++l) {
        for (int h = 0; h < kHidden; ++h) EXPECT_EQ(out[l][failure.row * kHidden + h] & 0x7fff, 0);
      }
    }
    both.arrive_and_wait();
  });
}

TEST_F(DeviceMoeExecutorTest, APeerThatIsGoneIsNamed) {
  OnBoth([](int rank, std::unique_ptr<Transport> transport, std::barrier<>& both) {
    Rank own(rank == 0 ? "a" : "b", absl::Seconds(1));
    CheckOk(own.store->Load(Spread(1, 0)));
    CheckOk(own.executor->Enter(ViewOf(rank, {"a", "b"}), transport.get(), own.store->in_force(), Soon(), own.stream));
    std::vector<std::vector<uint16_t>> out;
    const std::vector<uint16_t> rows = RandomBf16(size_t{kHidden} * 20, rank);
    CheckOk(own.Step(1, rows, ShareForm::kCurrent, &out));
    if (rank == 1) {
      both.arrive_and_wait();
      return;
    }
    const absl::Time begin = absl::Now();
    const absl::Status status = own.Step(2, rows, ShareForm::kCurrent, &out);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(own.executor->late_peers(), testing::ElementsAre(1));
    std::printf("noticed after %s\n", absl::FormatDuration(absl::Now() - begin).c_str());
    // What is left serves on alone.
    transport.reset();
    own.executor->Leave();
    CheckOk(own.executor->Enter(ViewOf(0, {"a"}), nullptr, own.store->in_force(), Soon(), own.stream));
    CheckOk(own.Step(1, rows, ShareForm::kFixed, &out));
    EXPECT_FALSE(own.executor->failures().empty());
    both.arrive_and_wait();
  });
}

// NCCL's own kernels, which run where GPUs do not reach each other, know no deadline: the host's wait for the step
// does.
TEST_F(DeviceMoeExecutorTest, WithoutDirectReach_APeerThatIsGoneEndsTheStep) {
  // NCCL_P2P_DISABLE leaves windows alone.
  const char* const windows = std::getenv("NCCL_WIN_ENABLE");
  if (windows == nullptr || std::string(windows) != "0") GTEST_SKIP() << "needs NCCL_WIN_ENABLE=0";
  OnBoth([](int rank, std::unique_ptr<Transport> transport, std::barrier<>& both) {
    Rank own(rank == 0 ? "a" : "b", absl::Seconds(1));
    CheckOk(own.store->Load(Spread(1, 0)));
    CheckOk(own.executor->Enter(ViewOf(rank, {"a", "b"}), transport.get(), own.store->in_force(), Soon(), own.stream));
    std::vector<std::vector<uint16_t>> out;
    const std::vector<uint16_t> rows = RandomBf16(size_t{kHidden} * 20, rank);
    CheckOk(own.Step(1, rows, ShareForm::kFixed, &out));
    if (rank == 1) {
      both.arrive_and_wait();
      return;
    }
    const absl::Status status =
        own.Step(2, rows, ShareForm::kFixed, &out, /*prefill=*/false, absl::Now() + absl::Seconds(2));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    both.arrive_and_wait();
  });
}

TEST_F(DeviceMoeExecutorTest, InterruptEndsTheWait) {
  OnBoth([](int rank, std::unique_ptr<Transport> transport, std::barrier<>& both) {
    Rank own(rank == 0 ? "a" : "b", absl::Seconds(30));
    CheckOk(own.store->Load(Spread(1, 0)));
    CheckOk(own.executor->Enter(ViewOf(rank, {"a", "b"}), transport.get(), own.store->in_force(), Soon(), own.stream));
    if (rank == 1) {
      both.arrive_and_wait();
      return;
    }
    std::thread interrupter([&] { own.executor->Interrupt(); });
    std::vector<std::vector<uint16_t>> out;
    const absl::Status status = own.Step(1, RandomBf16(size_t{kHidden} * 20, 1), ShareForm::kFixed, &out);
    interrupter.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    both.arrive_and_wait();
  });
}

}  // namespace
}  // namespace ballast
