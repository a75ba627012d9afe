#include <cuda_runtime_api.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/checksum.h"
#include "kernels/cuda/status.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "worker/daemon/processor.h"
#include "worker/decoder/device_decoder.h"
#include "worker/experts/device_copier.h"
#include "worker/experts/device_slots.h"
#include "worker/moe/device_moe_executor.h"
#include "worker/step/device_step_model.h"
#include "worker/transport/nccl/communicator.h"

namespace ballast {
namespace {

// A communicator's set-up and the first use of the libraries take seconds.
constexpr absl::Duration kConnectTimeout = absl::Seconds(30);

// Sums of experts in device memory, on a stream of the lowest priority.
class Summer {
 public:
  static absl::StatusOr<std::unique_ptr<Summer>> Create(size_t bytes) {
    std::unique_ptr<Summer> summer(new Summer);
    int least = 0, greatest = 0;
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "checksums"));
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithPriority(&summer->stream_, cudaStreamNonBlocking, least), "checksums"));
    const size_t workspace = ChecksumExpertWorkspaceBytes(bytes);
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&summer->workspace_, workspace), "checksums"));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemset(summer->workspace_, 0, workspace), "checksums"));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&summer->sum_, 2 * sizeof(uint64_t)), "checksums"));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaDeviceSynchronize(), "checksums"));
    return summer;
  }
  ~Summer() {
    cudaFree(workspace_);
    cudaFree(sum_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::StatusOr<Checksum> Sum(std::span<const std::byte> bytes) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    BALLAST_RETURN_IF_ERROR(
        ChecksumExpert(bytes.data(), bytes.size(), static_cast<uint64_t*>(sum_), workspace_, stream_));
    uint64_t sum[2];
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(sum, sum_, sizeof(sum), cudaMemcpyDeviceToHost, stream_), "a checksum"));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), "a checksum"));
    return Checksum{.low = sum[0], .high = sum[1]};
  }

 private:
  Summer() = default;

  Mutex mu_;
  cudaStream_t stream_ = nullptr;
  void* workspace_ = nullptr;
  void* sum_ = nullptr;
};

// Threads that read logits beside the step thread's own: more of them find the memory's bandwidth used.
constexpr int kMostThreads = 8;

struct CudaBase {
  explicit CudaBase(int threads) : pool(threads) {}
  ThreadPool pool;
  // Of the slots; nothing without NCCL, which no group of one needs.
  std::optional<NcclMemory> memory;
  std::unique_ptr<Summer> summer;
  std::unique_ptr<DeviceDecoder> decoder;
  std::unique_ptr<DeviceCopier> copier;
  std::optional<PinnedMemory> staging, logits;
  std::unique_ptr<DeviceMoves> moves;
};

}  // namespace

absl::StatusOr<Processor> OpenCuda(const WorkerConfig& config, int index, const Checkpoint& checkpoint,
                                   const ExpertSource& source, LoadCounters& counters) {
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(index), absl::StrCat("--device cuda:", index)));
  cudaDeviceProp properties;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, index), "the GPU"));
  const bool exact = config.combine == "exact";
  Processor out;
  auto base = std::make_shared<CudaBase>(std::min(config.compute_threads, kMostThreads));
  BALLAST_ASSIGN_OR_RETURN(base->decoder,
                           DeviceDecoder::Create(checkpoint, {.max_rows = config.capacity, .exact = exact}));
  size_t available = 0, total = 0;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&available, &total), "the GPU's memory"));
  const MemoryNeeds needs = NeedsOf(checkpoint, base->decoder->kv_block_bytes(), static_cast<int64_t>(available));
  const int kv_blocks = config.kv_blocks > 0 ? config.kv_blocks : DefaultKvBlocks(needs, config.max_running);
  BALLAST_ASSIGN_OR_RETURN(out.kv_cache, base->decoder->CreateKvCache(kv_blocks));

  const size_t expert_bytes = checkpoint.expert_bytes();
  DeviceSlotsOptions options{.slots = config.slots > 0 ? config.slots : DefaultSlots(needs, config.staging_slots),
                             .slot_bytes = expert_bytes};
  auto memory = NcclMemory::Allocate(DeviceSlots::StrideBytes(expert_bytes) * options.slots);
  if (memory.ok()) {
    base->memory.emplace(*std::move(memory));
    options.memory = base->memory->bytes().data();
  } else if (absl::IsResourceExhausted(memory.status())) {
    return memory.status();
  } else {
    Log(Severity::kWarning, "no NCCL: this worker can serve alone, not in a group", {{"status", memory.status()}});
  }
  if (expert_bytes % 64 == 0 && expert_bytes >= 256) {
    BALLAST_ASSIGN_OR_RETURN(base->summer, Summer::Create(expert_bytes));
    options.checksum = [summer = base->summer.get()](std::span<const std::byte> bytes) { return summer->Sum(bytes); };
  }
  const int slot_count = options.slots;
  BALLAST_ASSIGN_OR_RETURN(auto made_slots, DeviceSlots::Create(std::move(options)));
  const DeviceSlots* const slots = made_slots.get();
  BALLAST_ASSIGN_OR_RETURN(
      out.store,
      ExpertStore::Create(
          source, {.worker = config.name, .capacity = {.slots = slot_count, .staging_slots = config.staging_slots}},
          std::move(made_slots)));

  out.enter_thread = [index] { cudaSetDevice(index); };
  BALLAST_ASSIGN_OR_RETURN(base->copier, DeviceCopier::Create());
  BALLAST_ASSIGN_OR_RETURN(PinnedMemory staging, PinnedMemory::Allocate(expert_bytes));
  base->staging.emplace(std::move(staging));
  base->moves = std::make_unique<DeviceMoves>(
      *base->copier, out.enter_thread,
      [store = out.store.get()] {
        const auto table = store->in_force();
        return table == nullptr ? Placement{} : table->placement();
      },
      base->staging->bytes(), DeviceSlots::StrideBytes(expert_bytes), Clock::Real());
  out.moves = base->moves.get();
  out.copy_out = [slots](std::span<const std::byte> slot, std::span<std::byte> host) {
    return slots->CopyOut(slot, host);
  };
  BALLAST_ASSIGN_OR_RETURN(
      out.step_model,
      MakeDeviceStepModel(*base->decoder, *slots, base->moves.get(),
                          {.capacity = config.capacity,
                           .combine = exact ? CombineMode::kExact : CombineMode::kFast,
                           .wait_limit = absl::Seconds(config.step_timeout_seconds),
                           .shared_slots = base->memory.has_value() ? base->memory->bytes() : std::span<std::byte>(),
                           .tasks = &counters}));
  const size_t floats = LogitFloats(config, checkpoint);
  BALLAST_ASSIGN_OR_RETURN(PinnedMemory logits, PinnedMemory::Allocate(floats * sizeof(float)));
  base->logits.emplace(std::move(logits));
  out.logits = {reinterpret_cast<float*>(base->logits->bytes().data()), floats};
  out.pool = &base->pool;
  out.fingerprint = absl::StrCat("cuda/", properties.name, "/", base->decoder->fingerprint());
  out.connect_timeout = kConnectTimeout;
  out.base = std::move(base);
  return out;
}

}  // namespace ballast
