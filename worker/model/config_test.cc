#include "worker/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Real ones, cut to what is read.
constexpr char kOlmoe[] = R"({"architectures": ["OlmoeForCausalLM"], "attention_bias": false, "bos_token_id": 1,
  "clip_qkv": null, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 192, "intermediate_size": 64,
  "max_position_embeddings": 2048, "model_type": "olmoe", "norm_topk_prob": false, "num_attention_heads": 3,
  "num_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 6, "num_key_value_heads": 3, "rms_norm_eps": 1e-05,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": true, "vocab_size": 4096})";
constexpr char kQwen3Moe[] =
    R"({"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "bos_token_id": 151643,
  "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
  "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
  "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
  "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
  "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": 4096, "tie_word_embeddings": false,
  "use_sliding_window": false, "vocab_size": 151936})";
constexpr char kMixtral[] = R"({"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32000})";

// `base` with `patch` (RFC 7396: null removes) applied.
std::string Patched(const char* base, const std::string& patch) {
  nlohmann::json json = nlohmann::json::parse(base);
  json.merge_patch(nlohmann::json::parse(patch));
  return json.dump();
}

TEST(ModelConfig, Olmoe) {
  const auto config = ParseModelConfig(kOlmoe);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, Architecture::kOlmoe);
  EXPECT_EQ(config->qk_norm(), QkNorm::kFull);
  EXPECT_EQ(config->num_layers, 6);
  EXPECT_EQ(config->hidden_size, 192);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->num_experts, 32);
  EXPECT_EQ(config->experts_per_token, 4);
  EXPECT_EQ(config->expert_intermediate_size, 64);
  EXPECT_EQ(config->dense_intermediate_size, 0);
  EXPECT_FALSE(config->norm_topk_prob);
  EXPECT_EQ(config->rms_norm_eps, 1e-5f);
  EXPECT_EQ(config->rope_theta, 10000.0f);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_FALSE(config->clip_qkv.has_value());
  EXPECT_EQ(config->num_moe_layers(), 6);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_EQ(config->bos_token_id, 1);
}

TEST(ModelConfig, Qwen3Moe) {
  const auto config = ParseModelConfig(kQwen3Moe);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, Architecture::kQwen3Moe);
  EXPECT_EQ(config->qk_norm(), QkNorm::kPerHead);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->expert_intermediate_size, 768);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->rope_theta, 1e6f);
}

TEST(ModelConfig, Mixtral) {
  const auto config = ParseModelConfig(kMixtral);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, Architecture::kMixtral);
  EXPECT_EQ(config->qk_norm(), QkNorm::kNone);
  EXPECT_EQ(config->num_experts, 8);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->rope_theta, 1e6f);
}

TEST(ModelConfig, BothGenerationsAreTheSameModel) {
  const auto first = ParseModelConfig(kQwen3Moe);
  const auto second =
      ParseModelConfig(Patched(kQwen3Moe, R"({"rope_theta": null, "rope_scaling": null, "num_experts": null,
    "num_local_experts": 128, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": null})"));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(first->Canonical(), second->Canonical());
}

TEST(ModelConfig, DefaultsAreThoseOfTransformers) {
  const auto config =
      ParseModelConfig(Patched(kMixtral, R"({"rope_theta": null, "rms_norm_eps": null, "hidden_act": null,
    "architectures": null, "eos_token_id": null, "bos_token_id": null, "num_key_value_heads": null})"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_theta, 1e6f);
  EXPECT_EQ(config->rms_norm_eps, 1e-5f);
  EXPECT_EQ(config->num_kv_heads, 32);
  EXPECT_THAT(config->eos_token_ids, ElementsAre());
  EXPECT_FALSE(config->bos_token_id.has_value());
  EXPECT_EQ(ParseModelConfig(Patched(kOlmoe, R"({"rope_parameters": {"rope_theta": null}})"))->rope_theta, 1e4f);
}

TEST(ModelConfig, DenseLayers) {
  const auto by_step = ParseModelConfig(Patched(kQwen3Moe, R"({"num_hidden_layers": 6, "decoder_sparse_step": 2})"));
  ASSERT_TRUE(by_step.ok()) << by_step.status();
  EXPECT_THAT(by_step->moe_layers(), ElementsAre(1, 3, 5));
  EXPECT_EQ(by_step->dense_intermediate_size, 6144);
  const auto by_list = ParseModelConfig(
      Patched(kQwen3Moe, R"({"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3, 0]})"));
  ASSERT_TRUE(by_list.ok()) << by_list.status();
  EXPECT_THAT(by_list->moe_layers(), ElementsAre(1, 5));
}

TEST(ModelConfig, TokenIdsMayBeLists) {
  const auto list = ParseModelConfig(Patched(kQwen3Moe, R"({"eos_token_id": [151645, 151643, 151645]})"));
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_THAT(list->eos_token_ids, ElementsAre(151643, 151645));
  const auto overridden = ParseModelConfig(kQwen3Moe, R"({"eos_token_id": [7, 5], "bos_token_id": 3})");
  ASSERT_TRUE(overridden.ok()) << overridden.status();
  EXPECT_THAT(overridden->eos_token_ids, ElementsAre(5, 7));
  EXPECT_EQ(overridden->bos_token_id, 3);
  const auto kept = ParseModelConfig(kQwen3Moe, R"({"eos_token_id": null})");
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_THAT(kept->eos_token_ids, ElementsAre(151645));
}

TEST(ModelConfig, ClipAndWindowWithoutEffect) {
  EXPECT_EQ(*ParseModelConfig(Patched(kOlmoe, R"({"clip_qkv": 8.0})"))->clip_qkv, 8.0f);
  EXPECT_TRUE(ParseModelConfig(Patched(kMixtral, R"({"sliding_window": 32768})")).ok());
  EXPECT_TRUE(ParseModelConfig(Patched(kQwen3Moe, R"({"rope_scaling": {"rope_type": "default"}})")).ok());
}

struct BadConfig {
  const char* base;
  const char* patch;
  absl::StatusCode code;
  const char* message;
};

TEST(ModelConfig, RefusesByFieldValueAndLimit) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kUnsupported = absl::StatusCode::kUnimplemented;
  const BadConfig kCases[] = {
      {kOlmoe, R"({"model_type": null})", kInvalid, "model_type is missing, want one of olmoe, qwen3_moe, mixtral"},
      {kOlmoe, R"({"model_type": "llama"})", kUnsupported,
       "model_type \"llama\" is not supported, these are: olmoe, qwen3_moe, mixtral"},
      {kOlmoe, R"({"model_type": 3})", kUnsupported, "model_type 3 is not supported"},
      {kOlmoe, R"({"architectures": ["OlmoeForSequenceClassification"]})", kUnsupported,
       "architectures has \"OlmoeForSequenceClassification\", of model_type \"olmoe\" only \"OlmoeForCausalLM\" is "
       "supported"},
      {kOlmoe, R"({"architectures": "OlmoeForCausalLM"})", kInvalid,
       "architectures is \"OlmoeForCausalLM\", want an array"},
      {kOlmoe, R"({"num_hidden_layers": null})", kInvalid, "num_hidden_layers is missing"},
      {kOlmoe, R"({"num_hidden_layers": 0})", kInvalid, "num_hidden_layers is 0, want an integer from 1 to 1024"},
      {kOlmoe, R"({"num_hidden_layers": 1025})", kInvalid, "num_hidden_layers is 1025, want an integer from 1 to 1024"},
      {kOlmoe, R"({"num_hidden_layers": -1})", kInvalid, "num_hidden_layers is -1"},
      {kOlmoe, R"({"num_hidden_layers": 6.0})", kInvalid, "num_hidden_layers is 6.0"},
      {kOlmoe, R"({"num_hidden_layers": "6"})", kInvalid, "num_hidden_layers is \"6\""},
      {kOlmoe, R"({"num_hidden_layers": [6]})", kInvalid, "num_hidden_layers is an array of 1"},
      {kOlmoe, R"({"hidden_size": 18446744073709551615})", kInvalid,
       "hidden_size is 18446744073709551615, want an integer from 1 to 65536"},
      {kOlmoe, R"({"hidden_size": 1e300})", kInvalid, "hidden_size is 1e+300"},
      {kOlmoe, R"({"num_attention_heads": 2000})", kInvalid,
       "num_attention_heads is 2000, want an integer from 1 to 1024"},
      {kOlmoe, R"({"num_key_value_heads": 4})", kInvalid, "num_key_value_heads is 4, want an integer from 1 to 3"},
      {kOlmoe, R"({"num_key_value_heads": 2})", kInvalid,
       "num_key_value_heads is 2, which does not divide num_attention_heads 3"},
      {kOlmoe, R"({"num_attention_heads": 5, "num_key_value_heads": 5})", kInvalid,
       "head_dim is missing and num_attention_heads 5 does not divide hidden_size 192"},
      {kOlmoe, R"({"head_dim": 63})", kInvalid, "head_dim is 63, want an even number from 2 to 1024"},
      {kOlmoe, R"({"head_dim": 4096})", kInvalid, "head_dim is 4096"},
      {kOlmoe, R"({"hidden_size": 65536, "num_attention_heads": 1, "num_key_value_heads": 1})", kInvalid,
       "head_dim is 65536"},
      {kOlmoe, R"({"hidden_size": 3})", kInvalid, "head_dim is 1, want an even number"},
      {kOlmoe, R"({"vocab_size": 5000000})", kInvalid, "vocab_size is 5000000, want an integer from 1 to 4194304"},
      {kOlmoe, R"({"max_position_embeddings": 0})", kInvalid, "max_position_embeddings is 0"},
      {kOlmoe, R"({"num_experts": 5000})", kInvalid, "num_experts is 5000, want an integer from 1 to 4096"},
      {kOlmoe, R"({"num_local_experts": 31})", kInvalid, "num_experts is 32 but num_local_experts is 31"},
      {kMixtral, R"({"num_local_experts": 0})", kInvalid, "num_local_experts is 0"},
      {kOlmoe, R"({"num_experts_per_tok": 33})", kInvalid, "num_experts_per_tok is 33, want an integer from 1 to 32"},
      {kOlmoe, R"({"intermediate_size": 300000})", kInvalid,
       "intermediate_size is 300000, want an integer from 1 to 262144"},
      {kQwen3Moe, R"({"moe_intermediate_size": null})", kInvalid, "moe_intermediate_size is missing"},
      {kQwen3Moe, R"({"decoder_sparse_step": 0})", kInvalid,
       "decoder_sparse_step is 0, want an integer from 1 to 1024"},
      {kQwen3Moe, R"({"decoder_sparse_step": 49})", kInvalid,
       "decoder_sparse_step 49 and mlp_only_layers leave none of the 48 layers"},
      {kQwen3Moe, R"({"mlp_only_layers": [48]})", kInvalid, "mlp_only_layers is 48, want an integer from 0 to 47"},
      {kQwen3Moe, R"({"mlp_only_layers": 3})", kInvalid, "mlp_only_layers is 3, want an array of layers"},
      {kQwen3Moe, R"({"mlp_only_layers": [0], "intermediate_size": null})", kInvalid, "intermediate_size is missing"},
      {kOlmoe, R"({"norm_topk_prob": 1})", kInvalid, "norm_topk_prob is 1, want true or false"},
      {kOlmoe, R"({"rms_norm_eps": 0})", kInvalid, "rms_norm_eps is 0, want a number from 1e-12 to 1"},
      {kOlmoe, R"({"rms_norm_eps": "small"})", kInvalid, "rms_norm_eps is \"small\""},
      {kMixtral, R"({"rope_theta": 0.5})", kInvalid, "rope_theta is 0.5, want a number from 1 to 1e+12"},
      {kOlmoe, R"({"rope_parameters": {"rope_theta": -1}})", kInvalid, "rope_parameters.rope_theta is -1"},
      {kOlmoe, R"({"rope_parameters": 3})", kInvalid, "rope_parameters is 3, want an object"},
      {kOlmoe, R"({"rope_parameters": {"rope_type": "yarn"}})", kUnsupported,
       "rope_parameters.rope_type \"yarn\" is not supported"},
      {kOlmoe, R"({"rope_parameters": {"full_attention": {}}})", kUnsupported, "rope_parameters.full_attention"},
      {kOlmoe, R"({"rope_parameters": {"partial_rotary_factor": 0.5}})", kUnsupported,
       "rope_parameters.partial_rotary_factor 0.5"},
      {kQwen3Moe, R"({"partial_rotary_factor": 0.25})", kUnsupported, "partial_rotary_factor 0.25 is not supported"},
      {kQwen3Moe, R"({"rope_scaling": {"type": "linear", "factor": 2}})", kUnsupported,
       "rope_scaling.type \"linear\" is not supported"},
      {kQwen3Moe, R"({"rope_scaling": {"rope_type": "yarn"}})", kUnsupported, "rope_scaling.rope_type \"yarn\""},
      {kQwen3Moe, R"({"use_sliding_window": true})", kUnsupported,
       "sliding_window is 4096, below max_position_embeddings 40960"},
      {kQwen3Moe, R"({"use_sliding_window": true, "sliding_window": 0})", kInvalid, "sliding_window is 0"},
      {kMixtral, R"({"sliding_window": 4096})", kUnsupported,
       "sliding_window is 4096, below max_position_embeddings 32768"},
      {kMixtral, R"({"hidden_act": "gelu"})", kUnsupported, "hidden_act \"gelu\" is not supported, only \"silu\" is"},
      {kMixtral, R"({"quantization_config": {"bits": 4}})", kUnsupported, "quantized checkpoints are not supported"},
      {kOlmoe, R"({"clip_qkv": 0})", kInvalid, "clip_qkv is 0"},
      {kOlmoe, R"({"eos_token_id": 4096})", kInvalid, "eos_token_id is 4096, want an integer from 0 to 4095"},
      {kOlmoe, R"({"eos_token_id": [2, -1]})", kInvalid, "eos_token_id is -1"},
      {kOlmoe, R"({"bos_token_id": "x"})", kInvalid, "bos_token_id is \"x\""},
  };
  for (const BadConfig& c : kCases) {
    const auto config = ParseModelConfig(Patched(c.base, c.patch));
    ASSERT_FALSE(config.ok()) << c.patch;
    EXPECT_EQ(config.status().code(), c.code) << c.patch << " " << config.status();
    EXPECT_THAT(config.status().message(), HasSubstr(c.message)) << c.patch;
    EXPECT_THAT(config.status().message(), HasSubstr("config.json: ")) << c.patch;
  }
}

TEST(ModelConfig, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", "{", "[]", "null", "3", "{\"a\":1,\"a\":2}", "\xFF"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseModelConfig(text).status())) << text;
    EXPECT_TRUE(absl::IsInvalidArgument(ParseModelConfig(kOlmoe, text).status())) << text;
    EXPECT_THAT(ParseModelConfig(kOlmoe, text).status().message(), HasSubstr("generation_config.json: ")) << text;
  }
  EXPECT_THAT(ParseModelConfig(std::string(100, '[')).status().message(), HasSubstr("nested deeper than 32"));
}

}  // namespace
}  // namespace ballast
