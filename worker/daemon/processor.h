// What of a worker depends on where it computes: the CPU, or one GPU.
#ifndef BALLAST_WORKER_DAEMON_PROCESSOR_H_
#define BALLAST_WORKER_DAEMON_PROCESSOR_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "worker/daemon/config.h"
#include "worker/decoder/kv_cache.h"
#include "worker/experts/expert_source.h"
#include "worker/experts/expert_store.h"
#include "worker/migrate/device_moves.h"
#include "worker/model/checkpoint.h"
#include "worker/moe/load_counters.h"
#include "worker/step/step_model.h"

namespace ballast {

// In the order in which they stand on each other.
struct Processor {
  // What the others need; destroyed last.
  std::shared_ptr<void> base;
  std::unique_ptr<KvCache> kv_cache;
  std::unique_ptr<ExpertStore> store;
  std::unique_ptr<StepModel> step_model;
  // Of `base`: memory of the host for a step's logits, MaxLogitRows() rows of them; and the step thread's pool.
  std::span<float> logits;
  ThreadPool* pool = nullptr;

  // Names the device, kernels and libraries: equal fingerprints mean equal bits.
  std::string fingerprint;
  // Where slots are not in this process's memory: brings weights into them, and copies a replica to host memory. Of
  // `base`; null: plain memory.
  DeviceMoves* moves = nullptr;
  std::function<absl::Status(std::span<const std::byte> slot, std::span<std::byte> host)> copy_out;
  // Makes the GPU current in the calling thread; empty: there is none.
  std::function<void()> enter_thread;
  // What entering a view of several members may take.
  absl::Duration connect_timeout = absl::Seconds(5);
};

// `checkpoint`, `source` and `counters` (which knows the tasks' homes) outlive the result. Errors: what cannot be made
// of the checkpoint, ResourceExhausted.
absl::StatusOr<Processor> OpenCpu(const WorkerConfig& config, const Checkpoint& checkpoint, const ExpertSource& source,
                                  LoadCounters& counters);
// On GPU `index`. Unimplemented: this program was built without CUDA; Unavailable: no such GPU, or no driver.
absl::StatusOr<Processor> OpenCuda(const WorkerConfig& config, int index, const Checkpoint& checkpoint,
                                   const ExpertSource& source, LoadCounters& counters);

// Floats of Processor::logits.
size_t LogitFloats(const WorkerConfig& config, const Checkpoint& checkpoint);
// Of the model, for DefaultSlots and DefaultKvBlocks.
MemoryNeeds NeedsOf(const Checkpoint& checkpoint, size_t kv_block_bytes, int64_t available_bytes);

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_PROCESSOR_H_
