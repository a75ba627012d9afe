// What Ballast needs to know of a Hugging Face config.json.
#ifndef BALLAST_WORKER_MODEL_CONFIG_H_
#define BALLAST_WORKER_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ballast {

enum class Architecture { kOlmoe, kQwen3Moe, kMixtral };
// model_type: "olmoe", "qwen3_moe", "mixtral".
std::string_view ArchitectureName(Architecture architecture);

// Which RMSNorm the queries and keys pass before the rotary positions.
enum class QkNorm {
  kNone,     // mixtral
  kPerHead,  // qwen3_moe: each head by itself, weights [head_dim]
  kFull,     // olmoe: the whole projection, weights [num_heads * head_dim] and [num_kv_heads * head_dim]
};

// Within the limits of ParseModelConfig: no product of three of these overflows int64_t. The activation is SiLU and the
// rotary embedding the unscaled one over the whole head; everything else is refused.
struct ModelConfig {
  Architecture architecture = Architecture::kOlmoe;
  // Decoder layers, dense ones included.
  int32_t num_layers = 0;
  int32_t hidden_size = 0;
  int32_t num_heads = 0;
  // Divides num_heads.
  int32_t num_kv_heads = 0;
  // Even.
  int32_t head_dim = 0;
  int32_t vocab_size = 0;
  // Positions that the model was trained for.
  int32_t max_positions = 0;
  int32_t num_experts = 0;
  int32_t experts_per_token = 0;
  int32_t expert_intermediate_size = 0;
  // Of dense layers; 0 where there are none.
  int32_t dense_intermediate_size = 0;
  // Whether the chosen experts' weights are divided by their sum.
  bool norm_topk_prob = false;
  float rms_norm_eps = 0;
  float rope_theta = 0;
  // The output projection is the embedding.
  bool tie_word_embeddings = false;
  // q, k, v and o projections have biases.
  bool attention_bias = false;
  // Queries, keys and values are clamped to [-clip_qkv, clip_qkv] (olmoe), after the norms.
  std::optional<float> clip_qkv;
  // By decoder layer; at least one is true.
  std::vector<bool> layer_is_moe;
  // generation_config.json's where that has some, else config.json's. May be empty.
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;

  QkNorm qk_norm() const;
  int32_t num_moe_layers() const;
  // The decoder layer of each MoE layer, ascending.
  std::vector<int32_t> moe_layers() const;
  // Everything that changes what the model computes, as text: equal for a checkpoint saved by either transformers
  // generation. Part of the fingerprint. Token ids that end or start a text are not in it.
  std::string Canonical() const;
};

// Parses config.json and, where there is one, generation_config.json. Both transformers generations: rope_theta and
// rope_scaling or rope_parameters; num_experts or num_local_experts. A field that is absent has transformers' default
// where that is harmless. Errors name field, value and limit. InvalidArgument: not JSON, a field missing, of a wrong
// type or out of bounds. Unimplemented: another architecture, activation, rotary scaling, a sliding window in use, a
// quantized model.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::optional<std::string_view> generation_config_json = {});

// Reads both files of a checkpoint's folder; generation_config.json may be absent. Errors name the file too.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_CONFIG_H_
