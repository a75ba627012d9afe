// A GPU's part in counting load: what LoadCounters asks for of steps whose routes stay in device memory.
#ifndef BALLAST_WORKER_MOE_DEVICE_LOAD_COUNTS_H_
#define BALLAST_WORKER_MOE_DEVICE_LOAD_COUNTS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/moe/count_routes_kernel.h"
#include "worker/moe/load_counters.h"

namespace ballast {

// Counting a step is a kernel behind it on its stream, and another one where routes of single rows are asked for, which
// nobody waits for before Routes. Counts are fetched by Take, on a stream of its own.
//
// Count and Ask are of the step thread; the others of any, not beside another call (LoadCounters sees to it).
// What an error of the GPU leaves uncounted is logged and missing from the counts: steps go on, as far as the GPU does.
class DeviceLoadCounts final : public RoutedElsewhere {
 public:
  // For the GPU that is current, and steps of up to `capacity` rows. ResourceExhausted: device memory, 16 bytes for
  // each expert of each layer, task and phase.
  static absl::StatusOr<std::unique_ptr<DeviceLoadCounts>> Create(int layers, int experts, int top_k, int capacity);
  ~DeviceLoadCounts() override;

  // The step that Count and Routes are asked of next: `routes` stay as they are until the stream's next step.
  void SetStep(const StepRoutes& routes, cudaStream_t stream);

  void Count(std::span<const int32_t> cells) override;
  void Ask(std::span<const int32_t> rows) override;
  std::span<const int32_t> Routes() override;
  std::span<const Counted> Take() override;

 private:
  struct Impl;
  explicit DeviceLoadCounts(std::unique_ptr<Impl> impl);
  absl::Status CountStep(std::span<const int32_t> cells);
  absl::Status AskForRoutes(std::span<const int32_t> rows);
  absl::Status Fetch();

  const std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_DEVICE_LOAD_COUNTS_H_
