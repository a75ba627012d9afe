#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/fingerprint.h"
#include "proto/base/status_macros.h"
#include "worker/daemon/memory_limit.h"
#include "worker/daemon/processor.h"
#include "worker/decoder/decoder.h"
#include "worker/step/cpu_step_model.h"

namespace ballast {
namespace {

struct CpuBase {
  explicit CpuBase(int threads) : pool(threads) {}
  ThreadPool pool;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<float[]> logits;
};

}  // namespace

MemoryNeeds NeedsOf(const Checkpoint& checkpoint, size_t kv_block_bytes, int64_t available_bytes) {
  const ModelConfig& model = checkpoint.config();
  return {.experts = model.num_moe_layers() * model.num_experts,
          .expert_bytes = static_cast<int64_t>(checkpoint.expert_bytes()),
          .kv_block_bytes = static_cast<int64_t>(kv_block_bytes),
          .kv_blocks_per_request = KvCache::BlocksFor(model.max_positions),
          .available_bytes = available_bytes};
}

size_t LogitFloats(const WorkerConfig& config, const Checkpoint& checkpoint) {
  return static_cast<size_t>(MaxLogitRows(config)) * checkpoint.config().vocab_size;
}

absl::StatusOr<Processor> OpenCpu(const WorkerConfig& config, const Checkpoint& checkpoint, const ExpertSource& source,
                                  LoadCounters& counters) {
  Processor out;
  auto base = std::make_shared<CpuBase>(config.compute_threads);
  BALLAST_ASSIGN_OR_RETURN(base->decoder, Decoder::Create(checkpoint, base->pool, {.max_rows = config.capacity}));
  const KvCache::Shape shape = base->decoder->kv_shape();
  BALLAST_ASSIGN_OR_RETURN(const auto one_block, KvCache::Create(shape, 1));
  const size_t floats = LogitFloats(config, checkpoint);
  // Pages that no step has written to yet are not there: they are taken off what is left for slots and KV blocks.
  const auto logit_bytes = static_cast<int64_t>(floats * sizeof(float));
  const int64_t available = std::max<int64_t>(AvailableMemoryBytes() - logit_bytes, 0);
  base->logits = std::make_unique_for_overwrite<float[]>(floats);
  const MemoryNeeds needs = NeedsOf(checkpoint, one_block->block_bytes(), available);
  const int kv_blocks = config.kv_blocks > 0 ? config.kv_blocks : DefaultKvBlocks(needs, config.max_running);
  BALLAST_ASSIGN_OR_RETURN(out.kv_cache, KvCache::Create(shape, kv_blocks));
  const int slots = config.slots > 0 ? config.slots : DefaultSlots(needs, config.staging_slots);
  BALLAST_ASSIGN_OR_RETURN(
      out.store, ExpertStore::Create(source, {.worker = config.name,
                                              .capacity = {.slots = slots, .staging_slots = config.staging_slots}}));
  BALLAST_ASSIGN_OR_RETURN(
      out.step_model, MakeCpuStepModel(*base->decoder, base->pool,
                                       {.combine = config.combine == "exact" ? CombineMode::kExact : CombineMode::kFast,
                                        .capacity = config.capacity,
                                        .tasks = &counters}));
  out.logits = {base->logits.get(), floats};
  out.pool = &base->pool;
  out.fingerprint = absl::StrCat(KernelFingerprint(), "/", base->decoder->fingerprint());
  out.base = std::move(base);
  return out;
}

}  // namespace ballast
