#include "worker/moe/device_load_counts.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

TEST(DeviceLoadCountsTest, CountsWhatTheHostCounts) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
  constexpr int kLayers = 3, kExperts = 40, kTopK = 4, kCapacity = 300;
  LoadCounters here(kLayers, kExperts, kTopK, /*sampled_tokens=*/5), counters(kLayers, kExperts, kTopK, 5);
  for (const char* task : {"a", "b", "c"}) EXPECT_EQ(here.InternTask(task), counters.InternTask(task));
  cudaStream_t stream;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  auto created = DeviceLoadCounts::Create(kLayers, kExperts, kTopK, kCapacity);
  ASSERT_TRUE(created.ok()) << created.status();
  DeviceLoadCounts& device = **created;
  std::minstd_rand random(1);
  for (int step = 0; step < 12; ++step) {
    const int rows = step == 3 ? 0 : step % 4 == 1 ? kCapacity : 1 + static_cast<int>(random() % 40);
    std::vector<RowLabel> labels;
    std::vector<uint8_t> failed;
    for (int row = 0; row < rows; ++row) {
      labels.push_back({.task = static_cast<int32_t>(random() % 3),
                        .phase = static_cast<TokenPhase>(random() % 2),
                        .keep_routes = random() % 9 == 0});
      failed.push_back(random() % 7 == 0);
    }
    constexpr size_t kStride = size_t{kCapacity} * kTopK;
    std::vector<int32_t> ids(kLayers * kStride, -1);
    std::vector<float> weights(kLayers * kStride);
    for (int l = 0; l < kLayers; ++l) {
      for (int pair = 0; pair < rows * kTopK; ++pair) {
        // Distinct within a row; weights that sums in any order keep exactly.
        ids[l * kStride + pair] = static_cast<int32_t>(random() % (kExperts / kTopK) * kTopK + pair % kTopK);
        weights[l * kStride + pair] = static_cast<float>(random() % 64) / 64;
      }
    }
    const DeviceArray<int32_t> device_ids(ids);
    const DeviceArray<float> device_weights(weights);
    device.SetStep({.layers = kLayers,
                    .rows = rows,
                    .top_k = kTopK,
                    .ids = device_ids.data(),
                    .weights = device_weights.data(),
                    .layer_stride = kStride},
                   stream);
    std::vector<RoutedLayer> layers;
    for (int l = 0; l < kLayers; ++l) {
      layers.push_back({l, std::span(ids).subspan(l * kStride, static_cast<size_t>(rows) * kTopK),
                        std::span(weights).subspan(l * kStride, static_cast<size_t>(rows) * kTopK)});
    }
    here.AddStep(Epoch(1), labels, failed, layers, {});
    counters.AddStep(Epoch(1), labels, failed, device, {});
    EXPECT_EQ(counters.TakeKeptRoutes(), here.TakeKeptRoutes()) << "step " << step;
    CheckCuda(cudaStreamSynchronize(stream));
    if (step % 5 != 4) continue;
    const LoadWindow wanted = here.Take(), got = counters.Take();
    EXPECT_EQ(got.tasks, wanted.tasks);
    EXPECT_EQ(got.counts, wanted.counts);
    EXPECT_EQ(got.samples, wanted.samples);
    EXPECT_FALSE(got.counts.empty());
  }
  counters.Forget(device);
  EXPECT_EQ(counters.Take().counts, here.Take().counts);
  CheckCuda(cudaStreamDestroy(stream));
}

TEST(DeviceLoadCountsTest, AWeightThatIsNoNumberIsNotCounted) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
  LoadCounters counters(/*num_layers=*/1, /*num_experts=*/4, /*top_k=*/2);
  const int32_t task = counters.InternTask("a");
  auto created = DeviceLoadCounts::Create(1, 4, 2, /*capacity=*/2);
  ASSERT_TRUE(created.ok()) << created.status();
  const DeviceArray<int32_t> ids({0, 1, 2, 2});
  const DeviceArray<float> weights({0.25f, 0.75f, NAN, INFINITY});
  cudaStream_t stream;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  (*created)->SetStep(
      {.layers = 1, .rows = 2, .top_k = 2, .ids = ids.data(), .weights = weights.data(), .layer_stride = 4}, stream);
  counters.AddStep(Epoch(1), std::vector<RowLabel>(2, {.task = task}), {}, **created, {});
  const LoadWindow window = counters.Take();
  ASSERT_EQ(window.counts.size(), 2u);
  EXPECT_EQ(window.counts[0].gate_mass, 0.25);
  EXPECT_EQ(window.counts[1].gate_mass, 0.75);
  counters.Forget(**created);
  CheckCuda(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace ballast
