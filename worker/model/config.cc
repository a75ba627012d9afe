#include "worker/model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"
#include "worker/model/mapped_file.h"

namespace ballast {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

// Far above any model known, low enough that no product of sizes overflows.
constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxHidden = 1 << 16;
constexpr int32_t kMaxHeads = 1024;
constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kMaxVocab = 1 << 22;
constexpr int32_t kMaxPositions = 1 << 24;
constexpr int32_t kMaxExperts = 4096;
constexpr int32_t kMaxIntermediate = 1 << 18;

struct ArchitectureInfo {
  Architecture architecture;
  std::string_view model_type;
  std::string_view class_name;
  double default_rope_theta;
};
constexpr std::array<ArchitectureInfo, 3> kArchitectures = {{
    {Architecture::kOlmoe, "olmoe", "OlmoeForCausalLM", 1e4},
    {Architecture::kQwen3Moe, "qwen3_moe", "Qwen3MoeForCausalLM", 1e4},
    {Architecture::kMixtral, "mixtral", "MixtralForCausalLM", 1e6},
}};

absl::StatusOr<ArchitectureInfo> ParseArchitecture(const JsonFields& fields) {
  std::vector<std::string> known;
  for (const ArchitectureInfo& info : kArchitectures) known.emplace_back(info.model_type);
  const nlohmann::json* type = fields.Find("model_type");
  if (type == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("model_type is missing, want one of ", absl::StrJoin(known, ", ")));
  }
  const auto* info = std::find_if(kArchitectures.begin(), kArchitectures.end(), [&](const ArchitectureInfo& candidate) {
    return type->is_string() && type->get_ref<const std::string&>() == candidate.model_type;
  });
  if (info == kArchitectures.end()) {
    return absl::UnimplementedError(
        absl::StrCat("model_type ", QuoteJson(*type), " is not supported, these are: ", absl::StrJoin(known, ", ")));
  }
  if (const nlohmann::json* classes = fields.Find("architectures"); classes != nullptr) {
    if (!classes->is_array()) return WrongValue("architectures", *classes, "an array of class names");
    for (const nlohmann::json& name : *classes) {
      if (!name.is_string() || name.get_ref<const std::string&>() != info->class_name) {
        return absl::UnimplementedError(absl::StrCat("architectures has ", QuoteJson(name), ", of model_type ",
                                                     QuoteJson(*type), " only \"", std::string(info->class_name),
                                                     "\" is supported"));
      }
    }
  }
  return *info;
}

// What would make the model compute something that Ballast does not.
absl::Status RefuseUnsupported(const JsonFields& fields, const ArchitectureInfo& info, int32_t max_positions) {
  if (const nlohmann::json* act = fields.Find("hidden_act"); act != nullptr && *act != "silu") {
    return absl::UnimplementedError(
        absl::StrCat("hidden_act ", QuoteJson(*act), " is not supported, only \"silu\" is"));
  }
  if (fields.Find("quantization_config") != nullptr) {
    return absl::UnimplementedError("quantization_config is given: quantized checkpoints are not supported");
  }
  // Qwen3-MoE has a switch for the window and gives its size always; Mixtral's is on when given.
  bool window_on = info.architecture == Architecture::kMixtral;
  if (info.architecture == Architecture::kQwen3Moe) {
    BALLAST_ASSIGN_OR_RETURN(window_on, fields.Bool("use_sliding_window", false));
  }
  if (window_on && fields.Find("sliding_window") != nullptr) {
    BALLAST_ASSIGN_OR_RETURN(const int32_t window,
                             fields.Int("sliding_window", 1, std::numeric_limits<int32_t>::max()));
    if (window < max_positions) {
      return absl::UnimplementedError(absl::StrCat("sliding_window is ", window, ", below max_position_embeddings ",
                                                   max_positions, ": windowed attention is not supported"));
    }
  }
  return absl::OkStatus();
}

// rope_scaling of the first generation and rope_parameters of the second describe the same things.
absl::Status RefuseScaledRope(const char* name, const nlohmann::json& rope) {
  if (!rope.is_object()) return WrongValue(name, rope, "an object");
  const JsonFields fields(rope);
  for (const char* key : {"rope_type", "type"}) {
    const nlohmann::json* type = fields.Find(key);
    if (type != nullptr && *type != "default" && *type != "none") {
      return absl::UnimplementedError(
          absl::StrCat(name, ".", key, " ", QuoteJson(*type), " is not supported, only \"default\" is"));
    }
  }
  for (const auto& [key, value] : rope.items()) {
    if (value.is_object()) {
      return absl::UnimplementedError(
          absl::StrCat(name, ".", key, ": rotary parameters by kind of layer are not supported"));
    }
  }
  return absl::OkStatus();
}

absl::Status RefusePartialRope(const JsonFields& fields) {
  const nlohmann::json* factor = fields.Find("partial_rotary_factor");
  if (factor == nullptr || *factor == 1.0) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(fields.Name("partial_rotary_factor"), " ", QuoteJson(*factor), " is not supported, only 1 is"));
}

absl::StatusOr<double> ParseRopeTheta(const JsonFields& fields, const ArchitectureInfo& info) {
  constexpr double kMin = 1.0, kMax = 1e12;
  BALLAST_RETURN_IF_ERROR(RefusePartialRope(fields));
  if (const nlohmann::json* scaling = fields.Find("rope_scaling"); scaling != nullptr) {
    BALLAST_RETURN_IF_ERROR(RefuseScaledRope("rope_scaling", *scaling));
  }
  if (const nlohmann::json* parameters = fields.Find("rope_parameters"); parameters != nullptr) {
    BALLAST_RETURN_IF_ERROR(RefuseScaledRope("rope_parameters", *parameters));
    const JsonFields rope(*parameters, "rope_parameters.");
    BALLAST_RETURN_IF_ERROR(RefusePartialRope(rope));
    if (rope.Find("rope_theta") != nullptr) return rope.Double("rope_theta", kMin, kMax);
  }
  return fields.Double("rope_theta", kMin, kMax, info.default_rope_theta);
}

// num_experts in one generation is num_local_experts in the other.
absl::StatusOr<int32_t> ParseNumExperts(const JsonFields& fields) {
  const char* name = fields.Find("num_experts") != nullptr ? "num_experts" : "num_local_experts";
  BALLAST_ASSIGN_OR_RETURN(const int32_t experts, fields.Int(name, 1, kMaxExperts));
  if (const nlohmann::json* other = fields.Find("num_local_experts"); other != nullptr && *other != experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_experts is ", experts, " but num_local_experts is ", QuoteJson(*other)));
  }
  return experts;
}

// Qwen3MoeDecoderLayer's rule.
absl::StatusOr<std::vector<bool>> ParseMoeLayers(const JsonFields& fields, Architecture architecture,
                                                 int32_t num_layers) {
  std::vector<bool> is_moe(num_layers, true);
  if (architecture != Architecture::kQwen3Moe) return is_moe;
  BALLAST_ASSIGN_OR_RETURN(const int32_t step, fields.Int("decoder_sparse_step", 1, kMaxLayers, 1));
  for (int32_t layer = 0; layer < num_layers; ++layer) is_moe[layer] = (layer + 1) % step == 0;
  if (const nlohmann::json* dense = fields.Find("mlp_only_layers"); dense != nullptr) {
    if (!dense->is_array()) return WrongValue("mlp_only_layers", *dense, "an array of layers");
    for (const nlohmann::json& value : *dense) {
      BALLAST_ASSIGN_OR_RETURN(const int32_t layer, JsonInt("mlp_only_layers", value, 0, num_layers - 1));
      is_moe[layer] = false;
    }
  }
  if (std::find(is_moe.begin(), is_moe.end(), true) == is_moe.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "decoder_sparse_step ", step, " and mlp_only_layers leave none of the ", num_layers, " layers with experts"));
  }
  return is_moe;
}

// An id, or an array of them.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const JsonFields& fields, const char* field, int32_t vocab_size) {
  std::vector<int32_t> ids;
  const nlohmann::json* value = fields.Find(field);
  if (value == nullptr) return ids;
  const std::vector<nlohmann::json> values =
      value->is_array() ? value->get<std::vector<nlohmann::json>>() : std::vector<nlohmann::json>{*value};
  for (const nlohmann::json& one : values) {
    BALLAST_ASSIGN_OR_RETURN(const int32_t id, JsonInt(field, one, 0, vocab_size - 1));
    ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

absl::Status ReadSpecialTokens(const JsonFields& fields, ModelConfig& config) {
  BALLAST_ASSIGN_OR_RETURN(std::vector<int32_t> eos, ParseTokenIds(fields, "eos_token_id", config.vocab_size));
  if (!eos.empty()) config.eos_token_ids = std::move(eos);
  if (fields.Find("bos_token_id") != nullptr) {
    BALLAST_ASSIGN_OR_RETURN(config.bos_token_id, fields.Int("bos_token_id", 0, config.vocab_size - 1));
  }
  return absl::OkStatus();
}

absl::StatusOr<nlohmann::json> ParseObject(std::string_view text) {
  BALLAST_ASSIGN_OR_RETURN(nlohmann::json json, ParseJson(text));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("wants a JSON object, got ", QuoteJson(json)));
  }
  return json;
}

absl::StatusOr<ModelConfig> ParseConfigJson(std::string_view text) {
  BALLAST_ASSIGN_OR_RETURN(const nlohmann::json json, ParseObject(text));
  const JsonFields fields(json);
  BALLAST_ASSIGN_OR_RETURN(const ArchitectureInfo info, ParseArchitecture(fields));
  const bool qwen = info.architecture == Architecture::kQwen3Moe;

  ModelConfig config;
  config.architecture = info.architecture;
  BALLAST_ASSIGN_OR_RETURN(config.num_layers, fields.Int("num_hidden_layers", 1, kMaxLayers));
  BALLAST_ASSIGN_OR_RETURN(config.hidden_size, fields.Int("hidden_size", 1, kMaxHidden));
  BALLAST_ASSIGN_OR_RETURN(config.num_heads, fields.Int("num_attention_heads", 1, kMaxHeads));
  BALLAST_ASSIGN_OR_RETURN(config.num_kv_heads,
                           fields.Int("num_key_value_heads", 1, config.num_heads, config.num_heads));
  if (config.num_heads % config.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_key_value_heads is ", config.num_kv_heads,
                                                   ", which does not divide num_attention_heads ", config.num_heads));
  }
  if (fields.Find("head_dim") == nullptr && config.hidden_size % config.num_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim is missing and num_attention_heads ", config.num_heads,
                                                   " does not divide hidden_size ", config.hidden_size));
  }
  BALLAST_ASSIGN_OR_RETURN(config.head_dim,
                           fields.Int("head_dim", 2, kMaxHeadDim, config.hidden_size / config.num_heads));
  if (config.head_dim < 2 || config.head_dim > kMaxHeadDim || config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", config.head_dim, ", want an even number from 2 to ", kMaxHeadDim));
  }
  BALLAST_ASSIGN_OR_RETURN(config.vocab_size, fields.Int("vocab_size", 1, kMaxVocab));
  BALLAST_ASSIGN_OR_RETURN(config.max_positions, fields.Int("max_position_embeddings", 1, kMaxPositions));
  BALLAST_RETURN_IF_ERROR(RefuseUnsupported(fields, info, config.max_positions));
  BALLAST_ASSIGN_OR_RETURN(config.num_experts, ParseNumExperts(fields));
  BALLAST_ASSIGN_OR_RETURN(config.experts_per_token, fields.Int("num_experts_per_tok", 1, config.num_experts));
  BALLAST_ASSIGN_OR_RETURN(config.expert_intermediate_size,
                           fields.Int(qwen ? "moe_intermediate_size" : "intermediate_size", 1, kMaxIntermediate));
  BALLAST_ASSIGN_OR_RETURN(config.layer_is_moe, ParseMoeLayers(fields, info.architecture, config.num_layers));
  if (config.num_moe_layers() < config.num_layers) {
    BALLAST_ASSIGN_OR_RETURN(config.dense_intermediate_size, fields.Int("intermediate_size", 1, kMaxIntermediate));
  }
  if (info.architecture == Architecture::kMixtral) {
    // Neither is configurable: MixtralTopKRouter always renormalises, MixtralAttention has no bias.
    config.norm_topk_prob = true;
  } else {
    BALLAST_ASSIGN_OR_RETURN(config.norm_topk_prob, fields.Bool("norm_topk_prob", false));
    BALLAST_ASSIGN_OR_RETURN(config.attention_bias, fields.Bool("attention_bias", false));
  }
  BALLAST_ASSIGN_OR_RETURN(const double eps, fields.Double("rms_norm_eps", 1e-12, 1, qwen ? 1e-6 : 1e-5));
  config.rms_norm_eps = static_cast<float>(eps);
  BALLAST_ASSIGN_OR_RETURN(const double theta, ParseRopeTheta(fields, info));
  config.rope_theta = static_cast<float>(theta);
  BALLAST_ASSIGN_OR_RETURN(config.tie_word_embeddings, fields.Bool("tie_word_embeddings", false));
  if (info.architecture == Architecture::kOlmoe && fields.Find("clip_qkv") != nullptr) {
    BALLAST_ASSIGN_OR_RETURN(const double clip, fields.Double("clip_qkv", 1e-6, 1e6));
    config.clip_qkv = static_cast<float>(clip);
  }
  BALLAST_RETURN_IF_ERROR(ReadSpecialTokens(fields, config));
  return config;
}

absl::Status InFile(const char* file, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(file, ": ", status.message()));
}

}  // namespace

std::string_view ArchitectureName(Architecture architecture) {
  return kArchitectures[static_cast<size_t>(architecture)].model_type;
}

QkNorm ModelConfig::qk_norm() const {
  switch (architecture) {
    case Architecture::kOlmoe:
      return QkNorm::kFull;
    case Architecture::kQwen3Moe:
      return QkNorm::kPerHead;
    case Architecture::kMixtral:
      break;
  }
  return QkNorm::kNone;
}

int32_t ModelConfig::num_moe_layers() const {
  return static_cast<int32_t>(std::count(layer_is_moe.begin(), layer_is_moe.end(), true));
}

std::vector<int32_t> ModelConfig::moe_layers() const {
  std::vector<int32_t> layers;
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    if (layer_is_moe[layer]) layers.push_back(layer);
  }
  return layers;
}

std::string ModelConfig::Canonical() const {
  // %a: a float's exact value.
  return absl::StrFormat(
      "%s layers=%d moe=%s hidden=%d heads=%d kv_heads=%d head_dim=%d vocab=%d positions=%d experts=%d top_k=%d "
      "intermediate=%d dense_intermediate=%d norm_topk=%d eps=%a theta=%a tied=%d bias=%d clip=%a",
      std::string(ArchitectureName(architecture)), num_layers, absl::StrJoin(moe_layers(), ","), hidden_size, num_heads,
      num_kv_heads, head_dim, vocab_size, max_positions, num_experts, experts_per_token, expert_intermediate_size,
      dense_intermediate_size, norm_topk_prob, rms_norm_eps, rope_theta, tie_word_embeddings, attention_bias,
      clip_qkv.value_or(0.0f));
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::optional<std::string_view> generation_config_json) {
  auto config = ParseConfigJson(config_json);
  if (!config.ok()) return InFile("config.json", config.status());
  if (generation_config_json.has_value()) {
    auto generation = ParseObject(*generation_config_json);
    if (!generation.ok()) return InFile("generation_config.json", generation.status());
    if (absl::Status status = ReadSpecialTokens(JsonFields(*generation), *config); !status.ok()) {
      return InFile("generation_config.json", status);
    }
  }
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  BALLAST_ASSIGN_OR_RETURN(const MappedFile config,
                           MappedFile::Open(absl::StrCat(dir, "/config.json"), kMaxConfigBytes));
  const auto generation = MappedFile::Open(absl::StrCat(dir, "/generation_config.json"), kMaxConfigBytes);
  if (!generation.ok() && !absl::IsNotFound(generation.status())) return generation.status();
  auto parsed = ParseModelConfig(config.text(), generation.ok() ? std::optional(generation->text()) : std::nullopt);
  if (!parsed.ok()) return absl::Status(parsed.status().code(), absl::StrCat(dir, "/", parsed.status().message()));
  return parsed;
}

}  // namespace ballast
