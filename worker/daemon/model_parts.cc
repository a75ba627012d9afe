#include "worker/daemon/model_parts.h"

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/release.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

v1::GroupRole RoleOf(const std::string& role) {
  if (role == "prefill") return v1::GROUP_ROLE_PREFILL;
  return role == "decode" ? v1::GROUP_ROLE_DECODE : v1::GROUP_ROLE_MIXED;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelParts>> OpenModel(const WorkerConfig& config, Clock& clock,
                                                      std::function<void(const Classification&)> classified) {
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
  parts->counters = std::make_unique<LoadCounters>(model.num_moe_layers(), model.num_experts, model.experts_per_token,
                                                   config.route_samples);
  parts->source = std::make_unique<CheckpointExperts>(*parts->checkpoint);
  BALLAST_ASSIGN_OR_RETURN(const Device device, ParseDevice(config.device));
  BALLAST_ASSIGN_OR_RETURN(parts->processor,
                           device.cuda
                               ? OpenCuda(config, device.index, *parts->checkpoint, *parts->source, *parts->counters)
                               : OpenCpu(config, *parts->checkpoint, *parts->source, *parts->counters));
  if (config.classify_tasks > 0) {
    parts->classifier =
        std::make_unique<TaskClassifier>(model.num_moe_layers(), model.num_experts, model.experts_per_token,
                                         config.classify_tasks, std::move(classified));
  }
  BALLAST_ASSIGN_OR_RETURN(parts->batcher,
                           Batcher::Create({.max_rows = config.capacity,
                                            .max_logit_rows = MaxLogitRows(config),
                                            .max_running = config.max_running,
                                            .max_waiting = config.max_waiting,
                                            .max_positions = model.max_positions},
                                           model.vocab_size, *parts->processor.kv_cache, *parts->counters, clock,
                                           parts->classifier.get(), parts->processor.pool));
  Log(Severity::kInfo, "model opened",
      {{"model", config.model_name},
       {"architecture", ArchitectureName(model.architecture)},
       {"experts", model.num_moe_layers() * model.num_experts},
       {"device", config.device},
       {"slots", parts->processor.store->capacity().slots},
       {"slot_bytes", parts->processor.store->expert_bytes()},
       {"kv_blocks", parts->processor.kv_cache->num_blocks()},
       {"kernels", parts->processor.fingerprint}});
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
  hello.set_kernel_fingerprint(parts.processor.fingerprint);
  hello.set_combine(config.combine == "exact" ? v1::COMBINE_MODE_EXACT : v1::COMBINE_MODE_FAST);
  hello.set_slots(parts.processor.store->capacity().slots);
  hello.set_staging_slots(parts.processor.store->capacity().staging_slots);
  hello.set_speed(static_cast<uint32_t>(config.speed));
  hello.set_node(config.node);
  std::random_device random;
  hello.set_report_stream((uint64_t{random()} << 32) | random() | 1);
  hello.set_version(Version());
  hello.set_classifies_tasks(parts.classifier != nullptr);
  return hello;
}

}  // namespace ballast
