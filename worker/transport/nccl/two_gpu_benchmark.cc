// What two GPUs of a node exchange in an MoE layer, two processes with a GPU each; figures of rank 0.
//
//   two_gpu_benchmark
//
// Copy rates come first, of the copy engines, one way and both ways at once. Then dispatch and combine of DeepSeek-V3's
// shape (hidden 7168, top-8 of 256 experts, half of them on each GPU, chosen at random) by LsaExchange and by
// SendRecvExchange: a layer of a captured graph of several; the grouping and the experts between them are left out, and
// timed beside. Rates count the bytes of rows and sums that one GPU sends to the other.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/cuda/test_support.h"
#include "kernels/cuda/tokens.h"
#include "worker/transport/nccl/device_exchange.h"
#include "worker/transport/nccl/peer_process.h"

namespace ballast {
namespace {

constexpr int kRanks = 2;
constexpr int kReplays = 21;
constexpr int kHidden = 7168, kTopK = 8, kExperts = 256;

void CheckOk(const absl::Status& status) { BALLAST_CHECK(status.ok()) << status.ToString(); }
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

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds of what `enqueue` enqueues, the median; both processes begin together.
double Time(const Rank& rank, const std::function<void()>& enqueue) {
  cudaEvent_t begin, end;
  CheckCuda(cudaEventCreate(&begin));
  CheckCuda(cudaEventCreate(&end));
  std::vector<double> seconds;
  for (int i = 0; i < kReplays + 3; ++i) {
    rank.link.Meet();
    CheckCuda(cudaEventRecord(begin, rank.stream));
    enqueue();
    CheckCuda(cudaEventRecord(end, rank.stream));
    CheckCuda(cudaEventSynchronize(end));
    float ms;
    CheckCuda(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) seconds.push_back(ms / 1e3);
  }
  CheckCuda(cudaEventDestroy(begin));
  CheckCuda(cudaEventDestroy(end));
  return Median(seconds);
}

template <typename... Args>
std::string Format(const char* format, Args... args) {
  char line[512];
  std::snprintf(line, sizeof(line), format, args...);
  return line;
}

// Bytes a second of the copy engines to the other GPU, while it copies back.
double CopyRates(const Rank& rank) {
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
  return both;
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

void Run(int rank, const PeerLink& link) {
  CheckCuda(cudaSetDevice(rank));
  NcclId id;
  if (rank == 0) {
    const absl::StatusOr<NcclId> made = NewNcclId();
    CheckOk(made.status());
    id = *made;
    link.Write(id.data(), id.size());
  } else {
    link.Read(id.data(), id.size());
  }
  const auto communicator = NcclCommunicator::Create(id, rank, kRanks, Soon());
  CheckOk(communicator.status());
  cudaStream_t stream;
  CheckCuda(cudaStreamCreate(&stream));
  const Rank self = {rank, link, **communicator, stream};
  const double copy_rate = CopyRates(self);
  Exchanges(self, copy_rate);
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
