// Timing on the device for benchmarks.
#ifndef BALLAST_KERNELS_CUDA_BENCHMARK_SUPPORT_H_
#define BALLAST_KERNELS_CUDA_BENCHMARK_SUPPORT_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"

namespace ballast {

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds of one call of `enqueue`, recorded on `stream`; `before`, if given, is called ahead of each.
inline double Time(cudaStream_t stream, const std::function<void()>& enqueue, int times,
                   const std::function<void()>& before = nullptr) {
  cudaEvent_t begin, end;
  CheckCuda(cudaEventCreate(&begin));
  CheckCuda(cudaEventCreate(&end));
  std::vector<double> seconds;
  for (int i = 0; i < times + 3; ++i) {
    if (before) before();
    CheckCuda(cudaEventRecord(begin, stream));
    enqueue();
    CheckCuda(cudaEventRecord(end, stream));
    CheckCuda(cudaEventSynchronize(end));
    float ms;
    CheckCuda(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) seconds.push_back(ms / 1e3);
  }
  CheckCuda(cudaEventDestroy(begin));
  CheckCuda(cudaEventDestroy(end));
  return Median(seconds);
}

inline void CheckOk(const absl::Status& status) { BALLAST_CHECK(status.ok()) << status.message(); }

inline double ReadBandwidth(cudaStream_t stream) {
  const size_t bytes = size_t{4} << 30;
  DeviceArray<uint16_t> data(bytes / 2);
  DeviceArray<uint32_t> sink(1);
  CheckCuda(FillUniformBf16(data.data(), data.size(), 1, 1, stream));
  return bytes / Time(
                     stream, [&] { CheckCuda(ReadAll(data.data(), bytes, sink.data(), stream)); }, 10);
}

// Seconds of one of `times` calls enqueue(0), enqueue(1), ... captured in one graph; the median of `replays` replays,
// after others that take `warm_seconds` together: long work makes a GPU clock down to what its power limit allows.
inline double TimeGraph(cudaStream_t stream, int times, int replays, const std::function<void(int)>& enqueue,
                        double warm_seconds = 0) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < times; ++i) enqueue(i);
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < warm_seconds) {
    CheckCuda(cudaGraphLaunch(executable, stream));
    CheckCuda(cudaStreamSynchronize(stream));
  }
  const double seconds = Time(
                             stream, [&] { CheckCuda(cudaGraphLaunch(executable, stream)); }, replays) /
                         times;
  CheckCuda(cudaGraphExecDestroy(executable));
  CheckCuda(cudaGraphDestroy(graph));
  return seconds;
}

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_BENCHMARK_SUPPORT_H_
