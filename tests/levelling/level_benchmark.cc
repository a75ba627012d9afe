// MoE layers of real shapes over two GPUs, before and after a plan: tokens a second of both, beside what the cost model
// says of them; the model's constants fitted to some of the layers measured and judged by others; what counting costs.
//
// Two ranks, a thread and a GPU each, run the worker's own layers (DeviceMoeExecutor) with random weights. Tokens
// choose their experts as often as a measured load says: each layer's router reads the choice off the first numbers of
// its rows. Weights are of `--distinct` layers, in turn, where not all layers fit.
#include <algorithm>
#include <array>
#include <barrier>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "controller/formats/load_file.h"
#include "controller/planner/cost_model.h"
#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "controller/planner/score.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/benchmark_support.h"
#include "proto/base/flags.h"
#include "proto/placement/shares.h"
#include "tests/levelling/cost_fit.h"
#include "tests/levelling/draw_routes.h"
#include "worker/experts/device_slots.h"
#include "worker/experts/replica_table.h"
#include "worker/moe/device_moe_executor.h"
#include "worker/transport/inproc.h"

namespace ballast {
namespace {

using internal::ToBf16;

constexpr int kRanks = 2;
constexpr char kBefore[] = "contiguous", kAfter[] = "planned";
// Layers that the cost model is judged by.
constexpr size_t kJudged = 200;

struct Shape {
  const char* name;
  int hidden_size, intermediate_size;
  CudaRouterRule rule;
};
// Without DeepSeek-V3's groups of experts: a load says nothing of them.
const Shape kShapes[] = {
    {"deepseek-v3", 7168, 2048, {.score = RouterScore::kSigmoid, .top_k = 8, .renormalize = true, .scale = 2.5}},
    {"qwen3-30b", 2048, 768, {.score = RouterScore::kSoftmax, .top_k = 8, .renormalize = true}},
    {"olmoe", 2048, 1024, {.score = RouterScore::kSoftmax, .top_k = 8}},
};

struct Options {
  std::string shape = "deepseek-v3";
  std::string load;
  int layers = 58;
  int distinct = 4;
  std::vector<int> tokens = {1, 4, 16, 64, 128, 256, 512, 1024, 4096};
  int steps = 5;
  std::string out;
};

template <typename T>
T Value(absl::StatusOr<T> value) {
  CheckOk(value.status());
  return *std::move(value);
}
absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

// `layers` of the load, evenly over all; repeated where it has fewer.
LoadMatrix SomeLayers(const LoadMatrix& load, int layers) {
  LoadMatrix some(layers, load.experts);
  for (int32_t l = 0; l < some.layers; ++l) {
    std::ranges::copy(load.layer(l * load.layers / some.layers), some.layer(l).begin());
  }
  return some;
}

struct Candidate {
  std::string name;
  // Over workers w0 and w1.
  Placement placement;
};

struct Setting {
  Options options;
  Shape shape;
  LoadMatrix load;
  Topology topology;
  int slots_per_layer = 0;
  std::vector<Candidate> candidates;
  int distinct() const { return std::min(options.distinct, load.layers); }
  size_t expert_bytes() const { return size_t{6} * shape.hidden_size * shape.intermediate_size; }
};

// Expert order[i] of each layer is on GPU i * 2 / experts.
Placement InHalves(const Setting& s, const std::vector<std::vector<int32_t>>& order) {
  Placement placement{.num_layers = s.load.layers, .num_experts = s.load.experts, .workers = {"w0", "w1"}};
  for (int32_t l = 0; l < s.load.layers; ++l) {
    for (int32_t i = 0; i < s.load.experts; ++i) {
      placement.replicas.push_back({.expert = {l, order[l][i]}, .worker = i * kRanks / s.load.experts});
    }
  }
  return placement;
}

// Slots by layer, those of layer l and l + distinct being the same.
void AssignSlots(const Setting& s, Placement& placement) {
  placement.Sort();
  std::vector<std::array<int32_t, kRanks>> used(s.load.layers, {0, 0});
  for (Replica& r : placement.replicas) {
    int32_t& next = used[r.expert.layer][r.worker];
    BALLAST_CHECK(next < s.slots_per_layer) << "layer " << r.expert.layer;
    r.slot = r.expert.layer % s.distinct() * s.slots_per_layer + next++;
  }
}

Setting MakeSetting(const Options& options) {
  Setting s{.options = options};
  for (const Shape& shape : kShapes) {
    if (options.shape == shape.name) s.shape = shape;
  }
  const std::vector<NamedLoads> loads = {{options.load, {Value(ReadLoad(options.load))}}};
  const LoadSet set = Value(MakeLoadSet(loads));
  s.load = SomeLayers(set.scenarios[0].load, options.layers);
  s.shape.rule.num_experts = s.load.experts;
  s.slots_per_layer = s.load.experts / kRanks + 1;
  s.topology = UniformTopology(kRanks, 1, s.slots_per_layer * s.load.layers);

  std::vector<std::vector<int32_t>> order(s.load.layers, std::vector<int32_t>(s.load.experts));
  for (auto& of_layer : order) std::iota(of_layer.begin(), of_layer.end(), 0);
  s.candidates.push_back({kBefore, InHalves(s, order)});
  const Plan plan = Value(MakePlan(CostAwarePolicy(), {.scenarios = {{.name = "load", .load = s.load}},
                                                       .topology = s.topology,
                                                       .slots_per_layer = s.slots_per_layer,
                                                       .expert_bytes = static_cast<int64_t>(s.expert_bytes())}));
  s.candidates.push_back({kAfter, plan.placement});
  std::mt19937_64 random(1);
  for (auto& of_layer : order) std::shuffle(of_layer.begin(), of_layer.end(), random);
  s.candidates.push_back({"random", InHalves(s, order)});
  for (int32_t l = 0; l < s.load.layers; ++l) {
    std::ranges::sort(order[l], [&](int32_t a, int32_t b) { return s.load.layer(l)[a] > s.load.layer(l)[b]; });
  }
  s.candidates.push_back({"hottest half first", InHalves(s, order)});
  for (Candidate& c : s.candidates) {
    AssignSlots(s, c.placement);
    std::printf("%s: balancedness %.3f\n", c.name.c_str(),
                ScoreLoad(c.placement, {.name = "load", .load = s.load}, s.topology).balancedness);
  }
  return s;
}

// What tokens choose: [rank][layer][capacity][top_k].
using Routes = std::array<std::vector<std::vector<int32_t>>, kRanks>;

Routes DrawAll(const Setting& s, int capacity) {
  Routes routes;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      std::mt19937_64 random(10 + rank);
      for (int32_t l = 0; l < s.load.layers; ++l) {
        routes[rank].emplace_back(static_cast<size_t>(capacity) * s.shape.rule.top_k);
        DrawRoutes(s.load.layer(l), s.shape.rule.top_k, random, routes[rank].back());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return routes;
}

// One layer of a step: its time, and what each rank had to do.
struct Point {
  int layer = 0;
  double microseconds = 0;
  std::vector<LayerWork> work;
  // Rows that experts' tiles of 128 take.
  std::array<int, kRanks> padded = {};
};

struct Outcome {
  const Candidate* candidate = nullptr;
  ShareForm form = ShareForm::kFixed;
  int tokens = 0;  // of a rank
  double step_microseconds = 0;
  // Of the step with the median time: by stage, a layer.
  MoeStepStats stats;
  double count_host_microseconds = 0, count_gpu_microseconds = 0;
  std::vector<Point> points;
};

// The pairs of a step as the placement's weights split them.
std::vector<Point> PointsOf(const Setting& s, const Candidate& candidate, ShareForm form, const Routes& routes,
                            int tokens) {
  std::vector<Point> points;
  const std::vector<int32_t> ranks = {0, 1};
  const std::vector<LayerReplicas> layers = ByLayer(candidate.placement);
  for (int32_t l = 0; l < s.load.layers; ++l) {
    const DispatchTable table = MakeDispatchTable(layers[l], ranks);
    std::vector<int64_t> counts(s.load.experts);
    for (int rank = 0; rank < kRanks; ++rank) {
      for (int i = 0; i < tokens * s.shape.rule.top_k; ++i) ++counts[routes[rank][l][i]];
    }
    std::vector<int64_t> flow(table.num_replicas());
    if (form == ShareForm::kFixed) {
      for (int32_t e = 0; e < s.load.experts; ++e) {
        double sum = 0;
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) sum += table.weight[r];
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          flow[r] = std::llround(static_cast<double>(counts[e]) * table.weight[r] / sum);
        }
      }
    } else {
      ShareSolver(table, kRanks).Solve(counts, flow);
    }
    Point point{.layer = l};
    point.work = WorkByWorker(table, std::vector<double>(flow.begin(), flow.end()), s.topology);
    for (int32_t r = 0; r < table.num_replicas(); ++r) {
      point.padded[table.rank[r]] += static_cast<int>((flow[r] + 127) / 128 * 128);
    }
    points.push_back(std::move(point));
  }
  return points;
}

// What both threads share.
struct Shared {
  explicit Shared(const Setting& setting) : s(setting) {}
  const Setting& s;
  std::barrier<> both{kRanks};
  Routes routes;
  // By rank, of the outcome under way.
  std::array<std::vector<std::vector<double>>, kRanks> layer_microseconds;  // [step][layer]
  std::array<std::vector<double>, kRanks> step_microseconds, count_host, count_gpu;
  std::vector<Outcome> outcomes;
};

class Rank {
 public:
  Rank(int rank, Shared& shared) : rank_(rank), shared_(shared), s_(shared.s) {
    CheckCuda(cudaSetDevice(rank));
    CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    slots_ = Value(DeviceSlots::Create({.slots = s_.distinct() * s_.slots_per_layer, .slot_bytes = s_.expert_bytes()}));
    const int experts = s_.load.experts, hidden = s_.shape.hidden_size;
    // Expert e's logit is number e of the row, and a little of the others.
    DeviceArray<uint16_t> noise(static_cast<size_t>(experts) * hidden);
    CheckCuda(FillUniformBf16(noise.data(), noise.size(), 3, 0.0005f, stream_));
    CheckCuda(cudaStreamSynchronize(stream_));
    std::vector<uint16_t> router = noise.Read();
    for (int e = 0; e < experts; ++e) {
      for (int h = 0; h < experts; ++h) router[static_cast<size_t>(e) * hidden + h] = ToBf16(e == h ? 1.0f : 0.0f);
    }
    router_ = std::make_unique<DeviceArray<uint16_t>>(router);
    counters_ = std::make_unique<LoadCounters>(s_.load.layers, experts, s_.shape.rule.top_k, 64);
    task_ = counters_->InternTask("task");
    for (cudaEvent_t* event : {&counted_[0], &counted_[1]}) CheckCuda(cudaEventCreate(event));
    events_.resize(s_.load.layers + 1);
    for (cudaEvent_t& event : events_) CheckCuda(cudaEventCreate(&event));
  }
  ~Rank() {
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
    for (const cudaEvent_t event : counted_) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }

  // Steps of up to `capacity` rows, of the sizes of `tokens`.
  void Run(int capacity, const std::vector<int>& tokens, Transport& transport, uint64_t view_number) {
    MakeRows(capacity);
    DeviceMoeModel model{.rule = s_.shape.rule,
                         .hidden_size = s_.shape.hidden_size,
                         .intermediate_size = s_.shape.intermediate_size,
                         .router_weights = std::vector<const void*>(s_.load.layers, router_->data())};
    executor_ = Value(
        DeviceMoeExecutor::Create(std::move(model), *slots_, {.capacity = capacity, .wait_limit = absl::Seconds(20)}));
    GroupView view{.view = ViewId(view_number), .members = {{.worker = "w0"}, {.worker = "w1"}}, .rank = rank_};
    std::vector<std::vector<uint16_t>> wanted;
    bool entered = false;
    for (const Candidate& candidate : s_.candidates) {
      FillSlots(candidate.placement);
      const auto table = std::make_shared<ReplicaTable>(
          candidate.placement,
          std::vector<const uint16_t*>(static_cast<size_t>(s_.load.layers) * s_.load.experts, nullptr));
      if (entered) {
        CheckOk(executor_->Flip(table, stream_));
      } else {
        CheckOk(executor_->Enter(view, &transport, table, Soon(), stream_));
      }
      entered = true;
      for (const ShareForm form : {ShareForm::kFixed, ShareForm::kCurrent}) {
        // One expert on both GPUs in each layer is all that forms can differ by.
        if (form == ShareForm::kCurrent && candidate.name != kAfter) continue;
        for (const int n : tokens) {
          Measure(candidate, form, n);
          if (form == ShareForm::kFixed) CompareOutputs(n, candidate, wanted);
        }
      }
    }
    shared_.both.arrive_and_wait();
    executor_->Leave();
    shared_.both.arrive_and_wait();
    executor_.reset();
    rows_.reset();
    out_.reset();
  }

 private:
  // Layer by layer its rows: random, but for what the router reads.
  void MakeRows(int capacity) {
    capacity_ = capacity;
    const int experts = s_.load.experts, hidden = s_.shape.hidden_size, top_k = s_.shape.rule.top_k;
    const size_t layer_size = static_cast<size_t>(capacity) * hidden;
    rows_ = std::make_unique<DeviceArray<uint16_t>>(layer_size * s_.load.layers);
    out_ = std::make_unique<DeviceArray<uint16_t>>(layer_size * s_.distinct());
    CheckCuda(FillUniformBf16(rows_->data(), rows_->size(), 100 + rank_, 1, stream_));
    CheckCuda(cudaStreamSynchronize(stream_));
    std::minstd_rand random(rank_ + 1);
    std::vector<uint16_t> read(static_cast<size_t>(capacity) * experts);
    for (int32_t l = 0; l < s_.load.layers; ++l) {
      for (uint16_t& v : read) v = ToBf16(static_cast<float>(random() % 2048) / 1024 - 1);
      for (int t = 0; t < capacity; ++t) {
        for (int k = 0; k < top_k; ++k) {
          read[static_cast<size_t>(t) * experts + shared_.routes[rank_][l][static_cast<size_t>(t) * top_k + k]] =
              ToBf16(3 + 0.25f * static_cast<float>(top_k - k));
        }
      }
      CheckCuda(cudaMemcpy2D(rows_->data() + l * layer_size, size_t{2} * hidden, read.data(), size_t{2} * experts,
                             size_t{2} * experts, capacity, cudaMemcpyHostToDevice));
    }
  }

  // The weights of an expert are the same in every placement, in the first `distinct` layers.
  void FillSlots(const Placement& placement) {
    for (const Replica& r : placement.replicas) {
      if (r.worker != rank_ || r.expert.layer >= s_.distinct()) continue;
      CheckCuda(FillUniformBf16(slots_->Slot(r.slot).data(), s_.expert_bytes() / 2,
                                1000 + r.expert.layer * s_.load.experts + r.expert.expert, 0.03f, stream_));
    }
    CheckCuda(cudaStreamSynchronize(stream_));
  }

  void Step(ShareForm form, int tokens, bool count, bool keep) {
    labels_.assign(tokens, {.task = task_, .phase = TokenPhase::kDecode});
    shares_.assign(s_.load.layers, {.form = form});
    shared_.both.arrive_and_wait();
    const absl::Time begin = absl::Now();
    CheckOk(executor_->BeginStep({.step = StepId(++step_), .rows = labels_, .shares = shares_, .deadline = Soon()},
                                 stream_));
    const size_t layer_size = static_cast<size_t>(capacity_) * s_.shape.hidden_size;
    CheckCuda(cudaEventRecord(events_[0], stream_));
    for (int32_t l = 0; l < s_.load.layers; ++l) {
      CheckOk(executor_->Run(l, rows_->data() + l * layer_size, tokens, out_->data() + l % s_.distinct() * layer_size,
                             stream_));
      CheckCuda(cudaEventRecord(events_[l + 1], stream_));
      // What is compared is of the layers whose weights are their own.
      if (keep && l + 1 == s_.distinct()) {
        CheckCuda(cudaStreamSynchronize(stream_));
        kept_ = out_->Read();
      }
    }
    CheckOk(executor_->EndStep(stream_));
    const absl::Time end = absl::Now();
    if (count) {
      CheckCuda(cudaEventRecord(counted_[0], stream_));
      executor_->CountStep(*counters_);
      const absl::Time counted = absl::Now();
      CheckCuda(cudaEventRecord(counted_[1], stream_));
      CheckCuda(cudaEventSynchronize(counted_[1]));
      shared_.count_host[rank_].push_back(absl::ToDoubleMicroseconds(counted - end));
      shared_.count_gpu[rank_].push_back(Between(counted_[0], counted_[1]));
    }
    shared_.step_microseconds[rank_].push_back(absl::ToDoubleMicroseconds(end - begin));
    auto& layers = shared_.layer_microseconds[rank_].emplace_back();
    for (int32_t l = 0; l < s_.load.layers; ++l) layers.push_back(Between(events_[l], events_[l + 1]));
  }

  static double Between(cudaEvent_t begin, cudaEvent_t end) {
    float ms = 0;
    CheckCuda(cudaEventElapsedTime(&ms, begin, end));
    return ms * 1e3;
  }

  void Measure(const Candidate& candidate, ShareForm form, int tokens) {
    for (int i = 0; i < 2; ++i) Step(form, tokens, /*count=*/false, /*keep=*/false);
    shared_.layer_microseconds[rank_].clear();
    shared_.step_microseconds[rank_].clear();
    shared_.count_host[rank_].clear();
    shared_.count_gpu[rank_].clear();
    MoeStepStats sums;
    for (int i = 0; i < s_.options.steps; ++i) {
      Step(form, tokens, /*count=*/true, /*keep=*/false);
      const MoeStepStats& stats = executor_->stats();
      sums.route += stats.route;
      sums.share += stats.share;
      sums.dispatch += stats.dispatch;
      sums.experts += stats.experts;
      sums.combine += stats.combine;
    }
    shared_.both.arrive_and_wait();
    if (rank_ == 0) {
      Outcome outcome{.candidate = &candidate, .form = form, .tokens = tokens, .stats = sums};
      outcome.points = PointsOf(s_, candidate, form, shared_.routes, tokens);
      for (Point& point : outcome.points) {
        for (int rank = 0; rank < kRanks; ++rank) {
          std::vector<double> times;
          for (const auto& step : shared_.layer_microseconds[rank]) times.push_back(step[point.layer]);
          point.microseconds += Median(times) / kRanks;
        }
      }
      for (int rank = 0; rank < kRanks; ++rank) {
        const double step = Median(shared_.step_microseconds[rank]);
        outcome.step_microseconds = std::max(outcome.step_microseconds, step);
        outcome.count_host_microseconds += Median(shared_.count_host[rank]) / kRanks;
        outcome.count_gpu_microseconds += Median(shared_.count_gpu[rank]) / kRanks;
      }
      shared_.outcomes.push_back(std::move(outcome));
    }
    shared_.both.arrive_and_wait();
  }

  // The rows of the layers with weights of their own are the same in every placement.
  void CompareOutputs(int tokens, const Candidate& candidate, std::vector<std::vector<uint16_t>>& wanted) {
    if (tokens > 256 && tokens != s_.options.tokens.back()) return;
    Step(ShareForm::kFixed, tokens, /*count=*/false, /*keep=*/true);
    std::vector<uint16_t> got;
    const size_t layer_size = static_cast<size_t>(capacity_) * s_.shape.hidden_size;
    for (int l = 0; l < s_.distinct(); ++l) {
      got.insert(got.end(), kept_.begin() + l * layer_size,
                 kept_.begin() + l * layer_size + static_cast<size_t>(tokens) * s_.shape.hidden_size);
    }
    const auto same_size = std::ranges::find_if(wanted, [&](const auto& w) { return w.size() == got.size(); });
    if (same_size == wanted.end()) {
      wanted.push_back(std::move(got));
      return;
    }
    RelativeError error;
    for (size_t i = 0; i < got.size(); ++i) error.Add(FromBf16(got[i]), FromBf16((*same_size)[i]));
    BALLAST_CHECK(error.value() < 0.01) << candidate.name << ", " << tokens << " tokens: " << error.value();
  }

  const int rank_;
  Shared& shared_;
  const Setting& s_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<DeviceSlots> slots_;
  std::unique_ptr<DeviceArray<uint16_t>> router_, rows_, out_;
  std::unique_ptr<LoadCounters> counters_;
  std::unique_ptr<DeviceMoeExecutor> executor_;
  int32_t task_ = 0;
  int capacity_ = 0;
  uint64_t step_ = 0;
  std::vector<RowLabel> labels_;
  std::vector<LayerShares> shares_;
  std::vector<uint16_t> kept_;
  std::vector<cudaEvent_t> events_;
  cudaEvent_t counted_[2] = {};
};

void PrintOutcomes(const Setting& s, const std::vector<Outcome>& outcomes) {
  std::printf("%-20s %-8s %6s %10s %10s %6s | us a layer: %7s %7s %8s %7s %7s | counting: %7s %7s\n", "placement",
              "form", "tokens", "us a step", "tokens/s", "layer", "route", "share", "dispatch", "experts", "combine",
              "host us", "gpu us");
  for (const Outcome& o : outcomes) {
    const auto stage = [&](absl::Duration d) {
      return absl::ToDoubleMicroseconds(d) / (s.options.steps * s.load.layers);
    };
    std::printf("%-20s %-8s %6d %10.0f %10.0f %6.0f | %19.1f %7.1f %8.1f %7.1f %7.1f | %17.1f %7.1f\n",
                o.candidate->name.c_str(), o.form == ShareForm::kFixed ? "fixed" : "current", o.tokens,
                o.step_microseconds, kRanks * o.tokens / o.step_microseconds * 1e6, o.step_microseconds / s.load.layers,
                stage(o.stats.route), stage(o.stats.share), stage(o.stats.dispatch), stage(o.stats.experts),
                stage(o.stats.combine), o.count_host_microseconds, o.count_gpu_microseconds);
  }
}

// What FitCostModel makes of the layers of two placements, judged by layers of the two others that it has not seen.
void PrintModel(const Setting& s, const std::vector<Outcome>& outcomes) {
  std::vector<MeasuredLayer> known, others;
  const auto is_known = [](const Outcome& o) { return o.candidate->name != kBefore && o.candidate->name != kAfter; };
  for (const Outcome& o : outcomes) {
    if (o.form != ShareForm::kFixed) continue;
    for (const Point& p : o.points) (is_known(o) ? known : others).push_back({p.work, p.microseconds});
  }
  std::shuffle(others.begin(), others.end(), std::mt19937_64(7));
  others.resize(std::min<size_t>(others.size(), kJudged));
  const CostModel model = FitCostModel(known);
  std::printf("\nfitted to %d layers: %.1f us a layer, %.2f an expert, %.4f a pair\n", static_cast<int>(known.size()),
              model.microseconds_per_layer, model.microseconds_per_expert, model.microseconds_per_token);
  const auto print = [&](const char* what, const std::vector<MeasuredLayer>& layers) {
    const FitQuality q = JudgeCostModel(model, layers);
    std::printf("%-28s %4d layers: R squared %.4f, error median %.1f%%, p90 %.1f%%, max %.1f%%, within 10%%: %.1f%%\n",
                what, static_cast<int>(layers.size()), q.r_squared, 100 * q.median_error, 100 * q.p90_error,
                100 * q.max_error, 100 * q.within_tenth);
  };
  print("of before and after, drawn", others);
  std::printf("\n%8s %-8s %12s %12s %10s %10s\n", "tokens", "shares", "before", "after", "gain", "predicted");
  for (const Outcome& after : outcomes) {
    if (after.candidate->name != kAfter) continue;
    for (const Outcome& before : outcomes) {
      if (before.candidate->name != kBefore || before.tokens != after.tokens) continue;
      const auto predicted = [&](const Outcome& o) {
        double sum = 0;
        for (const Point& p : o.points) sum += SlowestMicroseconds(model, p.work);
        return sum;
      };
      const auto rate = [&](const Outcome& o) { return kRanks * o.tokens / o.step_microseconds * 1e6; };
      std::printf("%8d %-8s %12.0f %12.0f %+9.1f%% %+9.1f%%\n", after.tokens,
                  after.form == ShareForm::kFixed ? "plan's" : "current", rate(before), rate(after),
                  100 * (rate(after) / rate(before) - 1), 100 * (predicted(before) / predicted(after) - 1));
    }
  }
  std::printf("\n");
  for (const int tokens : s.options.tokens) {
    std::vector<MeasuredLayer> layers;
    for (const Outcome& o : outcomes) {
      if (o.tokens != tokens || is_known(o) || o.form != ShareForm::kFixed) continue;
      for (const Point& p : o.points) layers.push_back({p.work, p.microseconds});
    }
    print(absl::StrCat(tokens, " tokens").c_str(), layers);
  }
}

void WritePoints(const std::string& path, const std::vector<Outcome>& outcomes) {
  std::ofstream out(path);
  out << "placement,form,tokens,layer,us,pairs0,experts0,padded0,pairs1,experts1,padded1\n";
  for (const Outcome& o : outcomes) {
    for (const Point& p : o.points) {
      out << o.candidate->name << "," << static_cast<int>(o.form) << "," << o.tokens << "," << p.layer << ","
          << p.microseconds;
      for (int rank = 0; rank < kRanks; ++rank) {
        out << "," << p.work[rank].busiest_tokens << "," << p.work[rank].experts << "," << p.padded[rank];
      }
      out << "\n";
    }
  }
}

void Run(const Options& options) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < kRanks) {
    std::printf("%d GPUs, two are needed\n", gpus);
    return;
  }
  const Setting s = MakeSetting(options);
  Shared shared(s);
  // Few rows in buffers for few, as a decode worker has them.
  std::array<std::vector<int>, 2> tokens;
  for (const int n : options.tokens) tokens[n > 256].push_back(n);
  const int most = *std::ranges::max_element(options.tokens);
  shared.routes = DrawAll(s, most);
  InProcessMesh meshes[] = {InProcessMesh(kRanks), InProcessMesh(kRanks)};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      Rank self(rank, shared);
      for (int i = 0; i < 2; ++i) {
        if (tokens[i].empty()) continue;
        const auto transport = meshes[i].Join(rank);
        self.Run(std::ranges::max(tokens[i]), tokens[i], *transport, i + 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  PrintOutcomes(s, shared.outcomes);
  PrintModel(s, shared.outcomes);
  if (!options.out.empty()) WritePoints(options.out, shared.outcomes);
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  ballast::Options options;
  CLI::App app("Two GPUs before and after a plan");
  std::vector<std::string> shapes;
  for (const ballast::Shape& shape : ballast::kShapes) shapes.push_back(shape.name);
  app.add_option("--shape", options.shape, "The layers' shape")->check(CLI::IsMember(shapes))->capture_default_str();
  app.add_option("--load", options.load, "The load file that routes are drawn from")->type_name("FILE")->required();
  app.add_option("--layers", options.layers, "Layers, evenly over the load's; repeated where it has fewer")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--distinct", options.distinct, "Layers with weights of their own")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "Tokens of each GPU in a step")
      ->check(CLI::Range(1, 1 << 16))
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--steps", options.steps, "Steps to measure")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--out", options.out, "Where every layer's time goes, as csv")->type_name("FILE");
  if (const auto status = ballast::ParseFlags(app, argc, argv)) return *status;
  ballast::Run(options);
  return 0;
}
