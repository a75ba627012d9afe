#include "worker/decoder/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/attention.h"
#include "kernels/cpu/work.h"
#include "kernels/elementwise.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "worker/decoder/tiled_matmul.h"

namespace ballast {
namespace {

// Rows that one thread takes at a time: the norms' and projections' rows stay in cache between them.
constexpr int kBlockRows = 32;

absl::StatusOr<std::vector<float>> ReadTensor(const Checkpoint& checkpoint, const std::string& name) {
  BALLAST_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Find(name));
  std::vector<float> values(tensor.num_elements());
  BALLAST_RETURN_IF_ERROR(ReadAsFloat(tensor, values));
  return values;
}

// Several matrices with the same inputs as one, outputs after outputs.
absl::StatusOr<std::unique_ptr<TiledMatmul>> ReadMatmul(const Checkpoint& checkpoint,
                                                        std::initializer_list<std::string> names, int inputs,
                                                        int threads) {
  std::vector<float> weights;
  for (const std::string& name : names) {
    BALLAST_ASSIGN_OR_RETURN(const std::vector<float> part, ReadTensor(checkpoint, name));
    weights.insert(weights.end(), part.begin(), part.end());
  }
  return TiledMatmul::Create(weights, static_cast<int>(weights.size() / inputs), inputs, threads);
}

void AddBias(const std::vector<float>& bias, float* row) {
  for (size_t i = 0; i < bias.size(); ++i) row[i] += bias[i];
}

}  // namespace

struct Decoder::Impl {
  struct Layer {
    std::vector<float> input_norm, post_attention_norm;
    // Empty where the architecture has none.
    std::vector<float> q_norm, k_norm;
    std::vector<float> qkv_bias, o_bias;
    std::unique_ptr<TiledMatmul> qkv, o;
    // -1: a dense layer, with these.
    int moe_layer = -1;
    std::unique_ptr<TiledMatmul> gate_up, down;
  };

  Impl(const Checkpoint& checkpoint, ThreadPool& pool) : config(checkpoint.config()), pool(pool) {}

  absl::Status Load(const Checkpoint& checkpoint);
  absl::Status LoadLayer(const Checkpoint& checkpoint, int index, Layer& layer);
  void Prepare(const StepInput& input);
  // Calls body(first row, rows, alone) for blocks of the step's rows; over the pool where it pays, `alone` when it does
  // not and the body may use the pool itself.
  template <typename Body>
  void ForBlocks(double flops_per_row, Body body);
  void Multiply(const TiledMatmul& matmul, const float* x, int rows, float* y, bool alone);
  void BeginLayer(const Layer& layer, int index, int first, int rows, bool alone);
  void EndAttention(const Layer& layer, int index, int first, int rows, bool alone);
  void RunDense(const Layer& layer, int first, int rows, bool alone);
  void AddDelta(int first, int rows);
  KvLayer LayerOf(const KvSequence& kv, int index) const;
  void ComputeLogits(std::span<const int32_t> rows, float* logits);

  const ModelConfig config;
  ThreadPool& pool;
  AttentionShape shape;
  int max_rows = 0;
  int qkv_width = 0, q_width = 0, kv_width = 0;

  TensorView embedding;
  std::unique_ptr<RotaryTable> rotary;
  std::vector<Layer> layers;
  std::vector<const uint16_t*> routers;
  std::vector<float> final_norm;
  std::unique_ptr<TiledMatmul> lm_head;
  bool row_invariant = true;
  std::string fingerprint;

  // The step in work; rows are padded to whole tiles.
  struct Row {
    const StepSequence* sequence;
    int position;
  };
  std::vector<Row> rows;
  int num_rows = 0;
  std::vector<float> x;          // [rows][H] the residual stream
  std::vector<float> delta;      // [rows][H] what a block adds to it
  std::vector<float> normed;     // [rows][H]
  std::vector<float> qkv;        // [rows][qkv_width]
  std::vector<float> attended;   // [rows][q_width]
  std::vector<float> inner;      // [rows][2 I] of dense layers
  std::vector<float> last_tile;  // [tile rows][vocab]
};

absl::Status Decoder::Impl::LoadLayer(const Checkpoint& checkpoint, int index, Layer& layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attention = absl::StrCat(prefix, "self_attn.");
  const int threads = pool.threads(), hidden = config.hidden_size;
  BALLAST_ASSIGN_OR_RETURN(layer.input_norm, ReadTensor(checkpoint, absl::StrCat(prefix, "input_layernorm.weight")));
  BALLAST_ASSIGN_OR_RETURN(layer.post_attention_norm,
                           ReadTensor(checkpoint, absl::StrCat(prefix, "post_attention_layernorm.weight")));
  BALLAST_ASSIGN_OR_RETURN(
      layer.qkv, ReadMatmul(checkpoint,
                            {absl::StrCat(attention, "q_proj.weight"), absl::StrCat(attention, "k_proj.weight"),
                             absl::StrCat(attention, "v_proj.weight")},
                            hidden, threads));
  BALLAST_ASSIGN_OR_RETURN(layer.o,
                           ReadMatmul(checkpoint, {absl::StrCat(attention, "o_proj.weight")}, q_width, threads));
  if (config.attention_bias) {
    for (const char* name : {"q_proj.bias", "k_proj.bias", "v_proj.bias"}) {
      BALLAST_ASSIGN_OR_RETURN(const std::vector<float> bias, ReadTensor(checkpoint, absl::StrCat(attention, name)));
      layer.qkv_bias.insert(layer.qkv_bias.end(), bias.begin(), bias.end());
    }
    BALLAST_ASSIGN_OR_RETURN(layer.o_bias, ReadTensor(checkpoint, absl::StrCat(attention, "o_proj.bias")));
  }
  if (config.qk_norm() != QkNorm::kNone) {
    BALLAST_ASSIGN_OR_RETURN(layer.q_norm, ReadTensor(checkpoint, absl::StrCat(attention, "q_norm.weight")));
    BALLAST_ASSIGN_OR_RETURN(layer.k_norm, ReadTensor(checkpoint, absl::StrCat(attention, "k_norm.weight")));
  }
  if (config.layer_is_moe[index]) {
    layer.moe_layer = static_cast<int>(routers.size());
    BALLAST_ASSIGN_OR_RETURN(const TensorView router, checkpoint.Find(checkpoint.RouterName(layer.moe_layer)));
    if (router.dtype != DType::kBF16) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", std::string(router.name), " is ",
                                                     Describe(router.dtype, router.shape), ", a router must be BF16"));
    }
    routers.push_back(router.as<uint16_t>().data());
  } else {
    BALLAST_ASSIGN_OR_RETURN(layer.gate_up, ReadMatmul(checkpoint,
                                                       {absl::StrCat(prefix, "mlp.gate_proj.weight"),
                                                        absl::StrCat(prefix, "mlp.up_proj.weight")},
                                                       hidden, threads));
    BALLAST_ASSIGN_OR_RETURN(layer.down, ReadMatmul(checkpoint, {absl::StrCat(prefix, "mlp.down_proj.weight")},
                                                    config.dense_intermediate_size, threads));
  }
  return absl::OkStatus();
}

absl::Status Decoder::Impl::Load(const Checkpoint& checkpoint) {
  if (config.head_dim % 16 != 0) {
    return absl::UnimplementedError(absl::StrCat("head_dim=", config.head_dim, " must be a multiple of 16"));
  }
  shape = {.num_heads = config.num_heads, .num_kv_heads = config.num_kv_heads, .head_dim = config.head_dim};
  q_width = config.num_heads * config.head_dim;
  kv_width = config.num_kv_heads * config.head_dim;
  qkv_width = q_width + 2 * kv_width;
  BALLAST_ASSIGN_OR_RETURN(embedding, checkpoint.Find("model.embed_tokens.weight"));
  rotary = std::make_unique<RotaryTable>(config.head_dim, config.rope_theta, config.max_positions);
  layers.resize(config.num_layers);
  for (int i = 0; i < config.num_layers; ++i) BALLAST_RETURN_IF_ERROR(LoadLayer(checkpoint, i, layers[i]));
  BALLAST_ASSIGN_OR_RETURN(final_norm, ReadTensor(checkpoint, "model.norm.weight"));
  BALLAST_ASSIGN_OR_RETURN(
      lm_head, ReadMatmul(checkpoint, {config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"},
                          config.hidden_size, pool.threads()));

  // One product of each shape stands for all of it.
  std::vector<const TiledMatmul*> seen;
  const auto check = [&](const TiledMatmul* matmul) {
    if (matmul == nullptr) return;
    for (const TiledMatmul* other : seen) {
      if (other->inputs() == matmul->inputs() && other->outputs() == matmul->outputs()) return;
    }
    seen.push_back(matmul);
    row_invariant = row_invariant && matmul->RowInvariant();
    if (fingerprint.find(matmul->fingerprint()) == std::string::npos) {
      absl::StrAppend(&fingerprint, fingerprint.empty() ? "" : ";", matmul->fingerprint());
    }
  };
  for (const Layer& layer : layers) {
    for (const TiledMatmul* matmul : {layer.qkv.get(), layer.o.get(), layer.gate_up.get(), layer.down.get()}) {
      check(matmul);
    }
  }
  check(lm_head.get());
  return absl::OkStatus();
}

void Decoder::Impl::Prepare(const StepInput& input) {
  num_rows = static_cast<int>(input.token_ids.size());
  for (const StepSequence& s : input.sequences) {
    for (int i = 0; i < s.num_rows; ++i) rows[s.first_row + i] = {&s, s.start_position + i};
  }
  const size_t hidden = config.hidden_size;
  const size_t row_bytes = hidden * DTypeSize(embedding.dtype);
  const int64_t row_shape[] = {config.hidden_size};
  for (int row = 0; row < num_rows; ++row) {
    const TensorView token = {.name = embedding.name,
                              .dtype = embedding.dtype,
                              .shape = row_shape,
                              .data = embedding.data.subspan(input.token_ids[row] * row_bytes, row_bytes)};
    const absl::Status status = ReadAsFloat(token, std::span(x).subspan(row * hidden, hidden));
    BALLAST_CHECK(status.ok()) << status.ToString();
  }
}

template <typename Body>
void Decoder::Impl::ForBlocks(double flops_per_row, Body body) {
  // A few blocks a thread, so that unequal ones balance.
  const int share = TiledMatmul::PaddedRows((num_rows + 4 * pool.threads() - 1) / (4 * pool.threads()));
  const int block = std::min(kBlockRows, share);
  if (num_rows <= block || !internal::WorthWaking(pool, flops_per_row * num_rows, 0)) {
    for (int first = 0; first < num_rows; first += kBlockRows) {
      body(first, std::min(kBlockRows, num_rows - first), /*alone=*/true);
    }
    return;
  }
  pool.ParallelFor((num_rows + block - 1) / block,
                   [&](int i) { body(i * block, std::min(block, num_rows - i * block), /*alone=*/false); });
}

void Decoder::Impl::Multiply(const TiledMatmul& matmul, const float* from, int count, float* to, bool alone) {
  const int padded = TiledMatmul::PaddedRows(count);
  if (alone) {
    matmul.RunOnPool(from, padded, to, pool);
  } else {
    matmul.Run(from, padded, to);
  }
}

void Decoder::Impl::AddDelta(int first, int count) {
  const size_t at = static_cast<size_t>(first) * config.hidden_size,
               n = static_cast<size_t>(count) * config.hidden_size;
  for (size_t i = at; i < at + n; ++i) x[i] += delta[i];
}

KvLayer Decoder::Impl::LayerOf(const KvSequence& kv, int index) const {
  return {.data = reinterpret_cast<float*>(kv.cache().data()) + index * shape.block_floats(),
          .stride = kv.cache().block_bytes() / sizeof(float),
          .blocks = kv.blocks()};
}

// From the residual stream to queries, and keys and values in the cache.
void Decoder::Impl::BeginLayer(const Layer& layer, int index, int first, int count, bool alone) {
  const size_t hidden = config.hidden_size;
  for (int row = first; row < first + count; ++row) {
    RmsNorm(&x[row * hidden], layer.input_norm.data(), config.rms_norm_eps, config.hidden_size, &normed[row * hidden]);
  }
  Multiply(*layer.qkv, &normed[first * hidden], count, &qkv[static_cast<size_t>(first) * qkv_width], alone);
  for (int row = first; row < first + count; ++row) {
    float* q = &qkv[static_cast<size_t>(row) * qkv_width];
    float* k = q + q_width;
    float* v = k + kv_width;
    AddBias(layer.qkv_bias, q);
    if (config.qk_norm() == QkNorm::kFull) {
      RmsNorm(q, layer.q_norm.data(), config.rms_norm_eps, q_width, q);
      RmsNorm(k, layer.k_norm.data(), config.rms_norm_eps, kv_width, k);
    } else if (config.qk_norm() == QkNorm::kPerHead) {
      for (float* head = q; head < k; head += config.head_dim) {
        RmsNorm(head, layer.q_norm.data(), config.rms_norm_eps, config.head_dim, head);
      }
      for (float* head = k; head < v; head += config.head_dim) {
        RmsNorm(head, layer.k_norm.data(), config.rms_norm_eps, config.head_dim, head);
      }
    }
    if (config.clip_qkv.has_value()) {
      for (float* at = q; at < q + qkv_width; ++at) *at = std::clamp(*at, -*config.clip_qkv, *config.clip_qkv);
    }
    const Row& place = rows[row];
    for (float* head = q; head < v; head += config.head_dim) rotary->Rotate(head, place.position);
    StoreKeyValue(shape, k, v, place.position, LayerOf(*place.sequence->kv, index));
  }
}

// Attention, its projection, and the norm before the experts.
void Decoder::Impl::EndAttention(const Layer& layer, int index, int first, int count, bool alone) {
  const size_t hidden = config.hidden_size;
  for (int row = first; row < first + count;) {
    const StepSequence& s = *rows[row].sequence;
    const int end = std::min(first + count, s.first_row + s.num_rows);
    AttendRows(shape, &qkv[static_cast<size_t>(row) * qkv_width], qkv_width, end - row, rows[row].position,
               LayerOf(*s.kv, index), &attended[static_cast<size_t>(row) * q_width], q_width);
    row = end;
  }
  Multiply(*layer.o, &attended[static_cast<size_t>(first) * q_width], count, &delta[first * hidden], alone);
  for (int row = first; row < first + count; ++row) AddBias(layer.o_bias, &delta[row * hidden]);
  AddDelta(first, count);
  for (int row = first; row < first + count; ++row) {
    RmsNorm(&x[row * hidden], layer.post_attention_norm.data(), config.rms_norm_eps, config.hidden_size,
            &normed[row * hidden]);
  }
}

void Decoder::Impl::RunDense(const Layer& layer, int first, int count, bool alone) {
  const size_t hidden = config.hidden_size, width = config.dense_intermediate_size;
  Multiply(*layer.gate_up, &normed[first * hidden], count, &inner[first * 2 * width], alone);
  // Row after row to the front: row r's result ends before row r + 1's inputs begin.
  float* packed = &inner[first * 2 * width];
  for (int row = 0; row < count; ++row) {
    const float* gate = packed + row * 2 * width;
    SwiGlu(gate, gate + width, config.dense_intermediate_size, packed + row * width);
  }
  Multiply(*layer.down, packed, count, &delta[first * hidden], alone);
}

void Decoder::Impl::ComputeLogits(std::span<const int32_t> wanted, float* logits) {
  // Rows are gathered into `normed`, a part of the step's rows at a time: a row may be asked for twice.
  const size_t hidden = config.hidden_size, vocab = config.vocab_size;
  for (size_t at = 0; at < wanted.size(); at += max_rows) {
    const int count = static_cast<int>(std::min<size_t>(wanted.size() - at, max_rows));
    for (int i = 0; i < count; ++i) {
      RmsNorm(&x[wanted[at + i] * hidden], final_norm.data(), config.rms_norm_eps, config.hidden_size,
              &normed[i * hidden]);
    }
    const int whole = count / TiledMatmul::kTileRows * TiledMatmul::kTileRows;
    float* out = logits + at * vocab;
    if (whole > 0) lm_head->RunOnPool(normed.data(), whole, out, pool);
    if (whole < count) {
      // The caller's buffer has no room for the padding.
      lm_head->RunOnPool(&normed[whole * hidden], TiledMatmul::kTileRows, last_tile.data(), pool);
      std::copy_n(last_tile.data(), (count - whole) * vocab, out + whole * vocab);
    }
  }
}

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(const Checkpoint& checkpoint, ThreadPool& pool,
                                                         const DecoderOptions& options) {
  if (options.max_rows < 1 || options.max_rows > (1 << 20)) {
    return absl::InvalidArgumentError(absl::StrCat("max_rows=", options.max_rows, " must lie in [1, ", 1 << 20, "]"));
  }
  auto impl = std::make_unique<Impl>(checkpoint, pool);
  BALLAST_RETURN_IF_ERROR(impl->Load(checkpoint));
  impl->max_rows = options.max_rows;
  impl->rows.resize(options.max_rows);
  const size_t rows = TiledMatmul::PaddedRows(options.max_rows);
  impl->x.resize(rows * impl->config.hidden_size);
  impl->delta.resize(rows * impl->config.hidden_size);
  impl->normed.resize(rows * impl->config.hidden_size);
  impl->qkv.resize(rows * impl->qkv_width);
  impl->attended.resize(rows * impl->q_width);
  impl->inner.resize(rows * 2 * impl->config.dense_intermediate_size);
  impl->last_tile.resize(static_cast<size_t>(TiledMatmul::kTileRows) * impl->config.vocab_size);
  return std::unique_ptr<Decoder>(new Decoder(std::move(impl)));
}

const ModelConfig& Decoder::config() const { return impl_->config; }
int Decoder::max_rows() const { return impl_->max_rows; }
KvCache::Shape Decoder::kv_shape() const { return {.num_layers = impl_->config.num_layers, .attention = impl_->shape}; }
bool Decoder::row_invariant() const { return impl_->row_invariant; }
const std::string& Decoder::fingerprint() const { return impl_->fingerprint; }
const uint16_t* Decoder::router_weights(int moe_layer) const { return impl_->routers[moe_layer]; }

RouterRule Decoder::router_rule() const {
  return {.num_experts = impl_->config.num_experts,
          .top_k = impl_->config.experts_per_token,
          .renormalize = impl_->config.norm_topk_prob};
}

absl::Status Decoder::Forward(const StepInput& input, MoeLayer& moe, float* logits) {
  Impl& d = *impl_;
  BALLAST_RETURN_IF_ERROR(CheckStepInput(d.config, d.max_rows, input));
  d.Prepare(input);
  const ModelConfig& config = d.config;
  const double hidden = config.hidden_size;
  const double qkv_flops = 2 * hidden * d.qkv_width, o_flops = 2 * hidden * d.q_width;
  double positions = 0;
  for (const StepSequence& s : input.sequences) {
    positions += s.num_rows * (s.start_position + 0.5 * s.num_rows) / std::max(d.num_rows, 1);
  }
  const double attention_flops = 4.0 * d.q_width * positions;
  for (int i = 0; i < config.num_layers; ++i) {
    const Impl::Layer& layer = d.layers[i];
    d.ForBlocks(qkv_flops, [&](int first, int rows, bool alone) {
      if (i > 0) d.AddDelta(first, rows);
      d.BeginLayer(layer, i, first, rows, alone);
    });
    d.ForBlocks(attention_flops + o_flops,
                [&](int first, int rows, bool alone) { d.EndAttention(layer, i, first, rows, alone); });
    if (layer.moe_layer >= 0) {
      BALLAST_RETURN_IF_ERROR(moe.Run(layer.moe_layer, d.normed.data(), d.num_rows, d.delta.data()));
    } else {
      d.ForBlocks(6 * hidden * config.dense_intermediate_size,
                  [&](int first, int rows, bool alone) { d.RunDense(layer, first, rows, alone); });
    }
  }
  d.AddDelta(0, d.num_rows);
  d.ComputeLogits(input.logit_rows, logits);
  return absl::OkStatus();
}

}  // namespace ballast
