#include "worker/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "proto/base/test_data.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct TestTensor {
  std::string dtype = "BF16";
  std::vector<int64_t> shape;
  std::string data;
};
using TestTensors = std::map<std::string, TestTensor>;

// A .safetensors file of `tensors`, in the map's order.
std::string Serialize(const TestTensors& tensors) {
  std::string header = "{", data;
  for (const auto& [name, tensor] : tensors) {
    absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", name, "\":{\"dtype\":\"", tensor.dtype,
                    "\",\"shape\":[", absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", data.size(), ",",
                    data.size() + tensor.data.size(), "]}");
    data += tensor.data;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

constexpr char kMixtralConfig[] =
    R"({"model_type": "mixtral", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2,
  "num_key_value_heads": 1, "vocab_size": 16, "max_position_embeddings": 32, "num_local_experts": 3,
  "num_experts_per_tok": 2, "intermediate_size": 4, "eos_token_id": 2})";

// A folder with a tiny model of distinct bytes.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(const std::string& config = kMixtralConfig)
      : dir_(std::filesystem::path(testing::TempDir()) /
             testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    Write("config.json", config);
    uint16_t next = 1;
    EXPECT_TRUE(ForEachRequiredTensor(*ParseModelConfig(config), [&](const RequiredTensor& want) {
                  TestTensor tensor{.shape = want.shape};
                  int64_t elements = 1;
                  for (const int64_t dimension : want.shape) elements *= dimension;
                  for (int64_t i = 0; i < elements; ++i, ++next) {
                    tensor.data.append(reinterpret_cast<const char*>(&next), sizeof(next));
                  }
                  tensors[want.name] = tensor;
                  return absl::OkStatus();
                }).ok());
  }
  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(dir_ / name, std::ios::binary) << bytes;
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() const {
    Write("model.safetensors", Serialize(tensors));
    return Checkpoint::Open(dir_.string());
  }
  // In place, in the file that is open.
  void FlipByteOf(const std::string& tensor) const {
    const std::string bytes = Serialize(tensors);
    const size_t at = bytes.find(tensors.at(tensor).data);
    std::fstream file(dir_ / "model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(bytes[at] ^ 1));
  }
  // One shard a tensor name's last letter's parity: any split will do.
  absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSharded() const {
    std::filesystem::remove(dir_ / "model.safetensors");
    std::array<TestTensors, 2> shards;
    std::string index;
    for (const auto& [name, tensor] : tensors) {
      const size_t shard = name.size() % 2;
      shards[shard][name] = tensor;
      absl::StrAppend(&index, index.empty() ? "" : ",", "\"", name, "\":\"shard-", shard, ".safetensors\"");
    }
    for (size_t i = 0; i < shards.size(); ++i) Write(absl::StrCat("shard-", i, ".safetensors"), Serialize(shards[i]));
    Write("model.safetensors.index.json", absl::StrCat("{\"weight_map\":{", index, "}}"));
    return Checkpoint::Open(dir_.string());
  }

  TestTensors tensors;

 private:
  const std::filesystem::path dir_;
};

TEST(Checkpoint, ReadsMixtralExpertsInSlotLayout) {
  TinyCheckpoint files;
  const auto checkpoint = files.Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->expert_bytes(), 3u * 4 * 8 * 2);
  EXPECT_EQ((*checkpoint)->RouterName(1), "model.layers.1.block_sparse_moe.gate.weight");
  std::vector<std::byte> slot((*checkpoint)->expert_bytes());
  ASSERT_TRUE((*checkpoint)->ReadExpert({.layer = 1, .expert = 2}, slot).ok());
  const std::string prefix = "model.layers.1.block_sparse_moe.experts.2.";
  const std::string want = files.tensors[prefix + "w1.weight"].data + files.tensors[prefix + "w3.weight"].data +
                           files.tensors[prefix + "w2.weight"].data;
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(slot.data()), slot.size()), want);
  EXPECT_EQ(*(*checkpoint)->ExpertChecksum({.layer = 1, .expert = 2}), ComputeExpertChecksum(slot));
  EXPECT_NE(*(*checkpoint)->ExpertChecksum({.layer = 1, .expert = 1}), ComputeExpertChecksum(slot));
}

TEST(Checkpoint, RefusesExpertsThatAreNot) {
  const auto checkpoint = TinyCheckpoint().Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::vector<std::byte> slot((*checkpoint)->expert_bytes());
  const struct {
    ExpertId id;
    const char* message;
  } kCases[] = {{{2, 0}, "layer is 2, the model has MoE layers 0 to 1"},
                {{-1, 0}, "layer is -1"},
                {{0, 3}, "expert is 3, the model has experts 0 to 2"},
                {{0, -1}, "expert is -1"}};
  for (const auto& c : kCases) {
    EXPECT_THAT((*checkpoint)->ReadExpert(c.id, slot).message(), HasSubstr(c.message));
    EXPECT_THAT((*checkpoint)->ExpertChecksum(c.id).status().message(), HasSubstr(c.message));
  }
  slot.pop_back();
  EXPECT_EQ((*checkpoint)->ReadExpert({0, 0}, slot).message(), "out has 191 bytes, an expert 192");
}

TEST(Checkpoint, ShardsAreTheSameModel) {
  TinyCheckpoint files;
  const auto single = files.Open();
  ASSERT_TRUE(single.ok()) << single.status();
  const std::string fingerprint = (*single)->fingerprint();
  EXPECT_EQ(fingerprint.size(), 32u);
  const auto sharded = files.OpenSharded();
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  EXPECT_EQ((*sharded)->fingerprint(), fingerprint);
  EXPECT_EQ((*sharded)->tensors().size(), files.tensors.size());
}

TEST(Checkpoint, FingerprintSeesEveryChange) {
  TinyCheckpoint files;
  const std::string original = (*files.Open())->fingerprint();
  files.tensors["model.norm.weight"].data[0] ^= 1;
  EXPECT_NE((*files.Open())->fingerprint(), original);
  files.tensors["model.norm.weight"].data[0] ^= 1;
  EXPECT_EQ((*files.Open())->fingerprint(), original);
  files.Write("config.json",
              absl::StrReplaceAll(kMixtralConfig, {{"\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 1"}}));
  EXPECT_NE((*files.Open())->fingerprint(), original);
}

TEST(Checkpoint, WhatChangesAfterTheFingerprintDoesNotVerifyItself) {
  TinyCheckpoint files;
  const auto checkpoint = files.Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ExpertId id{.layer = 1, .expert = 2};
  (*checkpoint)->fingerprint();
  std::vector<std::byte> slot((*checkpoint)->expert_bytes());
  ASSERT_TRUE((*checkpoint)->ReadExpert(id, slot).ok());
  EXPECT_EQ(*(*checkpoint)->ExpertChecksum(id), ComputeExpertChecksum(slot));
  files.FlipByteOf("model.layers.1.block_sparse_moe.experts.2.w3.weight");
  ASSERT_TRUE((*checkpoint)->ReadExpert(id, slot).ok());
  EXPECT_NE(*(*checkpoint)->ExpertChecksum(id), ComputeExpertChecksum(slot));
}

TEST(Checkpoint, NamesTheTensorThatDoesNotFit) {
  const std::string expert = "model.layers.1.block_sparse_moe.experts.0.w2.weight";
  const struct {
    std::string tensor;
    std::function<void(TestTensors&)> change;
    std::string got_and_want;
  } kCases[] = {
      {expert, [&](auto& t) { t.erase(expert); }, "is missing, want BF16 [8, 4]"},
      {expert,
       [&](auto& t) {
         t[expert].shape = {4, 8};
       },
       "is BF16 [4, 8], want BF16 [8, 4]"},
      {expert, [&](auto& t) { t[expert].shape = {32}; }, "is BF16 [32], want BF16 [8, 4]"},
      {expert, [&](auto& t) { t[expert].dtype = "F16"; }, "is F16 [8, 4], want BF16 [8, 4]"},
      {"lm_head.weight", [](auto& t) { t.erase("lm_head.weight"); }, "is missing, want BF16, F16 or F32 [16, 8]"},
      {"model.norm.weight", [](auto& t) { t["model.norm.weight"].dtype = "I16"; },
       "is I16 [8], want BF16, F16 or F32 [8]"},
  };
  for (const auto& c : kCases) {
    TinyCheckpoint files;
    c.change(files.tensors);
    const auto checkpoint = files.Open();
    ASSERT_FALSE(checkpoint.ok()) << c.tensor;
    EXPECT_TRUE(absl::IsInvalidArgument(checkpoint.status())) << checkpoint.status();
    EXPECT_THAT(checkpoint.status().message(), HasSubstr(absl::StrCat("tensor \"", c.tensor, "\" ", c.got_and_want)));
  }
}

TEST(Checkpoint, OtherTensorsMayBeF32OrF16) {
  TinyCheckpoint files;
  TestTensor& norm = files.tensors["model.norm.weight"];
  norm.dtype = "F32";
  norm.data.assign(32, '\0');
  const float value = 1.5f;
  std::memcpy(norm.data.data() + 4, &value, sizeof(value));
  files.tensors["model.embed_tokens.weight"].dtype = "F16";
  const auto checkpoint = files.Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::vector<float> out(8);
  ASSERT_TRUE(ReadAsFloat(*(*checkpoint)->Find("model.norm.weight"), out).ok());
  EXPECT_EQ(out[1], 1.5f);
}

TEST(Checkpoint, Qwen3MoeWithDenseLayersAndBiases) {
  TinyCheckpoint files(
      R"({"model_type": "qwen3_moe", "num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 6, "vocab_size": 16, "max_position_embeddings": 32, "num_experts": 2,
    "num_experts_per_tok": 1, "intermediate_size": 10, "moe_intermediate_size": 4, "mlp_only_layers": [1],
    "attention_bias": true, "tie_word_embeddings": true})");
  const auto checkpoint = files.Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->RouterName(1), "model.layers.2.mlp.gate.weight");
  EXPECT_EQ(files.tensors.at("model.layers.1.mlp.gate_proj.weight").shape, (std::vector<int64_t>{10, 8}));
  EXPECT_EQ(files.tensors.at("model.layers.1.self_attn.q_proj.bias").shape, (std::vector<int64_t>{12}));
  EXPECT_EQ(files.tensors.at("model.layers.1.self_attn.k_norm.weight").shape, (std::vector<int64_t>{6}));
  EXPECT_EQ(files.tensors.count("lm_head.weight"), 0u);
  std::vector<std::byte> slot((*checkpoint)->expert_bytes());
  ASSERT_TRUE((*checkpoint)->ReadExpert({.layer = 1, .expert = 0}, slot).ok());
  EXPECT_EQ(std::memcmp(slot.data(), files.tensors.at("model.layers.2.mlp.experts.0.gate_proj.weight").data.data(), 64),
            0);
}

// transformers itself wrote these, one of each architecture.
TEST(Checkpoint, AsTransformersSavesThem) {
  for (const char* name : {"olmoe", "qwen3moe", "mixtral"}) {
    const auto checkpoint = Checkpoint::Open(absl::StrCat("testdata/", name, "-tiny"));
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  }
}

// Every tensor of a real checkpoint is known, and its sizes are those of its README.
void CheckReal(const std::string& dir, Architecture architecture, int32_t layers, int32_t experts, int32_t hidden,
               const std::string& fingerprint) {
  const auto checkpoint = Checkpoint::Open(dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelConfig& config = (*checkpoint)->config();
  EXPECT_EQ(config.architecture, architecture);
  EXPECT_EQ(config.num_moe_layers(), layers);
  EXPECT_EQ(config.num_experts, experts);
  EXPECT_EQ(config.hidden_size, hidden);
  EXPECT_EQ(config.expert_intermediate_size, 64);
  EXPECT_EQ(config.rope_theta, 10000.0f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{2});
  EXPECT_EQ(config.bos_token_id, 1);
  size_t required = 0;
  EXPECT_TRUE(ForEachRequiredTensor(config, [&](const RequiredTensor&) {
                ++required;
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ((*checkpoint)->tensors().size(), required);
  std::vector<std::byte> slot((*checkpoint)->expert_bytes());
  const ExpertId last{.layer = layers - 1, .expert = experts - 1};
  ASSERT_TRUE((*checkpoint)->ReadExpert(last, slot).ok());
  EXPECT_EQ(*(*checkpoint)->ExpertChecksum(last), ComputeExpertChecksum(slot));
  // Pinned: a placement in a store names it, so it must not change from one release to the next.
  EXPECT_EQ((*checkpoint)->fingerprint(), fingerprint);
}

TEST(Checkpoint, Olmoe9m) {
  CheckReal("testdata/olmoe-9m", Architecture::kOlmoe, 6, 32, 192, "030164a641b3d9d10267bbc9a3ca76b6");
}

TEST(Checkpoint, Qwen3Moe28m) {
  BALLAST_REQUIRE_SHARED(dir, "model/qwen3moe-28m");
  CheckReal(dir, Architecture::kQwen3Moe, 8, 64, 256, "5e531d43c56637dcb3ff759e6207fc6e");
}

}  // namespace
}  // namespace ballast
