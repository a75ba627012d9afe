#include "worker/model/checkpoint.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/base/check.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// Names of the mixture's parts; everything else is called the same in the three architectures.
struct MoeNames {
  const char* block;
  const char* gate;
  const char* up;
  const char* down;
};
MoeNames NamesOf(Architecture architecture) {
  if (architecture == Architecture::kMixtral) return {"block_sparse_moe", "w1", "w3", "w2"};
  return {"mlp", "gate_proj", "up_proj", "down_proj"};
}

absl::Status CheckTensor(const RequiredTensor& want, const TensorView& got) {
  const bool dtype_ok =
      got.dtype == DType::kBF16 || (!want.expert && (got.dtype == DType::kF16 || got.dtype == DType::kF32));
  if (dtype_ok && std::equal(got.shape.begin(), got.shape.end(), want.shape.begin(), want.shape.end())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(want.name), " is ", Describe(got.dtype, got.shape),
                                                 ", want ", want.expert ? "BF16" : "BF16, F16 or F32", " [",
                                                 absl::StrJoin(want.shape, ", "), "]"));
}

// Calls body(i) for i in [0, n), on several threads.
void ForEach(size_t n, const std::function<void(size_t)>& body) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < n; i = next++) body(i);
  };
  // More threads than this only wait for memory.
  constexpr unsigned kMaxThreads = 16;
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < std::min(std::thread::hardware_concurrency(), kMaxThreads); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}

// `checksums`: of the tensors.
std::string ComputeFingerprint(const ModelConfig& config, std::span<const TensorView> tensors,
                               std::span<const Checksum> checksums) {
  // Lengths first: a name cannot imitate the fields after it.
  std::string text = absl::StrCat("ballast-checkpoint-1\n", config.Canonical(), "\n");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorView& tensor = tensors[i];
    absl::StrAppend(&text, tensor.name.size(), " ", std::string(tensor.name), " ", Describe(tensor.dtype, tensor.shape),
                    " ", checksums[i].hex(), "\n");
  }
  return ComputeChecksum(std::as_bytes(std::span(text))).hex();
}

}  // namespace

absl::Status ForEachRequiredTensor(const ModelConfig& config,
                                   const std::function<absl::Status(const RequiredTensor&)>& visit) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.num_kv_heads} * config.head_dim;
  const MoeNames names = NamesOf(config.architecture);
  const auto need = [&](std::string name, std::vector<int64_t> shape, bool expert = false) {
    return visit({.name = std::move(name), .shape = std::move(shape), .expert = expert});
  };
  // gate, up and down of a gated feed-forward network below `prefix`.
  const auto need_ffn = [&](const std::string& prefix, const MoeNames& n, int64_t inner, bool expert) -> absl::Status {
    BALLAST_RETURN_IF_ERROR(need(absl::StrCat(prefix, n.gate, ".weight"), {inner, hidden}, expert));
    BALLAST_RETURN_IF_ERROR(need(absl::StrCat(prefix, n.up, ".weight"), {inner, hidden}, expert));
    return need(absl::StrCat(prefix, n.down, ".weight"), {hidden, inner}, expert);
  };

  BALLAST_RETURN_IF_ERROR(need("model.embed_tokens.weight", {config.vocab_size, hidden}));
  BALLAST_RETURN_IF_ERROR(need("model.norm.weight", {hidden}));
  if (!config.tie_word_embeddings) BALLAST_RETURN_IF_ERROR(need("lm_head.weight", {config.vocab_size, hidden}));
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::string attention = absl::StrCat(prefix, "self_attn.");
    BALLAST_RETURN_IF_ERROR(need(absl::StrCat(prefix, "input_layernorm.weight"), {hidden}));
    BALLAST_RETURN_IF_ERROR(need(absl::StrCat(prefix, "post_attention_layernorm.weight"), {hidden}));
    const std::array<std::pair<const char*, std::pair<int64_t, int64_t>>, 4> projections = {
        {{"q_proj", {q_rows, hidden}},
         {"k_proj", {kv_rows, hidden}},
         {"v_proj", {kv_rows, hidden}},
         {"o_proj", {hidden, q_rows}}}};
    for (const auto& [name, shape] : projections) {
      BALLAST_RETURN_IF_ERROR(need(absl::StrCat(attention, name, ".weight"), {shape.first, shape.second}));
      if (config.attention_bias) BALLAST_RETURN_IF_ERROR(need(absl::StrCat(attention, name, ".bias"), {shape.first}));
    }
    if (config.qk_norm() != QkNorm::kNone) {
      const bool full = config.qk_norm() == QkNorm::kFull;
      BALLAST_RETURN_IF_ERROR(need(absl::StrCat(attention, "q_norm.weight"), {full ? q_rows : config.head_dim}));
      BALLAST_RETURN_IF_ERROR(need(absl::StrCat(attention, "k_norm.weight"), {full ? kv_rows : config.head_dim}));
    }
    if (!config.layer_is_moe[layer]) {
      BALLAST_RETURN_IF_ERROR(need_ffn(absl::StrCat(prefix, "mlp."), names, config.dense_intermediate_size, false));
      continue;
    }
    const std::string block = absl::StrCat(prefix, names.block, ".");
    BALLAST_RETURN_IF_ERROR(need(absl::StrCat(block, "gate.weight"), {config.num_experts, hidden}));
    for (int32_t expert = 0; expert < config.num_experts; ++expert) {
      BALLAST_RETURN_IF_ERROR(
          need_ffn(absl::StrCat(block, "experts.", expert, "."), names, config.expert_intermediate_size, true));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir) {
  BALLAST_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(dir));
  BALLAST_ASSIGN_OR_RETURN(TensorStore tensors, TensorStore::Open(dir));
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(std::move(config), std::move(tensors)));
  if (absl::Status status = checkpoint->CheckTensors(); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(dir, ": ", status.message()));
  }
  return checkpoint;
}

absl::Status Checkpoint::CheckTensors() {
  std::vector<std::span<const std::byte>> parts;
  BALLAST_RETURN_IF_ERROR(ForEachRequiredTensor(config_, [&](const RequiredTensor& want) -> absl::Status {
    const auto got = tensors_.Find(want.name);
    if (!got.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(want.name), " is missing, want ",
                                                     want.expert ? "BF16" : "BF16, F16 or F32", " [",
                                                     absl::StrJoin(want.shape, ", "), "]"));
    }
    BALLAST_RETURN_IF_ERROR(CheckTensor(want, *got));
    if (want.expert) parts.push_back(got->data);
    return absl::OkStatus();
  }));
  // Visited expert by expert: gate, up, down.
  for (size_t i = 0; i < parts.size(); i += 3) experts_.push_back({parts[i], parts[i + 1], parts[i + 2]});
  BALLAST_CHECK(experts_.size() == static_cast<size_t>(config_.num_moe_layers()) * config_.num_experts);
  expert_bytes_ = 3 * experts_.front().gate.size();
  return absl::OkStatus();
}

std::string Checkpoint::RouterName(int32_t moe_layer) const {
  const std::vector<int32_t> layers = config_.moe_layers();
  BALLAST_CHECK(moe_layer >= 0 && moe_layer < static_cast<int32_t>(layers.size())) << "moe_layer=" << moe_layer;
  return absl::StrCat("model.layers.", layers[moe_layer], ".", NamesOf(config_.architecture).block, ".gate.weight");
}

absl::StatusOr<Checkpoint::ExpertViews> Checkpoint::FindExpert(ExpertId id) const {
  if (id.layer < 0 || id.layer >= config_.num_moe_layers()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer is ", id.layer, ", the model has MoE layers 0 to ", config_.num_moe_layers() - 1));
  }
  if (id.expert < 0 || id.expert >= config_.num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert is ", id.expert, ", the model has experts 0 to ", config_.num_experts - 1));
  }
  return experts_[static_cast<size_t>(id.layer) * config_.num_experts + id.expert];
}

absl::Status Checkpoint::ReadExpert(ExpertId id, std::span<std::byte> out) const {
  BALLAST_ASSIGN_OR_RETURN(const ExpertViews expert, FindExpert(id));
  if (out.size() != expert_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat("out has ", out.size(), " bytes, an expert ", expert_bytes_));
  }
  std::byte* to = out.data();
  for (const std::span<const std::byte> part : {expert.gate, expert.up, expert.down}) {
    std::memcpy(to, part.data(), part.size());
    to += part.size();
  }
  return absl::OkStatus();
}

absl::StatusOr<Checksum> Checkpoint::ExpertChecksum(ExpertId id) const {
  BALLAST_RETURN_IF_ERROR(FindExpert(id).status());
  return sums().experts[static_cast<size_t>(id.layer) * config_.num_experts + id.expert];
}

const std::string& Checkpoint::fingerprint() const { return sums().fingerprint; }

const Checkpoint::Sums& Checkpoint::sums() const {
  std::call_once(sums_once_, [this] {
    const std::span<const TensorView> tensors = tensors_.tensors();
    std::map<const std::byte*, size_t> tensor_at;
    for (size_t i = 0; i < tensors.size(); ++i) {
      // An empty one may begin where another does.
      if (!tensors[i].data.empty()) tensor_at[tensors[i].data.data()] = i;
    }
    // An expert's tensors are read for both its sum and theirs while they are in memory.
    std::vector<Checksum> checksums(tensors.size());
    std::vector<uint8_t> done(tensors.size());
    sums_.experts.resize(experts_.size());
    ForEach(experts_.size(), [&](size_t i) {
      const ExpertViews& expert = experts_[i];
      for (const std::span<const std::byte> part : {expert.gate, expert.up, expert.down}) {
        const size_t tensor = tensor_at.at(part.data());
        checksums[tensor] = ComputeChecksum(part);
        done[tensor] = 1;
      }
      sums_.experts[i] = ComputeExpertChecksum({expert.gate, expert.up, expert.down});
    });
    ForEach(tensors.size(), [&](size_t i) {
      if (!done[i]) checksums[i] = ComputeChecksum(tensors[i].data);
    });
    sums_.fingerprint = ComputeFingerprint(config_, tensors, checksums);
  });
  return sums_;
}

}  // namespace ballast
