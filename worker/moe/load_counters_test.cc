#include "worker/moe/load_counters.h"

#include <cmath>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(LoadCounters, CountsByTaskPhaseLayerExpert_OnceATake) {
  LoadCounters counters(/*num_layers=*/2, /*num_experts=*/4, /*top_k=*/2);
  const int32_t chat = counters.InternTask("chat");
  const int32_t code = counters.InternTask("code");
  EXPECT_EQ(counters.InternTask("chat"), chat);
  const RowLabel rows[] = {{chat, TokenPhase::kPrefill}, {chat, TokenPhase::kPrefill}, {code, TokenPhase::kDecode}};
  const int32_t layer0[] = {3, 1, 3, 0, 2, 1};
  const int32_t layer1[] = {0, 1, 0, 1, 0, 1};
  const float weights[] = {0.5, 0.25, 0.5, 0.125, 0.75, 0.25};
  const RoutedLayer layers[] = {{0, layer0, weights}, {1, layer1, weights}};
  counters.AddStep(Epoch(7), rows, {}, layers,
                   {.balancedness = 0.5, .phase = TokenPhase::kDecode, .layers_by_form = {1, 0, 2}});
  counters.AddStep(Epoch(8), std::span(rows).first(1), {}, std::span(layers).first(1), {});

  const LoadWindow window = counters.Take();
  EXPECT_EQ(window.epoch, Epoch(8));
  EXPECT_EQ(window.balance[0], BalanceCount());
  BalanceCount decode{.steps = 1, .balancedness_sum = 0.5, .layers_by_form = {1, 0, 2}};
  decode.buckets[4] = 1;
  EXPECT_EQ(window.balance[1], decode);
  EXPECT_THAT(window.tasks, ElementsAre(TaskCount{.task = "chat", .prefill_tokens = 3},
                                        TaskCount{.task = "code", .decode_tokens = 1}));
  const auto count = [&](int layer, int expert, int32_t task, TokenPhase phase, int64_t tokens, double mass) {
    return LoadCount{.expert = {layer, expert}, .task = task, .phase = phase, .tokens = tokens, .gate_mass = mass};
  };
  EXPECT_THAT(window.counts, ElementsAre(count(0, 0, chat, TokenPhase::kPrefill, 1, 0.125),  //
                                         count(0, 1, chat, TokenPhase::kPrefill, 2, 0.5),    //
                                         count(0, 3, chat, TokenPhase::kPrefill, 3, 1.5),    //
                                         count(1, 0, chat, TokenPhase::kPrefill, 2, 1.0),    //
                                         count(1, 1, chat, TokenPhase::kPrefill, 2, 0.375),  //
                                         count(0, 1, code, TokenPhase::kDecode, 1, 0.25),    //
                                         count(0, 2, code, TokenPhase::kDecode, 1, 0.75),    //
                                         count(1, 0, code, TokenPhase::kDecode, 1, 0.75),    //
                                         count(1, 1, code, TokenPhase::kDecode, 1, 0.25)));
  const LoadWindow empty = counters.Take();
  EXPECT_THAT(empty.counts, IsEmpty());
  EXPECT_EQ(empty.tasks.size(), 2u);
  EXPECT_EQ(empty.balance[1], BalanceCount());
}

TEST(LoadCounters, FailedRowsDoNotCount) {
  LoadCounters counters(1, 2, 1);
  const RowLabel rows[] = {{counters.InternTask(""), TokenPhase::kDecode}, {0, TokenPhase::kDecode}};
  const int32_t experts[] = {0, 1};
  const float weights[] = {1, 1};
  const uint8_t failed[] = {1, 0};
  const RoutedLayer layer{0, experts, weights};
  counters.AddStep(Epoch(1), rows, failed, {&layer, 1}, {});
  const LoadWindow window = counters.Take();
  ASSERT_EQ(window.counts.size(), 1u);
  EXPECT_EQ(window.counts[0].expert, (ExpertId{0, 1}));
  EXPECT_EQ(window.tasks[0].decode_tokens, 1);
}

TEST(LoadCounters, KeepsWholeRoutesOfSomeTokens) {
  LoadCounters counters(2, 8, 2, /*sampled_tokens=*/3);
  const RowLabel rows[] = {
      {counters.InternTask("a"), TokenPhase::kDecode}, {0, TokenPhase::kDecode}, {0, TokenPhase::kPrefill}};
  const int32_t layer0[] = {3, 1, 7, 0, 2, 1};
  const int32_t layer1[] = {0, 4, 5, 1, 6, 3};
  const float weights[] = {1, 1, 1, 1, 1, 1};
  // In the order in which they ran, which need not be the layers'.
  const RoutedLayer layers[] = {{1, layer1, weights}, {0, layer0, weights}};
  counters.AddStep(Epoch(1), rows, {}, layers, {});
  LoadWindow window = counters.Take();
  EXPECT_THAT(window.samples, ElementsAre(RouteSample{0, TokenPhase::kPrefill, 1, {2, 1, 6, 3}},
                                          RouteSample{0, TokenPhase::kDecode, 2, {3, 1, 0, 4, 7, 0, 5, 1}}));
  // Neither failed rows nor steps without all layers.
  const uint8_t failed[] = {0, 1, 1};
  counters.AddStep(Epoch(1), rows, failed, layers, {});
  counters.AddStep(Epoch(1), rows, {}, std::span(layers).first(1), {});
  window = counters.Take();
  EXPECT_THAT(window.samples, ElementsAre(RouteSample{0, TokenPhase::kDecode, 1, {3, 1, 0, 4}}));
  EXPECT_THAT(counters.Take().samples, IsEmpty());
}

TEST(LoadCounters, HeldBackRowsAreKept_AndCountWhenTheirTaskIsKnown) {
  LoadCounters counters(2, 4, 2, /*sampled_tokens=*/8);
  const int32_t unlabelled = counters.InternTask("");
  const int32_t labelled = counters.InternTask("code");
  const int32_t classified = counters.InternTask("code", /*classified=*/true);
  EXPECT_NE(classified, labelled);
  EXPECT_EQ(counters.TaskName(classified), "code");
  const RowLabel rows[] = {{.task = unlabelled, .held_back = true}, {.task = labelled}, {.task = unlabelled}};
  const int32_t layer0[] = {3, 1, 3, 0, 2, 1};
  const int32_t layer1[] = {0, 1, 2, 1, 0, 1};
  const float weights[] = {1, 1, 1, 1, 1, 1};
  const RoutedLayer layers[] = {{0, layer0, weights}, {1, layer1, weights}};
  counters.AddStep(Epoch(1), rows, {}, layers, {});
  const std::vector<int32_t> kept = counters.TakeKeptRoutes();
  EXPECT_THAT(kept, ElementsAre(3, 1, 0, 1));
  LoadWindow window = counters.Take();
  EXPECT_EQ(window.tasks[unlabelled].prefill_tokens, 1);
  EXPECT_EQ(window.tasks[labelled].prefill_tokens, 1);

  counters.AddTokens(classified, TokenPhase::kPrefill, kept);
  window = counters.Take();
  EXPECT_THAT(window.tasks, ElementsAre(TaskCount{.task = ""}, TaskCount{.task = "code"},
                                        TaskCount{.task = "code", .prefill_tokens = 1, .classified = true}));
  ASSERT_EQ(window.counts.size(), 4u);
  EXPECT_EQ(window.counts[0], (LoadCount{.expert = {0, 1}, .task = classified, .tokens = 1}));
  EXPECT_EQ(window.counts[3], (LoadCount{.expert = {1, 1}, .task = classified, .tokens = 1}));
  EXPECT_THAT(window.samples, ElementsAre(RouteSample{classified, TokenPhase::kPrefill, 1, {3, 1, 0, 1}}));

  // A step that does not tell every layer's choices counts as it is.
  counters.AddStep(Epoch(1), rows, {}, std::span(layers).first(1), {});
  EXPECT_THAT(counters.TakeKeptRoutes(), IsEmpty());
  EXPECT_EQ(counters.Take().tasks[unlabelled].prefill_tokens, 2);
}

// 100 tokens, of which 4 are kept: over 4,000 windows each is kept about 160 times; 60 are five deviations.
TEST(LoadCounters, EveryTokenIsSampledAlike) {
  constexpr int kTokens = 100;
  LoadCounters counters(1, kTokens, 1, 4);
  const RowLabel row{counters.InternTask("a"), TokenPhase::kDecode};
  std::vector<int> kept(kTokens);
  const float weight = 1;
  for (int i = 0; i < 4000; ++i) {
    for (int32_t t = 0; t < kTokens; ++t) {
      const RoutedLayer layer{0, {&t, 1}, {&weight, 1}};
      counters.AddStep(Epoch(1), {&row, 1}, {}, {&layer, 1}, {});
    }
    const LoadWindow window = counters.Take();
    ASSERT_EQ(window.samples.size(), 1u);
    ASSERT_EQ(window.samples[0].experts.size(), 4u);
    for (const int32_t t : window.samples[0].experts) ++kept[t];
  }
  for (const int times : kept) EXPECT_NEAR(times, 160, 62);
}

TEST(LoadCounters, LabelsBeyondTheLimitShareOne) {
  LoadCounters counters(1, 1, 1);
  for (int32_t i = 0; i < LoadCounters::kMaxTasks; ++i) EXPECT_EQ(counters.InternTask("t" + std::to_string(i)), i);
  EXPECT_EQ(counters.InternTask("one more"), LoadCounters::kMaxTasks);
  EXPECT_EQ(counters.InternTask("another"), LoadCounters::kMaxTasks);
  EXPECT_EQ(counters.InternTask("t3"), 3);
  EXPECT_EQ(counters.Take().tasks.back().task, LoadCounters::kOtherTasks);
}

TEST(LoadCounters, TakesBesideTheStepThread_LoseNothing) {
  LoadCounters counters(1, 2, 1);
  const RowLabel row{counters.InternTask("a"), TokenPhase::kDecode};
  constexpr int kSteps = 20000;
  std::thread step([&] {
    const int32_t expert = 1;
    const float weight = 1;
    const RoutedLayer layer{0, {&expert, 1}, {&weight, 1}};
    for (int i = 0; i < kSteps; ++i) counters.AddStep(Epoch(1), {&row, 1}, {}, {&layer, 1}, {.balancedness = 1});
  });
  int64_t tokens = 0;
  double steps = 0;
  while (tokens < kSteps) {
    const LoadWindow window = counters.Take();
    for (const LoadCount& count : window.counts) tokens += count.tokens;
    steps += window.balance[0].balancedness_sum;
  }
  step.join();
  EXPECT_EQ(tokens, kSteps);
  EXPECT_EQ(steps, kSteps);
}

TEST(LoadCounters, RoutesAreKeptOfRowsThatWantThem) {
  LoadCounters counters(2, 8, 2);
  const int32_t task = counters.InternTask("t");
  const RowLabel rows[] = {{.task = task, .keep_routes = true}, {.task = task}, {.task = task, .keep_routes = true}};
  const int32_t first[] = {5, 1, 2, 3, 4, 0};
  const int32_t second[] = {7, 6, 2, 3, 0, 4};
  const float weights[6] = {};
  const RoutedLayer layers[] = {{0, first, weights}, {1, second, weights}};
  counters.AddStep(Epoch(1), rows, {}, layers, {});
  EXPECT_EQ(counters.TakeKeptRoutes(), (std::vector<int32_t>{5, 1, 7, 6, 4, 0, 0, 4}));
  EXPECT_TRUE(counters.TakeKeptRoutes().empty()) << "once";
  counters.AddStep(Epoch(1), rows, {}, std::span(layers).first(1), {});
  EXPECT_TRUE(counters.TakeKeptRoutes().empty()) << "a layer is not told";
}

// A step's choices in arrays: what a GPU would hold.
class FakeGpu final : public RoutedElsewhere {
 public:
  FakeGpu(int layers, int experts, int top_k) : layers_(layers), experts_(experts), top_k_(top_k) {}

  // By layer, [rows][top_k].
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> weights;
  // Routes cannot be had.
  bool fails = false;

  void Count(std::span<const int32_t> cells) override {
    for (int l = 0; l < layers_; ++l) {
      for (size_t pair = 0; pair < ids[l].size(); ++pair) {
        const int32_t cell = cells[pair / top_k_];
        if (cell < 0) continue;
        Cell& of_cell = cells_
                            .try_emplace(cell, Cell{std::vector<uint64_t>(layers_ * experts_),
                                                    std::vector<uint64_t>(layers_ * experts_)})
                            .first->second;
        ++of_cell.tokens[l * experts_ + ids[l][pair]];
        of_cell.gate_mass[l * experts_ + ids[l][pair]] += static_cast<uint64_t>(std::ldexp(weights[l][pair], 32));
      }
    }
  }
  void Ask(std::span<const int32_t> rows) override {
    routes_.clear();
    if (fails) return;
    for (const int32_t row : rows) {
      for (const auto& layer : ids) {
        routes_.insert(routes_.end(), layer.begin() + row * top_k_, layer.begin() + (row + 1) * top_k_);
      }
    }
  }
  std::span<const int32_t> Routes() override { return routes_; }
  std::span<const Counted> Take() override {
    taken_ = std::exchange(cells_, {});
    counted_.clear();
    for (const auto& [cell, of_cell] : taken_) counted_.push_back({cell, of_cell.tokens, of_cell.gate_mass});
    return counted_;
  }

 private:
  struct Cell {
    std::vector<uint64_t> tokens, gate_mass;
  };
  const int layers_, experts_, top_k_;
  std::map<int32_t, Cell> cells_, taken_;
  std::vector<Counted> counted_;
  std::vector<int32_t> routes_;
};

TEST(LoadCounters, RoutesThatCannotBeHadAreNotTold) {
  LoadCounters counters(/*num_layers=*/1, /*num_experts=*/4, /*top_k=*/2, /*sampled_tokens=*/1);
  const int32_t task = counters.InternTask("a");
  FakeGpu gpu(1, 4, 2);
  gpu.ids = {{3, 1}};
  gpu.weights = {{0.5, 0.5}};
  const std::vector<RowLabel> labels = {{.task = task, .keep_routes = true}};
  counters.AddStep(Epoch(1), labels, {}, gpu, {});
  EXPECT_EQ(counters.TakeKeptRoutes(), (std::vector<int32_t>{3, 1}));
  gpu.fails = true;
  gpu.ids = {{0, 2}};
  counters.AddStep(Epoch(1), labels, {}, gpu, {});
  EXPECT_TRUE(counters.TakeKeptRoutes().empty());
  EXPECT_EQ(counters.Take().counts.size(), 4u) << "both steps count";
}

TEST(LoadCounters, StepsCountedElsewhereCountTheSame) {
  constexpr int kLayers = 2, kExperts = 6, kTopK = 2;
  // A sample may be full, or take in every row of a window, of the last step too.
  LoadCounters here(kLayers, kExperts, kTopK, /*sampled_tokens=*/5), counters(kLayers, kExperts, kTopK, 5);
  FakeGpu gpu(kLayers, kExperts, kTopK);
  for (const char* task : {"a", "b"}) EXPECT_EQ(here.InternTask(task), counters.InternTask(task));
  std::minstd_rand random(1);
  for (int step = 0; step < 40; ++step) {
    const int rows = static_cast<int>(random() % 5);
    std::vector<RowLabel> labels;
    std::vector<uint8_t> failed(rows);
    gpu.ids.assign(kLayers, {});
    gpu.weights.assign(kLayers, {});
    for (int row = 0; row < rows; ++row) {
      labels.push_back({.task = static_cast<int32_t>(random() % 2),
                        .phase = static_cast<TokenPhase>(random() % 2),
                        .keep_routes = random() % 9 == 0});
      failed[row] = random() % 4 == 0;
      for (int l = 0; l < kLayers; ++l) {
        const auto first = static_cast<int32_t>(random() % kExperts);
        for (const int32_t e : {first, (first + 1) % kExperts}) {
          gpu.ids[l].push_back(e);
          gpu.weights[l].push_back(static_cast<float>(random() % 8) / 8);
        }
      }
    }
    std::vector<RoutedLayer> layers;
    for (int l = 0; l < kLayers; ++l) layers.push_back({l, gpu.ids[l], gpu.weights[l]});
    here.AddStep(Epoch(1), labels, failed, layers, {.balancedness = 0.5});
    counters.AddStep(Epoch(1), labels, failed, gpu, {.balancedness = 0.5});
    EXPECT_EQ(counters.TakeKeptRoutes(), here.TakeKeptRoutes());
    if (step % 7 != 6) continue;
    // What is left when the GPU's part goes is not lost.
    if (step == 20) counters.Forget(gpu);
    const LoadWindow wanted = here.Take(), got = counters.Take();
    EXPECT_EQ(got.tasks, wanted.tasks);
    EXPECT_EQ(got.counts, wanted.counts);
    EXPECT_EQ(got.samples, wanted.samples);
    EXPECT_EQ(got.balance, wanted.balance);
    EXPECT_FALSE(got.counts.empty());
  }
}

}  // namespace
}  // namespace ballast
