// The kernels beside the MoE layer, on one GPU: quotas of a step, an expert's checksum, the SRU cell. Time of one call
// of a captured graph of 16, medians of 15 replays, beside its floor where memory sets one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/benchmark_support.h"
#include "kernels/cuda/checksum.h"
#include "kernels/cuda/quotas.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/sru.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

constexpr int kCalls = 16;
constexpr int kReplays = 15;

// Expert e's replicas are begin[e] .. begin[e + 1].
struct Table {
  std::vector<int32_t> begin = {0}, rank;
};

Table Flat(const std::vector<std::vector<int32_t>>& ranks_of_expert) {
  Table table;
  for (const std::vector<int32_t>& ranks : ranks_of_expert) {
    table.rank.insert(table.rank.end(), ranks.begin(), ranks.end());
    table.begin.push_back(static_cast<int32_t>(table.rank.size()));
  }
  return table;
}

// 256 experts of Zipf popularities on 32 ranks with 288 slots: the chain fills the ranks one after the other, large and
// small experts by turns, the one that does not fit going on in the next; else the hottest are replicated and packed
// greedily (EPLB's way).
Table MakeTable(const std::vector<double>& load, bool chain) {
  constexpr int kRanks = 32, kSlots = 288;
  const int experts = static_cast<int>(load.size());
  std::vector<std::vector<int32_t>> on(experts);
  std::vector<int> copies(experts, 1), order(experts);
  std::iota(order.begin(), order.end(), 0);
  if (chain) {
    std::sort(order.begin(), order.end(), [&](int a, int b) { return load[a] > load[b]; });
    size_t low = 0, high = order.size();
    double filled = 0;
    int rank = 0;
    for (bool large = true; low < high; large = !large) {
      const int e = large ? order[low++] : order[--high];
      on[e].push_back(rank);
      filled += load[e];
      while (filled * kRanks > rank + 1 && rank + 1 < kRanks) on[e].push_back(++rank);
    }
    return Flat(on);
  }
  for (int i = experts; i < kSlots; ++i) {
    int best = 0;
    for (int e = 1; e < experts; ++e) {
      if (load[e] / copies[e] > load[best] / copies[best]) best = e;
    }
    ++copies[best];
  }
  std::sort(order.begin(), order.end(), [&](int a, int b) { return load[a] / copies[a] > load[b] / copies[b]; });
  std::vector<double> rank_load(kRanks);
  std::vector<int> used(kRanks);
  for (const int e : order) {
    for (int c = 0; c < copies[e]; ++c) {
      int best = -1;
      for (int d = 0; d < kRanks; ++d) {
        if (used[d] * kRanks >= kSlots || std::count(on[e].begin(), on[e].end(), d) > 0) continue;
        if (best < 0 || rank_load[d] < rank_load[best]) best = d;
      }
      if (best < 0) continue;
      on[e].push_back(best);
      ++used[best];
      rank_load[best] += load[e] / copies[e];
    }
    std::sort(on[e].begin(), on[e].end());
  }
  return Flat(on);
}

void Quotas(cudaStream_t stream) {
  std::printf("step quotas, 256 experts, 32 ranks, 288 slots\n%-10s %6s %8s %9s %9s\n", "placement", "zipf", "pairs",
              "us", "slowest");
  constexpr int kRanks = 32, kExperts = 256;
  for (const bool chain : {true, false}) {
    for (const double zipf : {0.0, 0.5, 0.9}) {
      std::mt19937 random(1);
      std::vector<double> load(kExperts);
      double sum = 0;
      for (int e = 0; e < kExperts; ++e) sum += load[e] = std::pow(e + 1, -zipf);
      for (double& l : load) l /= sum;
      std::shuffle(load.begin(), load.end(), random);
      const Table table = MakeTable(load, chain);
      const absl::StatusOr<CudaStepQuotas> quotas = CudaStepQuotas::Create(table.begin, table.rank, kRanks);
      CheckOk(quotas.status());
      DeviceArray<int32_t> device_table(std::vector<int32_t>(quotas->table().begin(), quotas->table().end()));
      DeviceArray<int32_t> out(static_cast<size_t>(kRanks) * table.rank.size());
      for (const int pairs : {1024, 4096, 16384, 65536, 524288}) {
        std::vector<std::unique_ptr<DeviceArray<int32_t>>> steps;
        for (int step = 0; step < kCalls; ++step) {
          std::vector<int32_t> counts(kRanks * kExperts);
          for (int s = 0; s < kRanks; ++s) {
            std::lognormal_distribution<double> taste(0, 0.3);
            std::vector<double> own = load;
            for (double& l : own) l *= taste(random);
            std::discrete_distribution<int> draw(own.begin(), own.end());
            for (int i = 0; i < pairs / kRanks; ++i) ++counts[s * kExperts + draw(random)];
          }
          steps.push_back(std::make_unique<DeviceArray<int32_t>>(counts));
        }
        const auto run = [&](int step) {
          CheckOk(quotas->Run({device_table.data(), steps[step]->data(), kRanks, out.data(), nullptr}, stream));
        };
        const double mean = TimeGraph(stream, kCalls, kReplays, run);
        double slowest = 0;
        for (int step = 0; step < kCalls; ++step) {
          slowest = std::max(slowest, TimeGraph(stream, kCalls, 5, [&](int) { run(step); }));
        }
        std::printf("%-10s %6.1f %8d %9.1f %9.1f\n", chain ? "chain" : "greedy", zipf, pairs, mean * 1e6,
                    slowest * 1e6);
        std::fflush(stdout);
      }
    }
  }
}

void Checksums(cudaStream_t stream, double bandwidth) {
  std::printf("checksum, bytes over read bandwidth\n%10s %9s %9s %7s\n", "MB", "us", "floor us", "floor");
  for (const size_t bytes : {size_t{6} * 2048 * 768, size_t{6} * 7168 * 2048, size_t{6} * 4096 * 14336}) {
    // Too many to be in L2.
    const int copies = static_cast<int>((size_t{1} << 30) / bytes) + 1;
    DeviceArray<uint16_t> data(bytes / 2 * copies);
    CheckCuda(FillUniformBf16(data.data(), data.size(), 1, 1, stream));
    DeviceArray<uint8_t> workspace(ChecksumExpertWorkspaceBytes(bytes));
    workspace.Fill(0);
    DeviceArray<uint64_t> out(2);
    const double seconds = TimeGraph(stream, kCalls, kReplays, [&](int i) {
      CheckOk(ChecksumExpert(data.data() + bytes / 2 * (i % copies), bytes, out.data(), workspace.data(), stream));
    });
    const double floor = bytes / bandwidth;
    std::printf("%10.1f %9.1f %9.1f %6.1f%%\n", bytes / 1e6, seconds * 1e6, floor * 1e6, 100 * floor / seconds);
    std::fflush(stdout);
  }
}

void Sru(cudaStream_t stream, double bandwidth) {
  std::printf("SRU, 3 gates and the input, bytes over read bandwidth\n%6s %6s %6s %9s %9s %7s\n", "steps", "batch",
              "width", "us", "floor us", "floor");
  struct Shape {
    int steps, batch, width;
  };
  for (const Shape& shape : {Shape{1, 1, 512}, Shape{1, 64, 512}, Shape{1, 4096, 512}, Shape{32, 64, 512},
                             Shape{512, 8, 512}, Shape{128, 1024, 1024}}) {
    const size_t units = static_cast<size_t>(shape.batch) * shape.width, all = shape.steps * units;
    DeviceArray<uint16_t> gates(3 * all), x(all), out(all);
    CheckCuda(FillUniformBf16(gates.data(), gates.size(), 1, 1, stream));
    CheckCuda(FillUniformBf16(x.data(), x.size(), 2, 1, stream));
    DeviceArray<float> parameters(shape.width), state(units);
    parameters.Fill(0);
    state.Fill(0);
    SruArgs args;
    args.steps = shape.steps;
    args.batch = shape.batch;
    args.width = shape.width;
    args.gates = gates.data();
    args.x = x.data();
    args.forget_weight = args.reset_weight = args.forget_bias = args.reset_bias = parameters.data();
    args.start = args.end = state.data();
    args.out = out.data();
    args.out_stride = shape.width;
    const double seconds = TimeGraph(stream, kCalls, kReplays, [&](int) { CheckOk(RunSru(args, stream)); });
    const double floor = (10.0 * all + 8.0 * units) / bandwidth;
    std::printf("%6d %6d %6d %9.1f %9.1f %6.1f%%\n", shape.steps, shape.batch, shape.width, seconds * 1e6, floor * 1e6,
                100 * floor / seconds);
    std::fflush(stdout);
  }
}

int Main() {
  cudaStream_t stream;
  CheckCuda(cudaStreamCreate(&stream));
  const double bandwidth = ReadBandwidth(stream);
  std::printf("read bandwidth %.2f TB/s\n", bandwidth / 1e12);
  Quotas(stream);
  Checksums(stream, bandwidth);
  Sru(stream, bandwidth);
  CheckCuda(cudaStreamDestroy(stream));
  return 0;
}

}  // namespace
}  // namespace ballast

int main() { return ballast::Main(); }
