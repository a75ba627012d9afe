#include "worker/daemon/model_parts.h"

#include <unistd.h>

#include <fstream>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/fingerprint.h"
#include "proto/base/flags.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/step/cpu_step_model.h"

namespace ballast {
namespace {

int64_t AvailableMemory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  for (int64_t kib = 0; file >> key >> kib; std::getline(file, unit)) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
}

v1::GroupRole RoleOf(const std::string& role) {
  if (role == "prefill") return v1::GROUP_ROLE_PREFILL;
  return role == "decode" ? v1::GROUP_ROLE_DECODE : v1::GROUP_ROLE_MIXED;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelParts>> OpenModel(const WorkerConfig& config, Clock& clock) {
  auto parts = std::make_unique<ModelParts>();
  BALLAST_ASSIGN_OR_RETURN(parts->checkpoint, Checkpoint::Open(config.model));
  BALLAST_ASSIGN_OR_RETURN(parts->tokenizer, Tokenizer::Load(config.model));
  if (!parts->tokenizer->handles_text()) {
    Log(Severity::kWarning, "requests need token ids: the tokenizer handles no text",
        {{"why", parts->tokenizer->why_ids_only()}});
  }
  const ModelConfig& model = parts->checkpoint->config();
  if (parts->tokenizer->vocab_size() > model.vocab_size) {
    // Text would become ids that the model has no embedding of.
    return absl::InvalidArgumentError(absl::StrCat(config.model, ": the tokenizer has ids up to ",
                                                   parts->tokenizer->vocab_size() - 1, ", the model's vocab_size is ",
                                                   model.vocab_size));
  }
  parts->pool = std::make_unique<ThreadPool>(config.compute_threads);
  BALLAST_ASSIGN_OR_RETURN(parts->decoder,
                           Decoder::Create(*parts->checkpoint, *parts->pool, {.max_rows = config.capacity}));
  parts->counters = std::make_unique<LoadCounters>(model.num_moe_layers(), model.num_experts, model.experts_per_token,
                                                   config.route_samples);
  BALLAST_ASSIGN_OR_RETURN(
      parts->step_model,
      MakeCpuStepModel(*parts->decoder, *parts->pool,
                       {.combine = config.combine == "exact" ? CombineMode::kExact : CombineMode::kFast,
                        .capacity = config.capacity,
                        .tasks = parts->counters.get()}));
  const KvCache::Shape shape = parts->decoder->kv_shape();
  BALLAST_ASSIGN_OR_RETURN(const auto one_block, KvCache::Create(shape, 1));
  const MemoryNeeds needs{.experts = model.num_moe_layers() * model.num_experts,
                          .expert_bytes = static_cast<int64_t>(parts->checkpoint->expert_bytes()),
                          .kv_block_bytes = static_cast<int64_t>(one_block->block_bytes()),
                          .kv_blocks_per_request = KvCache::BlocksFor(model.max_positions),
                          .available_bytes = AvailableMemory()};
  const int kv_blocks = config.kv_blocks > 0 ? config.kv_blocks : DefaultKvBlocks(needs, config.max_running);
  BALLAST_ASSIGN_OR_RETURN(parts->kv_cache, KvCache::Create(shape, kv_blocks));
  parts->source = std::make_unique<CheckpointExperts>(*parts->checkpoint);
  const int slots = config.slots > 0 ? config.slots : DefaultSlots(needs, config.staging_slots);
  BALLAST_ASSIGN_OR_RETURN(
      parts->store,
      ExpertStore::Create(*parts->source, {.worker = config.name,
                                           .capacity = {.slots = slots, .staging_slots = config.staging_slots}}));
  BALLAST_ASSIGN_OR_RETURN(parts->batcher,
                           Batcher::Create({.max_rows = config.capacity,
                                            .max_logit_rows = config.capacity,
                                            .max_running = config.max_running,
                                            .max_waiting = config.max_waiting,
                                            .max_positions = model.max_positions},
                                           model.vocab_size, *parts->kv_cache, *parts->counters, clock));
  Log(Severity::kInfo, "model opened",
      {{"model", config.model_name},
       {"architecture", ArchitectureName(model.architecture)},
       {"experts", needs.experts},
       {"slots", slots},
       {"kv_blocks", kv_blocks},
       {"kernels", KernelFingerprint()}});
  return parts;
}

v1::Hello MakeHello(const WorkerConfig& config, const ModelParts& parts) {
  const ModelConfig& model = parts.checkpoint->config();
  v1::Hello hello;
  hello.set_worker(config.name);
  hello.set_group(config.group);
  hello.set_role(RoleOf(config.role));
  v1::ModelIdentity& identity = *hello.mutable_model();
  identity.set_name(config.model_name);
  identity.set_fingerprint(parts.checkpoint->fingerprint());
  identity.set_architecture(std::string(ArchitectureName(model.architecture)));
  identity.set_num_moe_layers(model.num_moe_layers());
  identity.set_num_experts(model.num_experts);
  identity.set_experts_per_token(model.experts_per_token);
  identity.set_hidden_size(model.hidden_size);
  identity.set_expert_intermediate_size(model.expert_intermediate_size);
  identity.set_expert_bytes(static_cast<int64_t>(parts.checkpoint->expert_bytes()));
  hello.set_kernel_fingerprint(absl::StrCat(KernelFingerprint(), "/", parts.decoder->fingerprint()));
  hello.set_combine(config.combine == "exact" ? v1::COMBINE_MODE_EXACT : v1::COMBINE_MODE_FAST);
  hello.set_slots(parts.store->capacity().slots);
  hello.set_staging_slots(parts.store->capacity().staging_slots);
  hello.set_speed(static_cast<uint32_t>(config.speed));
  hello.set_node(config.node);
  std::random_device random;
  hello.set_report_stream((uint64_t{random()} << 32) | random() | 1);
  hello.set_version(Version());
  return hello;
}

}  // namespace ballast
