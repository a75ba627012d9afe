// Checkpoints of random weights in the shapes of published models, for tests and benchmarks.
#ifndef BALLAST_WORKER_DECODER_RANDOM_CHECKPOINT_H_
#define BALLAST_WORKER_DECODER_RANDOM_CHECKPOINT_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cpu/test_data.h"
#include "proto/base/check.h"
#include "worker/model/checkpoint.h"

namespace ballast {

struct RandomModel {
  std::string name;
  // config.json
  std::string config;
};

inline RandomModel RandomQwen3Moe30B(int layers, int vocab) {
  return {"qwen3-30b-a3b",
          absl::StrCat(R"({"model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 2048, "head_dim": 128,
  "num_attention_heads": 32, "num_key_value_heads": 4, "num_local_experts": 128, "num_experts_per_tok": 8,
  "moe_intermediate_size": 768, "intermediate_size": 6144, "mlp_only_layers": [], "decoder_sparse_step": 1,
  "norm_topk_prob": true, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
  "tie_word_embeddings": false, "attention_bias": false, "use_sliding_window": false, "num_hidden_layers": )",
                       layers, R"(, "vocab_size": )", vocab, "}")};
}

inline RandomModel RandomOlmoe7B(int layers, int vocab) {
  return {"olmoe-7b",
          absl::StrCat(R"({"model_type": "olmoe", "hidden_act": "silu", "hidden_size": 2048, "num_attention_heads": 16,
  "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 1024,
  "norm_topk_prob": false, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 4096,
  "tie_word_embeddings": false, "attention_bias": false, "num_hidden_layers": )",
                       layers, R"(, "vocab_size": )", vocab, "}")};
}

inline RandomModel RandomMixtral8x7B(int layers, int vocab) {
  return {"mixtral-8x7b", absl::StrCat(R"({"model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096,
  "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
  "intermediate_size": 14336, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "max_position_embeddings": 32768,
  "tie_word_embeddings": false, "sliding_window": null, "num_hidden_layers": )",
                                       layers, R"(, "vocab_size": )", vocab, "}")};
}

// Writes config.json and model.safetensors, BF16: norms about 1, matrices so that each product keeps its inputs' size.
// Values repeat after some millions, which no test of shapes minds, and are written as fast as the disk takes them.
inline void WriteRandomCheckpoint(const RandomModel& model, const std::string& dir) {
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/config.json") << model.config;
  const auto config = LoadModelConfig(dir);
  BALLAST_CHECK(config.ok()) << config.status().ToString();
  std::vector<RequiredTensor> tensors;
  const absl::Status listed = ForEachRequiredTensor(*config, [&](const RequiredTensor& tensor) {
    tensors.push_back(tensor);
    return absl::OkStatus();
  });
  BALLAST_CHECK(listed.ok()) << listed.ToString();
  const auto elements = [](const RequiredTensor& tensor) {
    size_t n = 1;
    for (const int64_t size : tensor.shape) n *= size;
    return n;
  };
  std::vector<std::string> entries;
  size_t at = 0;
  for (const RequiredTensor& tensor : tensors) {
    const size_t end = at + 2 * elements(tensor);
    entries.push_back(absl::StrCat("\"", tensor.name, "\":{\"dtype\":\"BF16\",\"shape\":[",
                                   absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", at, ",", end, "]}"));
    at = end;
  }
  std::string header = absl::StrCat("{", absl::StrJoin(entries, ","), "}");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::ofstream file(dir + "/model.safetensors", std::ios::binary);
  const uint64_t length = header.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  // A prime number of values, so that tensors begin at different ones.
  constexpr size_t kValues = 4999999;
  const std::vector<float> normal = internal::RandomFloats(kValues, 1);
  std::vector<uint16_t> values(kValues);
  float written_scale = -1;
  size_t next = 0;
  for (const RequiredTensor& tensor : tensors) {
    const bool norm = tensor.shape.size() == 1;
    const float scale = norm ? 0
                        : tensor.name == "model.embed_tokens.weight"
                            ? 1
                            : 1 / std::sqrt(static_cast<float>(tensor.shape[1]));
    if (scale != written_scale) {
      for (size_t i = 0; i < kValues; ++i)
        values[i] = internal::ToBf16(norm ? 1 + 0.1f * normal[i] : scale * normal[i]);
      written_scale = scale;
    }
    for (size_t left = elements(tensor); left > 0;) {
      const size_t count = std::min(left, kValues - next);
      file.write(reinterpret_cast<const char*>(values.data() + next), static_cast<std::streamsize>(2 * count));
      next = (next + count) % kValues;
      left -= count;
    }
  }
  BALLAST_CHECK(file.good()) << "cannot write " << dir;
}

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_RANDOM_CHECKPOINT_H_
