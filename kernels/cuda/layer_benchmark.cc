// A whole MoE layer (router with grouping, experts with combination) on one GPU: its result against float64, then its
// time against the floor, the larger of the activated weights' bytes over read bandwidth and flops over the matmul
// rate.
//
//   layer_benchmark [PEERS [MODEL [TOKENS]]]
//
// MODEL and TOKENS choose one of the layers. The two halves of a layer are also timed alone, each in a graph of its
// own. Bandwidth is measured here. PEERS is what torch_layer.py and vllm_layer.py wrote on the same machine, one after
// the other: the matmul rate (else 790 TFLOP/s is taken) and their times for the same shapes, of which those over ours
// are printed. A step is a layer of a captured graph of 16, each with other tokens and the weights in turn of copies of
// more than 2 GB together, so that no layer finds its weights in L2. In fp8 a layer's tokens are rounded to fp8 first.
// All of a layer's times, and the peers', are taken after .3 s of the same, when the clock has come down to what the
// power limit allows.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/benchmark_support.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/router.h"
#include "kernels/cuda/test_support.h"
#include "kernels/cuda/tokens.h"

namespace ballast {
namespace {

constexpr int kLayers = 16;
constexpr int kReplays = 9;
constexpr double kWarmSeconds = 0.3;
constexpr size_t kWeightBytes = size_t{2} << 30;

struct Model {
  const char* name;
  int experts, top_k, hidden, intermediate;
  ExpertForm form = ExpertForm::kSwiGlu;
  bool Fp8() const { return form == ExpertForm::kSwiGluFp8; }
  size_t ExpertBytes() const { return ExpertSlotBytes(form, hidden, intermediate); }
  double PairFlops() const { return (form == ExpertForm::kRelu ? 4.0 : 6.0) * hidden * intermediate; }
};

constexpr Model kModels[] = {
    {"qwen3-30b-a3b", 128, 8, 2048, 768},
    {"deepseek-v3-slice", 8, 1, 7168, 2048},
    {"olmoe", 64, 8, 2048, 1024},
    {"mixtral-8x7b", 8, 2, 4096, 14336},
    {"switch-base-128", 128, 1, 768, 3072, ExpertForm::kRelu},
    {"qwen3-30b-a3b-fp8", 128, 8, 2048, 768, ExpertForm::kSwiGluFp8},
    {"deepseek-v3-slice-fp8", 8, 1, 7168, 2048, ExpertForm::kSwiGluFp8},
};

struct Result {
  double error, seconds, route_seconds, experts_seconds, floor_seconds, bytes;
};

// The layers' inputs and outputs, and one step of each.
class Bench {
 public:
  Bench(const Model& model, int tokens, cudaStream_t stream)
      : m_(model),
        tokens_(tokens),
        pairs_(tokens * model.top_k),
        stream_(stream),
        stride_(model.ExpertBytes()),
        copies_(static_cast<int>(kWeightBytes / (stride_ * model.experts)) + 1),
        arena_(stride_ / 2 * model.experts * copies_),
        router_(static_cast<size_t>(model.experts) * model.hidden),
        x_(static_cast<size_t>(kLayers) * tokens * model.hidden),
        rows_(static_cast<size_t>(pairs_) * model.hidden),
        out_(static_cast<size_t>(kLayers) * tokens * model.hidden),
        ids_(static_cast<size_t>(kLayers) * pairs_),
        begin_(model.experts + 1),
        order_(pairs_),
        row_of_(pairs_),
        weights_(static_cast<size_t>(kLayers) * pairs_),
        counts_(model.experts),
        mass_(model.experts),
        fp8_x_(model.Fp8() ? static_cast<size_t>(tokens) * model.hidden : 0),
        x_scales_(model.Fp8() ? static_cast<size_t>(tokens) * ((model.hidden + kScaleBlock - 1) / kScaleBlock) : 0) {
    if (model.Fp8()) {
      const size_t elements = size_t{3} * model.hidden * model.intermediate;
      for (int slot = 0; slot < model.experts * copies_; ++slot) {
        uint8_t* const at = reinterpret_cast<uint8_t*>(arena_.data()) + slot * stride_;
        CheckCuda(FillUniformE4m3(at, elements, slot, 448, stream));
        CheckCuda(FillUniformFloat(reinterpret_cast<float*>(at + elements), (stride_ - elements) / sizeof(float), slot,
                                   1e-5f, 8e-5f, stream));
      }
    } else {
      CheckCuda(FillUniformBf16(arena_.data(), arena_.size(), 1, 0.02f, stream));
    }
    CheckCuda(FillUniformBf16(router_.data(), router_.size(), 2, 0.05f, stream));
    CheckCuda(FillUniformBf16(x_.data(), x_.size(), 3 + tokens, 1.7f, stream));
    counts_.Fill(0);
    mass_.Fill(0);
    rule_.num_experts = m_.experts;
    rule_.top_k = m_.top_k;
    rule_.renormalize = m_.form != ExpertForm::kRelu;
    absl::StatusOr<CudaExperts> experts =
        CudaExperts::Create({arena_.data(), stride_, m_.experts * copies_, m_.hidden, m_.intermediate, m_.form});
    CheckOk(experts.status());
    experts_ = std::make_unique<CudaExperts>(*experts);
    workspace_ = std::make_unique<DeviceArray<uint8_t>>(experts_->WorkspaceBytes(pairs_, m_.experts));
    workspace_->Fill(0);
    route_workspace_ = std::make_unique<DeviceArray<uint8_t>>(RouteAndGroupWorkspaceBytes(rule_, tokens, m_.experts));
    route_workspace_->Fill(0);
    std::vector<int32_t> slots(m_.experts * copies_), group_of(m_.experts);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(i);
    for (int i = 0; i < m_.experts; ++i) group_of[i] = i;
    slots_ = std::make_unique<DeviceArray<int32_t>>(slots);
    group_of_ = std::make_unique<DeviceArray<int32_t>>(group_of);
  }

  Result Run(double bandwidth, double flops) {
    Result result = {};
    out_.Fill(0xff);
    for (int layer = 0; layer < kLayers; ++layer) EnqueueLayer(layer);
    CheckCuda(cudaStreamSynchronize(stream_));
    result.error = Error();
    result.seconds = TimeGraph(
        stream_, kLayers, kReplays, [&](int layer) { EnqueueLayer(layer); }, kWarmSeconds);
    result.route_seconds = TimeGraph(stream_, kLayers, kReplays, [&](int layer) { EnqueueRoute(layer); });
    // The last layer's routing, with every copy of the weights in turn.
    result.experts_seconds = TimeGraph(stream_, kLayers, kReplays, [&](int layer) { EnqueueExperts(layer); });
    // The tensor cores' rate in fp8 is twice that in bf16.
    const double rate = (m_.Fp8() ? 2 : 1) * flops;
    const std::vector<int32_t> ids = ids_.Read();
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::set<int32_t> active(ids.begin() + layer * pairs_, ids.begin() + (layer + 1) * pairs_);
      const double bytes = static_cast<double>(active.size()) * stride_;
      result.bytes += bytes / kLayers;
      result.floor_seconds += std::max(bytes / bandwidth, m_.PairFlops() * pairs_ / rate) / kLayers;
    }
    return result;
  }

 private:
  void EnqueueLayer(int layer) {
    EnqueueRoute(layer);
    EnqueueExperts(layer);
  }

  void EnqueueRoute(int layer) {
    RouteTokensArgs route;
    route.rule = rule_;
    route.hidden = x_.data() + XOffset(layer);
    route.router_weights = router_.data();
    route.num_tokens = tokens_;
    route.hidden_size = m_.hidden;
    route.ids = Ids(layer);
    route.weights = Weights(layer);
    route.counts = counts_.data();
    route.gate_mass = mass_.data();
    CheckOk(RouteAndGroup(
        route,
        {Ids(layer), pairs_, group_of_->data(), m_.experts, m_.experts, begin_.data(), order_.data(), row_of_.data()},
        route_workspace_->data(), stream_));
  }

  void EnqueueExperts(int layer) {
    ExpertsStep step = {x_.data() + XOffset(layer),
                        order_.data(),
                        m_.top_k,
                        begin_.data(),
                        slots_->data() + layer % copies_ * m_.experts,
                        m_.experts,
                        pairs_,
                        rows_.data()};
    if (m_.Fp8()) {
      Quantize(layer);
      step.x = fp8_x_.data();
      step.x_scales = x_scales_.data();
    }
    CheckOk(experts_->RunAndCombine(step,
                                    {rows_.data(), row_of_.data(), Ids(layer), Weights(layer), tokens_, m_.top_k,
                                     m_.hidden, out_.data() + XOffset(layer)},
                                    workspace_->data(), pairs_, m_.experts, stream_));
  }

  void Quantize(int layer) {
    CheckOk(QuantizeRows({x_.data() + XOffset(layer), tokens_, m_.hidden, fp8_x_.data(), x_scales_.data()}, stream_));
  }

  int32_t* Ids(int layer) const { return ids_.data() + static_cast<size_t>(layer) * pairs_; }
  float* Weights(int layer) const { return weights_.data() + static_cast<size_t>(layer) * pairs_; }
  size_t XOffset(int layer) const { return static_cast<size_t>(layer) * tokens_ * m_.hidden; }

  // Of up to 64 tokens of two layers, against float64 with the experts and weights that the router chose.
  double Error() {
    RelativeError error;
    const std::vector<int32_t> ids = ids_.Read();
    const std::vector<float> weights = weights_.Read();
    for (const int layer : {0, kLayers - 1}) {
      std::vector<int> checked;
      for (int t = 0; t < tokens_; t += std::max(1, tokens_ / 64)) checked.push_back(t);
      std::vector<int32_t> token;
      std::vector<const void*> expert;
      for (const int t : checked) {
        for (int j = 0; j < m_.top_k; ++j) {
          token.push_back(t);
          const int slot = layer % copies_ * m_.experts + ids[static_cast<size_t>(layer) * pairs_ + t * m_.top_k + j];
          expert.push_back(reinterpret_cast<const uint8_t*>(arena_.data()) + stride_ * slot);
        }
      }
      const int rows = static_cast<int>(token.size());
      DeviceArray<int32_t> device_token(token);
      DeviceArray<const void*> device_expert(expert);
      DeviceArray<double> activations(static_cast<size_t>(rows) * m_.intermediate);
      DeviceArray<double> wanted(static_cast<size_t>(rows) * m_.hidden);
      if (m_.Fp8()) {
        Quantize(layer);
        CheckCuda(ReferenceExpertsFp8(fp8_x_.data(), x_scales_.data(), device_token.data(), device_expert.data(), rows,
                                      m_.hidden, m_.intermediate, activations.data(), wanted.data(), stream_));
      } else {
        CheckCuda(ReferenceExperts(m_.form, x_.data() + XOffset(layer), device_token.data(), device_expert.data(), rows,
                                   m_.hidden, m_.intermediate, activations.data(), wanted.data(), stream_));
      }
      CheckCuda(cudaStreamSynchronize(stream_));
      const std::vector<double> reference = wanted.Read();
      std::vector<uint16_t> got(static_cast<size_t>(tokens_) * m_.hidden);
      CheckCuda(cudaMemcpy(got.data(), out_.data() + XOffset(layer), got.size() * 2, cudaMemcpyDeviceToHost));
      for (size_t i = 0; i < checked.size(); ++i) {
        for (int d = 0; d < m_.hidden; ++d) {
          double sum = 0;
          for (int j = 0; j < m_.top_k; ++j) {
            sum += weights[static_cast<size_t>(layer) * pairs_ + checked[i] * m_.top_k + j] *
                   reference[(i * m_.top_k + j) * m_.hidden + d];
          }
          error.Add(FromBf16(got[static_cast<size_t>(checked[i]) * m_.hidden + d]), sum);
        }
      }
    }
    return error.value();
  }

  Model m_;
  int tokens_, pairs_;
  cudaStream_t stream_;
  size_t stride_;
  int copies_;
  DeviceArray<uint16_t> arena_, router_, x_, rows_, out_;
  DeviceArray<int32_t> ids_, begin_, order_, row_of_;
  DeviceArray<float> weights_;
  DeviceArray<uint64_t> counts_, mass_;
  // Of one layer at a time.
  DeviceArray<uint8_t> fp8_x_;
  DeviceArray<float> x_scales_;
  CudaRouterRule rule_;
  std::unique_ptr<CudaExperts> experts_;
  std::unique_ptr<DeviceArray<uint8_t>> workspace_, route_workspace_;
  std::unique_ptr<DeviceArray<int32_t>> slots_, group_of_;
};

// Lines "NAME TOKENS SECONDS"; the matmul rate is "matmul 0 FLOPS".
std::map<std::pair<std::string, int>, double> ReadPeer(const char* path) {
  std::map<std::pair<std::string, int>, double> values;
  std::ifstream in(path);
  BALLAST_CHECK(in.good()) << "cannot read " << path;
  std::string name;
  int tokens;
  double value;
  while (in >> name >> tokens >> value) values[{name, tokens}] = value;
  return values;
}

int Main(int argc, char** argv) {
  std::map<std::pair<std::string, int>, double> peer;
  if (argc > 1) peer = ReadPeer(argv[1]);
  cudaStream_t stream;
  CheckCuda(cudaStreamCreate(&stream));
  const double bandwidth = ReadBandwidth(stream);
  const auto matmul = peer.find({"matmul", 0});
  const double flops = matmul != peer.end() ? matmul->second : 790e12;
  std::printf("read bandwidth %.2f TB/s, bf16 matmul %.0f TFLOP/s\n", bandwidth / 1e12, flops / 1e12);
  std::printf("%-22s %6s %6s %9s %9s %7s %7s %7s  %s\n", "layer", "tokens", "MB", "floor us", "us", "floor", "PyTorch",
              "vLLM", "error     route experts");
  bool right = true;
  for (const Model& model : kModels) {
    if (argc > 2 && std::string(argv[2]) != model.name) continue;
    for (const int tokens : {1, 8, 32, 128, 1024, 4096, 16384}) {
      if (argc > 3 && std::stoi(argv[3]) != tokens) continue;
      Bench bench(model, tokens, stream);
      const Result r = bench.Run(bandwidth, flops);
      std::printf("%-22s %6d %6.0f %9.1f %9.1f %6.1f%%", model.name, tokens, r.bytes / 1e6, r.floor_seconds * 1e6,
                  r.seconds * 1e6, 100 * r.floor_seconds / r.seconds);
      for (const char* who : {"", "vllm:"}) {
        const auto other = peer.find({std::string(who) + model.name, tokens});
        if (other == peer.end()) {
          std::printf(" %7s", "");
        } else {
          std::printf(" %7.2f", other->second / r.seconds);
        }
      }
      std::printf("  %.1e%s %6.1f %8.1f\n", r.error, r.error < 1e-2 ? "" : " WRONG", r.route_seconds * 1e6,
                  r.experts_seconds * 1e6);
      std::fflush(stdout);
      right = right && r.error < 1e-2;
    }
  }
  CheckCuda(cudaStreamDestroy(stream));
  return right ? 0 : 1;
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) { return ballast::Main(argc, argv); }
