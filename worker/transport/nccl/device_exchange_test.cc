// Two ranks in two processes, each with a GPU: this one is rank 0, and runs itself again as rank 1.
#include "worker/transport/nccl/device_exchange.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/test_support.h"
#include "kernels/cuda/tokens.h"
#include "worker/transport/nccl/exchange_reference.h"
#include "worker/transport/nccl/peer_communicator.h"
#include "worker/transport/nccl/peer_process.h"
#include "worker/transport/nccl/test_experts.h"

namespace ballast {
namespace {

using internal::ToBf16;

constexpr int kRanks = 2;
constexpr int kGroups = 6;
constexpr absl::Duration kPatience = absl::Seconds(60);

using Maker = decltype(&MakeLsaExchange);
Maker MakerOf(const std::string& kind) { return kind == "lsa" ? MakeLsaExchange : MakeSendRecvExchange; }

void CheckOk(const absl::Status& status) { BALLAST_CHECK(status.ok()) << status.ToString(); }

// The same for both processes: each makes the inputs of both.
ExchangeInput RandomInput(const ExchangeShape& shape, int tokens, int seed) {
  std::minstd_rand random(seed);
  ExchangeInput input;
  input.tokens = tokens;
  for (int i = 0; i < tokens * shape.hidden_size; ++i) {
    input.rows.push_back(ToBf16(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 1000));
  }
  for (int t = 0; t < tokens; ++t) {
    // Some tokens go to one rank alone, some nowhere.
    const int kind = static_cast<int>(random() % 8);
    for (int k = 0; k < shape.top_k; ++k) {
      auto replica = static_cast<int32_t>(random() % (kRanks * kGroups));
      if (kind < kRanks) replica = kind * kGroups + replica % kGroups;
      if (kind == kRanks || (kind == kRanks + 1 && k % 2 == 0)) replica = -1;
      input.replicas.push_back(replica);
      input.weights.push_back(static_cast<float>(random() % 1000) / 1000);
    }
  }
  return input;
}

std::vector<uint16_t> Expert(int replica, const std::vector<uint16_t>& row) {
  std::vector<uint16_t> out;
  for (const uint16_t v : row) out.push_back(ToBf16(static_cast<float>(1 + replica % kGroups) * FromBf16(v)));
  return out;
}

// One rank's buffers for layers of a shape.
class Layer {
 public:
  Layer(const ExchangeShape& shape, DeviceExchange& exchange, cudaStream_t stream)
      : shape_(shape),
        exchange_(exchange),
        stream_(stream),
        pairs_(kRanks * shape.capacity * shape.top_k),
        x_(static_cast<size_t>(shape.capacity) * shape.hidden_size),
        out_(x_.size()),
        outputs_(static_cast<size_t>(pairs_) * shape.hidden_size),
        num_tokens_(1),
        replicas_(static_cast<size_t>(shape.capacity) * shape.top_k),
        notes_(shape.note_words),
        begin_(shape.groups_per_rank + 1),
        order_(pairs_),
        row_of_(pairs_),
        group_of_(GroupOf(shape)),
        weights_(replicas_.size()),
        workspace_(GroupPairsWorkspaceBytes(pairs_, shape.groups_per_rank)) {}

  void Set(const ExchangeInput& input, const std::vector<int32_t>& notes) {
    x_.Fill(0xff);
    out_.Fill(0xff);
    Upload(input.rows, x_.data());
    Upload(input.replicas, replicas_.data());
    Upload(input.weights, weights_.data());
    Upload(std::vector<int32_t>{input.tokens}, num_tokens_.data());
    Upload(notes, notes_.data());
    CheckCuda(cudaDeviceSynchronize());
  }

  absl::Status Enqueue() {
    absl::Status status =
        exchange_.Dispatch({x_.data(), num_tokens_.data(), replicas_.data(), weights_.data(), notes_.data()}, stream_);
    if (!status.ok()) return status;
    CheckOk(GroupPairs({exchange_.received_groups(), pairs_, group_of_.data(), shape_.groups_per_rank + 1,
                        shape_.groups_per_rank, begin_.data(), order_.data(), row_of_.data()},
                       workspace_.data(), stream_));
    CheckCuda(RunTestExperts(exchange_.received_rows(), begin_.data(), order_.data(), exchange_.received_groups(),
                             shape_.groups_per_rank, shape_.top_k, shape_.hidden_size, outputs_.data(), stream_));
    return exchange_.Combine({outputs_.data(), row_of_.data(), out_.data()}, stream_);
  }

  // Compares what the last layer left with the reference.
  void Check(const std::vector<ExchangeInput>& inputs, const std::vector<std::vector<int32_t>>& notes, int rank) {
    const ExchangeReceived wanted = ReferenceDispatch(shape_, inputs, rank);
    const size_t slots = static_cast<size_t>(kRanks) * shape_.capacity;
    const std::vector<int32_t> groups = Download(exchange_.received_groups(), slots * shape_.top_k);
    BALLAST_CHECK(groups == wanted.groups) << "received groups";
    const std::vector<float> weights = Download(exchange_.received_weights(), slots * shape_.top_k);
    for (size_t i = 0; i < groups.size(); ++i) {
      BALLAST_CHECK(groups[i] == kGroups || weights[i] == wanted.weights[i]) << "weight of pair " << i;
    }
    const std::vector<uint16_t> rows =
        Download(static_cast<const uint16_t*>(exchange_.received_rows()), slots * shape_.hidden_size);
    for (size_t slot = 0; slot < slots; ++slot) {
      BALLAST_CHECK(std::equal(wanted.rows[slot].begin(), wanted.rows[slot].end(),
                               rows.begin() + static_cast<ptrdiff_t>(slot) * shape_.hidden_size))
          << "received row " << slot;
    }
    std::vector<int32_t> all_notes;
    for (const std::vector<int32_t>& of_rank : notes) all_notes.insert(all_notes.end(), of_rank.begin(), of_rank.end());
    BALLAST_CHECK(Download(exchange_.received_notes(), all_notes.size()) == all_notes) << "notes";
    const std::vector<uint16_t> out = ReferenceCombine(shape_, inputs[rank], Expert);
    const std::vector<uint16_t> got = out_.Read();
    for (size_t i = 0; i < out.size(); ++i) {
      BALLAST_CHECK(out[i] == got[i]) << "token " << i / shape_.hidden_size << " column " << i % shape_.hidden_size
                                      << " is " << FromBf16(got[i]) << ", not " << FromBf16(out[i]);
    }
    // Rows that the step does not have are left alone.
    for (size_t i = out.size(); i < got.size(); ++i) BALLAST_CHECK(got[i] == 0xffff) << "column " << i;
  }

 private:
  static std::vector<int32_t> GroupOf(const ExchangeShape& shape) {
    std::vector<int32_t> group_of;
    for (int g = 0; g < shape.groups_per_rank; ++g) group_of.push_back(g);
    group_of.push_back(-1);
    return group_of;
  }
  template <typename T>
  static void Upload(const std::vector<T>& from, T* to) {
    CheckCuda(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  template <typename T>
  static std::vector<T> Download(const T* from, size_t size) {
    std::vector<T> to(size);
    CheckCuda(cudaMemcpy(to.data(), from, size * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }

  const ExchangeShape shape_;
  DeviceExchange& exchange_;
  cudaStream_t stream_;
  int pairs_;
  DeviceArray<uint16_t> x_, out_, outputs_;
  DeviceArray<int32_t> num_tokens_, replicas_, notes_, begin_, order_, row_of_, group_of_;
  DeviceArray<float> weights_;
  DeviceArray<uint8_t> workspace_;
};

struct Stream {
  Stream() { CheckCuda(cudaStreamCreate(&stream)); }
  ~Stream() { cudaStreamDestroy(stream); }
  cudaStream_t stream;
};

// Layers of several shapes and token counts, eager and as one captured graph of three layers.
void RunLayers(int rank, const PeerLink& link, const std::string& kind, int blocks = 0) {
  const auto communicator = ConnectPeers(rank, link);
  const Stream stream;
  int seed = 1;
  const struct {
    int capacity, top_k, hidden, note_words;
  } shapes[] = {{1, 1, 8, 0},      {5, 3, 24, 7},     {17, 8, 2048, 256},
                {130, 8, 7168, 1}, {1000, 2, 264, 3}, {4100, 6, 64, 0}};
  for (const auto& s : shapes) {
    const ExchangeShape shape = {.ranks = kRanks,
                                 .capacity = s.capacity,
                                 .top_k = s.top_k,
                                 .hidden_size = s.hidden,
                                 .groups_per_rank = kGroups,
                                 .note_words = s.note_words};
    auto exchange = MakerOf(kind)(
        *communicator, shape, {.wait_limit = absl::Seconds(20), .deadline = absl::Now() + kPatience, .blocks = blocks});
    CheckOk(exchange.status());
    Layer layer(shape, **exchange, stream.stream);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    for (int step = 0; step < 6; ++step) {
      std::vector<ExchangeInput> inputs;
      std::vector<std::vector<int32_t>> notes(kRanks);
      for (int r = 0; r < kRanks; ++r, ++seed) {
        // All tokens, none, or some.
        const int tokens = step == 0       ? s.capacity
                           : step == 1 + r ? 0
                                           : static_cast<int>(seed * 7919L % (s.capacity + 1));
        inputs.push_back(RandomInput(shape, tokens, seed));
        for (int i = 0; i < s.note_words; ++i) notes[r].push_back(seed * 1000 + i);
      }
      layer.Set(inputs[rank], notes[rank]);
      if (step == 3) {
        CheckCuda(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeRelaxed));
        for (int i = 0; i < 3; ++i) CheckOk(layer.Enqueue());
        CheckCuda(cudaStreamEndCapture(stream.stream, &graph));
        CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
      }
      if (step >= 3) {
        CheckCuda(cudaGraphLaunch(executable, stream.stream));
      } else {
        CheckOk(layer.Enqueue());
      }
      CheckOk((*exchange)->Finish(stream.stream, absl::Now() + kPatience));
      layer.Check(inputs, notes, rank);
      // What is checked must not be written by the next step meanwhile.
      link.Meet();
    }
    CheckCuda(cudaGraphExecDestroy(executable));
    CheckCuda(cudaGraphDestroy(graph));
  }
}

// Runs layers until one fails; says how.
absl::Status RunUntilError(DeviceExchange& exchange, Layer& layer, cudaStream_t stream, absl::Duration deadline) {
  for (;;) {
    if (absl::Status status = layer.Enqueue(); !status.ok()) return status;
    if (absl::Status status = exchange.Finish(stream, absl::Now() + deadline); !status.ok()) return status;
  }
}

// What a GPU of 50 multiprocessors runs at once.
constexpr int kNarrowBlocks = 100;
constexpr ExchangeShape kSmall = {
    .ranks = kRanks, .capacity = 40, .top_k = 4, .hidden_size = 256, .groups_per_rank = kGroups};

// The child exchanges for ever, until it is killed.
void RunForEver(int rank, const PeerLink& link, const std::string& kind) {
  const auto communicator = ConnectPeers(rank, link);
  auto exchange = MakerOf(kind)(*communicator, kSmall, {.deadline = absl::Now() + kPatience});
  CheckOk(exchange.status());
  const Stream stream;
  Layer layer(kSmall, **exchange, stream.stream);
  layer.Set(RandomInput(kSmall, 40, 1), {});
  link.Meet();
  static_cast<void>(RunUntilError(**exchange, layer, stream.stream, kPatience));
}

void RunChild(const PeerLink& link, const std::string& what) {
  const std::string kind = what.substr(what.find(' ') + 1);
  if (what.rfind("layers ", 0) == 0) RunLayers(1, link, kind);
  if (what.rfind("narrow-layers ", 0) == 0) RunLayers(1, link, kind, kNarrowBlocks);
  if (what.rfind("for-ever ", 0) == 0) RunForEver(1, link, kind);
}

class DeviceExchangeTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < kRanks) GTEST_SKIP() << gpus << " GPUs, two are needed";
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds, DeviceExchangeTest, testing::Values("lsa", "sendrecv"),
                         [](const auto& info) { return info.param; });

TEST_P(DeviceExchangeTest, HasTheReferencesBits) {
  ChildProcess child("layers " + GetParam());
  RunLayers(0, child.link(), GetParam());
  EXPECT_EQ(child.Wait(), 0);
}

TEST_P(DeviceExchangeTest, HasTheReferencesBits_WithAsManyBlocksAsASmallerGpuRuns) {
  ChildProcess child("narrow-layers " + GetParam());
  RunLayers(0, child.link(), GetParam(), kNarrowBlocks);
  EXPECT_EQ(child.Wait(), 0);
}

TEST_P(DeviceExchangeTest, AbortEndsTheWait) {
  ChildProcess child("for-ever " + GetParam());
  const auto communicator = ConnectPeers(0, child.link());
  auto exchange = MakerOf(GetParam())(*communicator, kSmall,
                                      {.wait_limit = absl::Seconds(60), .deadline = absl::Now() + kPatience});
  ASSERT_TRUE(exchange.ok()) << exchange.status();
  const Stream stream;
  Layer layer(kSmall, **exchange, stream.stream);
  layer.Set(RandomInput(kSmall, 40, 1), {});
  child.Kill();
  EXPECT_EQ((*exchange)->Combine({}, stream.stream).code(), absl::StatusCode::kFailedPrecondition);
  CheckOk(layer.Enqueue());
  std::thread aborter([&] { (*exchange)->Abort(); });
  const absl::Status status = (*exchange)->Finish(stream.stream, absl::Now() + absl::Seconds(5));
  aborter.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
}

TEST(NcclCommunicatorTest, ARankThatDoesNotComeIsAnError) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
  CheckCuda(cudaSetDevice(0));
  const absl::StatusOr<NcclId> id = NewNcclId();
  ASSERT_TRUE(id.ok()) << id.status();
  const auto communicator = NcclCommunicator::Create(*id, 0, 2, absl::Now() + absl::Seconds(1));
  EXPECT_EQ(communicator.status().code(), absl::StatusCode::kDeadlineExceeded);
}

// An interruption, here one from before, ends the set-up: the rank that does not come is not waited for.
TEST(NcclCommunicatorTest, AnInterruptionEndsTheSetUp) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
  CheckCuda(cudaSetDevice(0));
  const absl::StatusOr<NcclId> id = NewNcclId();
  ASSERT_TRUE(id.ok()) << id.status();
  const std::atomic<bool> interrupted = true;
  const auto communicator = NcclCommunicator::Create(*id, 0, 2, absl::Now() + kPatience, &interrupted);
  EXPECT_EQ(communicator.status().code(), absl::StatusCode::kCancelled) << communicator.status();
}

// The last one: NCCL's kernels may read what a process had that is gone, after which this one's device is of no use.
TEST_P(DeviceExchangeTest, AKilledPeerIsAnError) {
  ChildProcess child("for-ever " + GetParam());
  const auto communicator = ConnectPeers(0, child.link());
  auto exchange =
      MakerOf(GetParam())(*communicator, kSmall, {.wait_limit = absl::Seconds(1), .deadline = absl::Now() + kPatience});
  ASSERT_TRUE(exchange.ok()) << exchange.status();
  const Stream stream;
  Layer layer(kSmall, **exchange, stream.stream);
  layer.Set(RandomInput(kSmall, 40, 1), {});
  child.link().Meet();
  for (int i = 0; i < 100; ++i) {
    CheckOk(layer.Enqueue());
    CheckOk((*exchange)->Finish(stream.stream, absl::Now() + kPatience));
  }
  child.Kill();
  const absl::Time killed = absl::Now();
  const absl::Status status = RunUntilError(**exchange, layer, stream.stream, absl::Seconds(3));
  std::printf("%s: %s after %s\n", GetParam().c_str(), status.ToString().c_str(),
              absl::FormatDuration(absl::Now() - killed).c_str());
  if (GetParam() == "lsa") {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("late by more than 1s: rank 1 with its"));
  } else {
    EXPECT_THAT(status.code(), testing::AnyOf(absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kInternal))
        << status;
  }
  EXPECT_EQ(layer.Enqueue(), status);
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  std::string what;
  if (const auto link = ballast::PeerLink::OfChild(argc, argv, &what)) {
    ballast::RunChild(*link, what);
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
