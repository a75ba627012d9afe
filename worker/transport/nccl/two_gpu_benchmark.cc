// What two GPUs of a node exchange in an MoE layer, two processes with a GPU each; figures of rank 0.
//
//   two_gpu_benchmark
//
// Copy rates come first, of the copy engines, one way and both ways at once. Then dispatch and combine of DeepSeek-V3's
// shape (hidden 7168, top-8 of 256 experts, half of them on each GPU, chosen at random) by LsaExchange and by
// SendRecvExchange: a layer of a captured graph of several; the grouping and the experts between them are left out, and
// timed beside. Rates count the bytes of rows and sums that one GPU sends to the other.
//
// Then moves of one DeepSeek-V3 expert (88 MB): from the other GPU and from pinned host memory, as fast as they go; and
// a layer's time (grouping, 8 experts of 7168 x 2048, combination, 64 tokens; weights in turn of copies of more than 2
// GB) in turn without moves and with moves at 10 GB/s, by both ranks at once.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/cuda/benchmark_support.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/test_support.h"
#include "kernels/cuda/tokens.h"
#include "worker/experts/device_copier.h"
#include "worker/experts/device_slots.h"
#include "worker/experts/expert_mover.h"
#include "worker/transport/nccl/device_exchange.h"
#include "worker/transport/nccl/peer_communicator.h"
#include "worker/transport/nccl/peer_process.h"

namespace ballast {
namespace {

constexpr int kRanks = 2;
constexpr int kReplays = 21;
constexpr int kHidden = 7168, kTopK = 8, kExperts = 256;

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

struct Rank {
  int rank;
  const PeerLink& link;
  NcclCommunicator& communicator;
  cudaStream_t stream;

  void Print(const std::string& line) const {
    if (rank == 0) std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }
};

// Seconds of what `enqueue` enqueues, the median; both processes begin together.
double Time(const Rank& rank, const std::function<void()>& enqueue) {
  return ballast::Time(rank.stream, enqueue, kReplays, [&] { rank.link.Meet(); });
}

template <typename... Args>
std::string Format(const char* format, Args... args) {
  char line[512];
  std::snprintf(line, sizeof(line), format, args...);
  return line;
}

// Bytes a second of the copy engines to the other GPU.
struct CopyRates {
  double one_way, both_ways;
};
CopyRates MeasureCopies(const Rank& rank) {
  const size_t bytes = size_t{256} << 20;
  const auto memory = rank.communicator.AllocateShared(2 * bytes, Soon());
  CheckOk(memory.status());
  const auto copy = [&](int times, size_t size) {
    for (int i = 0; i < times; ++i) {
      CheckCuda(cudaMemcpyAsync(memory->peers[1 - rank.rank], memory->own + bytes, size, cudaMemcpyDeviceToDevice,
                                rank.stream));
    }
  };
  const double both = 4 * bytes / Time(rank, [&] { copy(4, bytes); });
  const double one = 4 * bytes / Time(rank, [&] { copy(rank.rank == 0 ? 4 : 0, bytes); });
  rank.Print(Format("copy rate: %.1f GB/s one way, %.1f GB/s each way at once", one / 1e9, both / 1e9));
  return {one, both};
}

class Bench {
 public:
  Bench(const Rank& rank, int tokens, DeviceExchange& exchange)
      : rank_(rank),
        shape_(exchange.shape()),
        exchange_(exchange),
        pairs_(kRanks * shape_.capacity * kTopK),
        x_(static_cast<size_t>(tokens) * kHidden),
        out_(x_.size()),
        outputs_(static_cast<size_t>(pairs_) * kHidden),
        num_tokens_(std::vector<int32_t>{tokens}),
        begin_(shape_.groups_per_rank + 1),
        order_(pairs_),
        row_of_(pairs_),
        workspace_(GroupPairsWorkspaceBytes(pairs_, shape_.groups_per_rank)) {
    std::minstd_rand random(1 + rank.rank);
    std::vector<uint16_t> x(x_.size());
    for (uint16_t& v : x) v = static_cast<uint16_t>(0x3f00 + random() % 256 + (random() % 2) * 0x8000);
    CheckCuda(cudaMemcpy(x_.data(), x.data(), x.size() * 2, cudaMemcpyHostToDevice));
    outputs_.Fill(0x3f);
    std::vector<int32_t> replicas, group_of;
    for (int t = 0; t < tokens; ++t) {
      std::set<int32_t> chosen;
      while (chosen.size() < kTopK) chosen.insert(static_cast<int32_t>(random() % kExperts));
      bool goes = false;
      for (const int32_t e : chosen) {
        replicas.push_back(e);
        goes = goes || e / shape_.groups_per_rank != rank.rank;
      }
      std::shuffle(replicas.end() - kTopK, replicas.end(), random);
      rows_sent_ += goes;
    }
    for (int g = 0; g <= shape_.groups_per_rank; ++g) group_of.push_back(g < shape_.groups_per_rank ? g : -1);
    replicas_ = std::make_unique<DeviceArray<int32_t>>(replicas);
    group_of_ = std::make_unique<DeviceArray<int32_t>>(group_of);
    weights_ = std::make_unique<DeviceArray<float>>(std::vector<float>(replicas.size(), 0.125f));
  }

  double bytes_sent() const { return 2.0 * rows_sent_ * kHidden * 2; }

  void Dispatch() {
    CheckOk(exchange_.Dispatch({x_.data(), num_tokens_.data(), replicas_->data(), weights_->data()}, rank_.stream));
  }
  void Group() {
    CheckOk(GroupPairs({exchange_.received_groups(), pairs_, group_of_->data(), shape_.groups_per_rank + 1,
                        shape_.groups_per_rank, begin_.data(), order_.data(), row_of_.data()},
                       workspace_.data(), rank_.stream));
  }
  void Combine() { CheckOk(exchange_.Combine({outputs_.data(), row_of_.data(), out_.data()}, rank_.stream)); }

  // Seconds of one of `layers` of a graph.
  double TimeLayers(int layers, const std::function<void()>& enqueue) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CheckCuda(cudaStreamBeginCapture(rank_.stream, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < layers; ++i) enqueue();
    CheckCuda(cudaStreamEndCapture(rank_.stream, &graph));
    CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
    const double seconds = Time(rank_, [&] { CheckCuda(cudaGraphLaunch(executable, rank_.stream)); }) / layers;
    CheckOk(exchange_.Finish(rank_.stream, Soon()));
    CheckCuda(cudaGraphExecDestroy(executable));
    CheckCuda(cudaGraphDestroy(graph));
    return seconds;
  }

  // Seconds of the three parts of one layer, by events within a graph.
  std::vector<double> TimeParts() {
    cudaEvent_t events[4];
    for (cudaEvent_t& event : events) CheckCuda(cudaEventCreate(&event));
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    const auto mark = [&](int i) {
      CheckCuda(cudaEventRecordWithFlags(events[i], rank_.stream, cudaEventRecordExternal));
    };
    CheckCuda(cudaStreamBeginCapture(rank_.stream, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < 4; ++i) {
      if (i == 3) mark(0);
      Dispatch();
      if (i == 3) mark(1);
      Group();
      if (i == 3) mark(2);
      Combine();
      if (i == 3) mark(3);
    }
    CheckCuda(cudaStreamEndCapture(rank_.stream, &graph));
    CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<std::vector<double>> seconds(3);
    for (int i = 0; i < kReplays; ++i) {
      rank_.link.Meet();
      CheckCuda(cudaGraphLaunch(executable, rank_.stream));
      CheckOk(exchange_.Finish(rank_.stream, Soon()));
      for (int part = 0; part < 3; ++part) {
        float ms;
        CheckCuda(cudaEventElapsedTime(&ms, events[part], events[part + 1]));
        seconds[part].push_back(ms / 1e3);
      }
    }
    CheckCuda(cudaGraphExecDestroy(executable));
    CheckCuda(cudaGraphDestroy(graph));
    for (cudaEvent_t event : events) CheckCuda(cudaEventDestroy(event));
    return {Median(seconds[0]), Median(seconds[1]), Median(seconds[2])};
  }

 private:
  const Rank& rank_;
  const ExchangeShape shape_;
  DeviceExchange& exchange_;
  const int pairs_;
  int rows_sent_ = 0;
  DeviceArray<uint16_t> x_, out_, outputs_;
  DeviceArray<int32_t> num_tokens_, begin_, order_, row_of_;
  DeviceArray<uint8_t> workspace_;
  std::unique_ptr<DeviceArray<int32_t>> replicas_, group_of_;
  std::unique_ptr<DeviceArray<float>> weights_;
};

void Exchanges(const Rank& rank, double copy_rate) {
  rank.Print(Format("%6s %-9s %8s %8s %10s %9s %9s %9s %8s", "tokens", "by", "us", "GB/s", "copy rate", "with group",
                    "dispatch", "group", "combine"));
  for (const int tokens : {1, 16, 64, 128, 512, 4096}) {
    for (const bool lsa : {true, false}) {
      const ExchangeShape shape = {.ranks = kRanks,
                                   .capacity = tokens,
                                   .top_k = kTopK,
                                   .hidden_size = kHidden,
                                   .groups_per_rank = kExperts / kRanks};
      const auto exchange =
          (lsa ? MakeLsaExchange : MakeSendRecvExchange)(rank.communicator, shape, {.deadline = Soon()});
      CheckOk(exchange.status());
      Bench bench(rank, tokens, **exchange);
      const int layers = tokens > 1000 ? 4 : 32;
      const std::vector<double> parts = bench.TimeParts();
      const double seconds = bench.TimeLayers(layers, [&] {
        bench.Dispatch();
        bench.Combine();
      });
      const double grouped = bench.TimeLayers(layers, [&] {
        bench.Dispatch();
        bench.Group();
        bench.Combine();
      });
      const double sent = bench.bytes_sent() / seconds;
      rank.Print(Format("%6d %-9s %8.1f %8.1f %9.1f%% %9.1f %9.1f %9.1f %8.1f", tokens, lsa ? "lsa" : "send-recv",
                        seconds * 1e6, sent / 1e9, 100 * sent / copy_rate, grouped * 1e6, parts[0] * 1e6,
                        parts[1] * 1e6, parts[2] * 1e6));
    }
  }
}

constexpr int kIntermediate = 2048;
constexpr size_t kExpertBytes = size_t{6} * kHidden * kIntermediate;
constexpr int kLocalExperts = 8, kCopies = 3, kBatch = 64;
constexpr int64_t kMoveRate = 10'000'000'000;

// Seconds of one move as fast as it goes, by the host's clock: what a caller waits for it.
double TimeMove(const Rank& rank, ExpertMover& mover, std::span<const std::byte> from, std::byte* to) {
  std::vector<double> seconds;
  for (int i = 0; i < kReplays; ++i) {
    rank.link.Meet();
    const absl::Time start = absl::Now();
    if (rank.rank == 0) CheckOk(mover.Move(from, to, 0, Soon()));
    seconds.push_back(absl::ToDoubleSeconds(absl::Now() - start));
  }
  return Median(seconds);
}

// One MoE layer of a GPU's own experts, over and over.
class ServedLayers {
 public:
  ServedLayers(const Rank& rank, const std::byte* arena, int slots)
      : rank_(rank),
        x_(static_cast<size_t>(kBatch) * kHidden),
        rows_(x_.size()),
        out_(x_.size()),
        begin_(kLocalExperts + 1),
        order_(kBatch),
        row_of_(kBatch),
        weights_(std::vector<float>(kBatch, 1.0f)) {
    std::minstd_rand random(5 + rank.rank);
    std::vector<uint16_t> x(x_.size());
    for (uint16_t& v : x) v = static_cast<uint16_t>(0x3f00 + random() % 256 + (random() % 2) * 0x8000);
    CheckCuda(cudaMemcpy(x_.data(), x.data(), x.size() * 2, cudaMemcpyHostToDevice));
    std::vector<int32_t> ids, group_of, all_slots;
    for (int i = 0; i < kBatch; ++i) ids.push_back(static_cast<int32_t>(random() % kLocalExperts));
    for (int i = 0; i < kLocalExperts; ++i) group_of.push_back(i);
    for (int i = 0; i < kLocalExperts * kCopies; ++i) all_slots.push_back(i);
    ids_ = std::make_unique<DeviceArray<int32_t>>(ids);
    group_of_ = std::make_unique<DeviceArray<int32_t>>(group_of);
    slots_ = std::make_unique<DeviceArray<int32_t>>(all_slots);
    auto experts = CudaExperts::Create({arena, DeviceSlots::StrideBytes(kExpertBytes), slots, kHidden, kIntermediate});
    CheckOk(experts.status());
    experts_ = std::make_unique<CudaExperts>(*experts);
    workspace_ = std::make_unique<DeviceArray<uint8_t>>(experts_->WorkspaceBytes(kBatch, kLocalExperts));
    workspace_->Fill(0);
    group_workspace_ = std::make_unique<DeviceArray<uint8_t>>(GroupPairsWorkspaceBytes(kBatch, kLocalExperts));
    for (int copy = 0; copy < kCopies; ++copy) {
      cudaGraph_t graph;
      CheckCuda(cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal));
      Enqueue(copy);
      CheckCuda(cudaStreamEndCapture(rank.stream, &graph));
      CheckCuda(cudaGraphInstantiate(&graphs_[copy], graph, 0));
      CheckCuda(cudaGraphDestroy(graph));
    }
  }
  ~ServedLayers() {
    for (const cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
  }

  // Adds the seconds of each of `layers` layers, one after another.
  void Run(int layers, std::vector<double>& seconds) {
    std::vector<cudaEvent_t> events(layers + 1);
    for (cudaEvent_t& event : events) CheckCuda(cudaEventCreate(&event));
    CheckCuda(cudaEventRecord(events[0], rank_.stream));
    for (int i = 0; i < layers; ++i) {
      CheckCuda(cudaGraphLaunch(graphs_[i % kCopies], rank_.stream));
      CheckCuda(cudaEventRecord(events[i + 1], rank_.stream));
    }
    CheckCuda(cudaStreamSynchronize(rank_.stream));
    // The first ones wait for the host.
    for (int i = 20; i < layers; ++i) {
      float ms;
      CheckCuda(cudaEventElapsedTime(&ms, events[i], events[i + 1]));
      seconds.push_back(ms / 1e3);
    }
    for (const cudaEvent_t event : events) CheckCuda(cudaEventDestroy(event));
  }

 private:
  void Enqueue(int copy) {
    CheckOk(GroupPairs({ids_->data(), kBatch, group_of_->data(), kLocalExperts, kLocalExperts, begin_.data(),
                        order_.data(), row_of_.data()},
                       group_workspace_->data(), rank_.stream));
    CheckOk(experts_->Run({x_.data(), order_.data(), 1, begin_.data(), slots_->data() + copy * kLocalExperts,
                           kLocalExperts, kBatch, rows_.data()},
                          workspace_->data(), kBatch, kLocalExperts, rank_.stream));
    CheckOk(CombineRows({rows_.data(), row_of_.data(), ids_->data(), weights_.data(), kBatch, 1, kHidden, out_.data()},
                        rank_.stream));
  }

  const Rank& rank_;
  DeviceArray<uint16_t> x_, rows_, out_;
  DeviceArray<int32_t> begin_, order_, row_of_;
  DeviceArray<float> weights_;
  std::unique_ptr<DeviceArray<int32_t>> ids_, group_of_, slots_;
  std::unique_ptr<CudaExperts> experts_;
  std::unique_ptr<DeviceArray<uint8_t>> workspace_, group_workspace_;
  cudaGraphExec_t graphs_[kCopies] = {};
};

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

// A layer's time without and with moves of `from` to `to` under way, in turn, so that both see the same drift.
void LayersBesideMoves(const Rank& rank, ServedLayers& layers, ExpertMover& mover, const char* name,
                       std::span<const std::byte> from, std::byte* to) {
  std::vector<double> without, with;
  std::atomic<int64_t> moves{0};
  double moving_seconds = 0;
  for (int round = 0; round < 6; ++round) {
    rank.link.Meet();
    layers.Run(600, without);
    rank.link.Meet();
    std::atomic<bool> stop{false};
    std::thread thread([&] {
      CheckCuda(cudaSetDevice(rank.rank));
      while (!stop) {
        const absl::Status status = mover.Move(from, to, kMoveRate, Soon());
        if (absl::IsCancelled(status)) return;
        CheckOk(status);
        ++moves;
      }
    });
    const absl::Time start = absl::Now();
    // The moves are under way.
    absl::SleepFor(absl::Milliseconds(5));
    layers.Run(600, with);
    stop = true;
    thread.join();
    moving_seconds += absl::ToDoubleSeconds(absl::Now() - start);
  }
  rank.Print(
      Format("layer of %d tokens, moves from %s at %.1f GB/s: median %.1f us without, %.1f us with; p99 %.1f us "
             "without, %.1f us with (%+.1f%%)",
             kBatch, name, static_cast<double>(moves * kExpertBytes) / moving_seconds / 1e9, Median(without) * 1e6,
             Median(with) * 1e6, Percentile(without, 0.99) * 1e6, Percentile(with, 0.99) * 1e6,
             100 * (Percentile(with, 0.99) / Percentile(without, 0.99) - 1)));
}

void Moves(const Rank& rank, double nvlink_rate) {
  constexpr int kSlots = kLocalExperts * kCopies + 2;
  const size_t stride = DeviceSlots::StrideBytes(kExpertBytes);
  const auto memory = rank.communicator.AllocateShared(stride * kSlots, Soon());
  CheckOk(memory.status());
  auto slots = DeviceSlots::Create({.slots = kSlots, .slot_bytes = kExpertBytes, .memory = memory->own});
  CheckOk(slots.status());
  // Small numbers of both signs.
  std::vector<uint16_t> weights(kExpertBytes / 2);
  std::minstd_rand random(7);
  for (uint16_t& w : weights) w = static_cast<uint16_t>(0x3c00 + random() % 256 + (random() % 2) * 0x8000);
  auto pinned = PinnedMemory::Allocate(kExpertBytes);
  CheckOk(pinned.status());
  std::copy_n(reinterpret_cast<const std::byte*>(weights.data()), kExpertBytes, pinned->bytes().data());
  for (int s = 0; s < kSlots; ++s) {
    CheckCuda(cudaMemcpy((*slots)->Slot(s).data(), pinned->bytes().data(), kExpertBytes, cudaMemcpyHostToDevice));
  }
  const auto copier = DeviceCopier::Create();
  CheckOk(copier.status());
  ExpertMover mover(**copier, Clock::Real());
  std::byte* const to = (*slots)->Slot(kSlots - 1).data();
  const std::span<const std::byte> peer = {memory->peers[1 - rank.rank] + stride * (kSlots - 2), kExpertBytes};

  const size_t big = size_t{1} << 30;
  auto host = PinnedMemory::Allocate(big);
  CheckOk(host.status());
  DeviceArray<uint8_t> device(big);
  const double bus =
      big / Time(rank, [&] {
        if (rank.rank == 0) {
          CheckCuda(cudaMemcpyAsync(device.data(), host->bytes().data(), big, cudaMemcpyHostToDevice, rank.stream));
        }
      });
  const double from_peer = kExpertBytes / TimeMove(rank, mover, peer, to);
  rank.Print(Format("move of %.0f MB from the other GPU: %.1f GB/s, %.1f%% of the copy rate", kExpertBytes / 1e6,
                    from_peer / 1e9, 100 * from_peer / nvlink_rate));
  const double from_host = kExpertBytes / TimeMove(rank, mover, pinned->bytes(), to);
  rank.Print(Format("move of %.0f MB from pinned host memory: %.1f GB/s, %.1f%% of the bus's %.1f GB/s",
                    kExpertBytes / 1e6, from_host / 1e9, 100 * from_host / bus, bus / 1e9));
  ServedLayers layers(rank, memory->own, kSlots);
  std::vector<double> warm_up;
  layers.Run(100, warm_up);
  LayersBesideMoves(rank, layers, mover, "the other GPU", peer, to);
  LayersBesideMoves(rank, layers, mover, "the host", pinned->bytes(), to);
  rank.link.Meet();
}

void Run(int rank, const PeerLink& link) {
  const auto communicator = ConnectPeers(rank, link);
  cudaStream_t stream;
  CheckCuda(cudaStreamCreate(&stream));
  const Rank self = {rank, link, *communicator, stream};
  const CopyRates rates = MeasureCopies(self);
  Exchanges(self, rates.both_ways);
  Moves(self, rates.one_way);
  CheckCuda(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  std::string what;
  if (const auto link = ballast::PeerLink::OfChild(argc, argv, &what)) {
    ballast::Run(1, *link);
    return 0;
  }
  ballast::ChildProcess child("benchmark");
  ballast::Run(0, child.link());
  return child.Wait();
}
