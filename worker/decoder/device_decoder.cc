#include "worker/decoder/device_decoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/invariant.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/status.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "worker/decoder/recently_used.h"

namespace ballast {
namespace {

static_assert(internal::kCachePositions == kKvBlockPositions);

// Changes with the kernels' arithmetic.
constexpr int kRevision = 1;
// Rows whose logits are computed at once.
constexpr int kLogitRows = 256;
// Steps of more rows are not bound by launches.
constexpr int kMostGraphRows = 128;
// Of a load of many kinds of steps, those that were replayed last.
constexpr size_t kMostGraphs = 64;
// Attention of few long sequences shares them out to blocks where its sums fit.
constexpr size_t kMostAttentionBytes = size_t{128} << 20;
constexpr int kMostSharedRows = 264;
constexpr size_t kFirstTableWords = size_t{1} << 16;

// To nearest, ties to even.
uint16_t RoundToBf16(float v) {
  const auto bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays one
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct PinnedFree {
  void operator()(void* p) const { cudaFreeHost(p); }
};
using Pinned = std::unique_ptr<void, PinnedFree>;

struct GraphFree {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using Graph = std::unique_ptr<CUgraphExec_st, GraphFree>;

struct Matrix {
  DeviceMemory data;
  int inputs = 0;
  int outputs = 0;
};

const float* Floats(const DeviceMemory& memory) { return static_cast<const float*>(memory.get()); }

}  // namespace

struct DeviceDecoder::Impl {
  struct Layer {
    DeviceMemory input_norm, post_attention_norm;
    // Null where the architecture has none.
    DeviceMemory q_norm, k_norm, qkv_bias, o_bias;
    Matrix qkv, o;
    // -1: a dense layer, with these.
    int moe_layer = -1;
    Matrix gate_up, down;
  };

  // What one step tells the kernels, in 32-bit words of one buffer; the table of blocks comes last.
  struct Words {
    size_t tokens, positions, row_blocks, logit_rows, sequences, tiles, table;
  };

  // What is launched depends on these alone.
  struct Launch {
    int rows = 0;
    int logits = 0;
    int tiles = 0;
    int tile_vectors = kFewVectors;
    // A power of two times a span.
    int max_positions = 1;
  };

  explicit Impl(const Checkpoint& checkpoint) : config(checkpoint.config()) {}

  absl::Status CheckConfig() const;
  absl::Status Load(const Checkpoint& checkpoint);
  absl::Status LoadLayer(const Checkpoint& checkpoint, int index, Layer& layer);
  absl::Status Allocate();
  absl::Status GrowTable(size_t words);
  absl::StatusOr<Launch> Prepare(const StepInput& input, cudaStream_t stream);
  absl::Status Multiply(const Matrix& matrix, const void* from, int count, float* to, cudaStream_t stream);
  absl::Status Norm(CudaNormArgs args, const DeviceMemory& weight, int count, cudaStream_t stream) const;
  absl::Status Enqueue(const Launch& launch, DeviceMoeLayer& moe, cudaStream_t stream);
  absl::Status EnqueueLogits(int first, int count, bool from_moe, cudaStream_t stream);
  absl::Status Replay(const Launch& launch, DeviceMoeLayer& moe, cudaStream_t stream);
  absl::Status Run(const StepInput& input, DeviceMoeLayer& moe, float* logits, cudaStream_t stream);

  int32_t* Host(size_t at) const { return static_cast<int32_t*>(host_words.get()) + at; }
  const int32_t* Device(size_t at) const { return static_cast<const int32_t*>(device_words.get()) + at; }

  const ModelConfig config;
  DeviceDecoderOptions options;
  int qkv_width = 0, q_width = 0, kv_width = 0;
  std::string fingerprint;
  // Null with `exact`.
  std::unique_ptr<CudaLinear> linear;

  Matrix embedding;
  // Null where it is the embedding.
  Matrix lm_head;
  std::vector<Layer> layers;
  std::vector<DeviceMemory> routers;
  DeviceMemory final_norm, cosine, sine;

  Words words = {};
  size_t table_words = 0;
  Pinned host_words;
  DeviceMemory device_words;
  DeviceMemory x;         // [rows][H] f32, the residual stream
  DeviceMemory delta;     // [rows][H] f32, what a block adds to it
  DeviceMemory moe_out;   // [rows][H] bf16, the same of MoE blocks
  DeviceMemory normed;    // [rows][H] bf16
  DeviceMemory qkv;       // [rows][qkv_width] f32
  DeviceMemory q;         // [rows][q_width] bf16
  DeviceMemory attended;  // [rows][q_width] bf16
  DeviceMemory inner;     // [rows][2 I] f32, of dense layers
  DeviceMemory acted;     // [rows][I] bf16, of dense layers
  DeviceMemory logits;    // [kLogitRows][vocab] f32
  DeviceMemory partials;
  size_t partial_bytes = 0;
  // The step's cache.
  std::byte* cache = nullptr;
  size_t cache_block_bytes = 0;

  RecentlyUsed<std::tuple<DeviceMoeLayer*, std::byte*, int, int, int>, Graph> graphs{kMostGraphs};
};

namespace {

absl::StatusOr<DeviceMemory> Upload(const void* data, size_t bytes, const char* what) {
  BALLAST_ASSIGN_OR_RETURN(DeviceMemory memory, AllocateDevice(bytes, what));
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpy(memory.get(), data, bytes, cudaMemcpyHostToDevice), what));
  return memory;
}

absl::StatusOr<DeviceMemory> UploadFloats(const Checkpoint& checkpoint, std::initializer_list<std::string> names) {
  std::vector<float> values;
  for (const std::string& name : names) {
    BALLAST_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Find(name));
    const size_t at = values.size();
    values.resize(at + tensor.num_elements());
    BALLAST_RETURN_IF_ERROR(ReadAsFloat(tensor, std::span(values).subspan(at)));
  }
  return Upload(values.data(), values.size() * sizeof(float), names.begin()->c_str());
}

// Several matrices with the same inputs as one, outputs after outputs.
absl::StatusOr<Matrix> UploadMatrix(const Checkpoint& checkpoint, std::initializer_list<std::string> names,
                                    int inputs) {
  size_t elements = 0;
  for (const std::string& name : names) {
    BALLAST_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Find(name));
    elements += tensor.num_elements();
  }
  Matrix matrix = {.inputs = inputs, .outputs = static_cast<int>(elements / inputs)};
  BALLAST_ASSIGN_OR_RETURN(matrix.data, AllocateDevice(elements * sizeof(uint16_t), names.begin()->c_str()));
  auto* to = static_cast<std::byte*>(matrix.data.get());
  for (const std::string& name : names) {
    BALLAST_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Find(name));
    const size_t bytes = tensor.num_elements() * sizeof(uint16_t);
    const void* from = tensor.data.data();
    std::vector<uint16_t> rounded;
    if (tensor.dtype != DType::kBF16) {
      std::vector<float> values(tensor.num_elements());
      BALLAST_RETURN_IF_ERROR(ReadAsFloat(tensor, values));
      rounded.resize(values.size());
      std::transform(values.begin(), values.end(), rounded.begin(), RoundToBf16);
      from = rounded.data();
    }
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), name));
    to += bytes;
  }
  return matrix;
}

CudaHeadNorm HeadNorm(QkNorm norm) {
  switch (norm) {
    case QkNorm::kNone:
      return CudaHeadNorm::kNone;
    case QkNorm::kPerHead:
      return CudaHeadNorm::kHead;
    case QkNorm::kFull:
      return CudaHeadNorm::kAll;
  }
  BALLAST_CHECK(false) << "no such norm";
}

}  // namespace

absl::Status DeviceDecoder::Impl::CheckConfig() const {
  if (absl::Status status = internal::CheckHeads(config.num_heads, config.num_kv_heads, config.head_dim);
      !status.ok()) {
    return absl::UnimplementedError(status.message());
  }
  for (const auto& [name, size] :
       {std::pair{"hidden_size", config.hidden_size}, {"dense_intermediate_size", config.dense_intermediate_size}}) {
    if (size % 8 != 0) return absl::UnimplementedError(absl::StrCat(name, "=", size, " must be a multiple of 8"));
  }
  if (config.hidden_size > internal::kMaxNormWidth) {
    return absl::UnimplementedError(
        absl::StrCat("hidden_size=", config.hidden_size, " must be at most ", internal::kMaxNormWidth));
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::LoadLayer(const Checkpoint& checkpoint, int index, Layer& layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::string attention = absl::StrCat(prefix, "self_attn.");
  const int hidden = config.hidden_size;
  BALLAST_ASSIGN_OR_RETURN(layer.input_norm,
                           UploadFloats(checkpoint, {absl::StrCat(prefix, "input_layernorm.weight")}));
  BALLAST_ASSIGN_OR_RETURN(layer.post_attention_norm,
                           UploadFloats(checkpoint, {absl::StrCat(prefix, "post_attention_layernorm.weight")}));
  BALLAST_ASSIGN_OR_RETURN(
      layer.qkv, UploadMatrix(checkpoint,
                              {absl::StrCat(attention, "q_proj.weight"), absl::StrCat(attention, "k_proj.weight"),
                               absl::StrCat(attention, "v_proj.weight")},
                              hidden));
  BALLAST_ASSIGN_OR_RETURN(layer.o, UploadMatrix(checkpoint, {absl::StrCat(attention, "o_proj.weight")}, q_width));
  if (config.attention_bias) {
    BALLAST_ASSIGN_OR_RETURN(layer.qkv_bias, UploadFloats(checkpoint, {absl::StrCat(attention, "q_proj.bias"),
                                                                       absl::StrCat(attention, "k_proj.bias"),
                                                                       absl::StrCat(attention, "v_proj.bias")}));
    BALLAST_ASSIGN_OR_RETURN(layer.o_bias, UploadFloats(checkpoint, {absl::StrCat(attention, "o_proj.bias")}));
  }
  if (config.qk_norm() != QkNorm::kNone) {
    BALLAST_ASSIGN_OR_RETURN(layer.q_norm, UploadFloats(checkpoint, {absl::StrCat(attention, "q_norm.weight")}));
    BALLAST_ASSIGN_OR_RETURN(layer.k_norm, UploadFloats(checkpoint, {absl::StrCat(attention, "k_norm.weight")}));
  }
  if (config.layer_is_moe[index]) {
    layer.moe_layer = static_cast<int>(routers.size());
    BALLAST_ASSIGN_OR_RETURN(Matrix router, UploadMatrix(checkpoint, {checkpoint.RouterName(layer.moe_layer)}, hidden));
    routers.push_back(std::move(router.data));
  } else {
    BALLAST_ASSIGN_OR_RETURN(layer.gate_up, UploadMatrix(checkpoint,
                                                         {absl::StrCat(prefix, "mlp.gate_proj.weight"),
                                                          absl::StrCat(prefix, "mlp.up_proj.weight")},
                                                         hidden));
    BALLAST_ASSIGN_OR_RETURN(layer.down, UploadMatrix(checkpoint, {absl::StrCat(prefix, "mlp.down_proj.weight")},
                                                      config.dense_intermediate_size));
  }
  return absl::OkStatus();
}

absl::Status DeviceDecoder::Impl::Load(const Checkpoint& checkpoint) {
  BALLAST_RETURN_IF_ERROR(CheckConfig());
  q_width = config.num_heads * config.head_dim;
  kv_width = config.num_kv_heads * config.head_dim;
  qkv_width = q_width + 2 * kv_width;
  int device = 0;
  cudaDeviceProp properties = {};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  BALLAST_RETURN_IF_ERROR(CudaStatus(error, "the device's properties"));
  fingerprint =
      absl::StrCat("cuda-r", kRevision, "-sm", properties.major, properties.minor, "-", properties.multiProcessorCount);
  if (!options.exact) {
    BALLAST_ASSIGN_OR_RETURN(linear, CudaLinear::Create());
    absl::StrAppend(&fingerprint, "-cublaslt-", linear->version());
  }
  BALLAST_ASSIGN_OR_RETURN(embedding, UploadMatrix(checkpoint, {"model.embed_tokens.weight"}, config.hidden_size));
  if (!config.tie_word_embeddings) {
    BALLAST_ASSIGN_OR_RETURN(lm_head, UploadMatrix(checkpoint, {"lm_head.weight"}, config.hidden_size));
  }
  layers.resize(config.num_layers);
  for (int i = 0; i < config.num_layers; ++i) BALLAST_RETURN_IF_ERROR(LoadLayer(checkpoint, i, layers[i]));
  BALLAST_ASSIGN_OR_RETURN(final_norm, UploadFloats(checkpoint, {"model.norm.weight"}));
  const RotaryTable table(config.head_dim, config.rope_theta, config.max_positions);
  BALLAST_ASSIGN_OR_RETURN(cosine, Upload(table.cosines().data(), table.cosines().size_bytes(), "cosines"));
  BALLAST_ASSIGN_OR_RETURN(sine, Upload(table.sines().data(), table.sines().size_bytes(), "sines"));
  return Allocate();
}

absl::Status DeviceDecoder::Impl::Allocate() {
  const size_t rows = options.max_rows, hidden = config.hidden_size, dense = config.dense_intermediate_size;
  const int group = config.num_heads / config.num_kv_heads;
  words.tokens = 0;
  words.positions = words.tokens + rows;
  words.row_blocks = words.positions + rows;
  words.logit_rows = words.row_blocks + rows;
  words.sequences = words.logit_rows + rows;
  words.tiles = words.sequences + rows * (sizeof(AttentionSequence) / sizeof(int32_t));
  // A sequence's last tile may be a part of one.
  const size_t tiles = rows * group / kFewVectors + rows;
  words.table = words.tiles + tiles * (sizeof(AttentionTile) / sizeof(int32_t));
  BALLAST_RETURN_IF_ERROR(GrowTable(kFirstTableWords));
  const auto allocate = [](DeviceMemory& memory, size_t bytes, const char* what) -> absl::Status {
    BALLAST_ASSIGN_OR_RETURN(memory, AllocateDevice(bytes, what));
    return absl::OkStatus();
  };
  BALLAST_RETURN_IF_ERROR(allocate(x, rows * hidden * 4, "the residual stream"));
  BALLAST_RETURN_IF_ERROR(allocate(delta, rows * hidden * 4, "a block's outputs"));
  BALLAST_RETURN_IF_ERROR(allocate(moe_out, rows * hidden * 2, "a MoE block's outputs"));
  BALLAST_RETURN_IF_ERROR(allocate(normed, rows * hidden * 2, "normed rows"));
  BALLAST_RETURN_IF_ERROR(allocate(qkv, rows * qkv_width * 4, "queries, keys and values"));
  BALLAST_RETURN_IF_ERROR(allocate(q, rows * q_width * 2, "queries"));
  BALLAST_RETURN_IF_ERROR(allocate(attended, rows * q_width * 2, "attention's outputs"));
  BALLAST_RETURN_IF_ERROR(allocate(inner, rows * 2 * dense * 4, "a dense layer's products"));
  BALLAST_RETURN_IF_ERROR(allocate(acted, rows * dense * 2, "a dense layer's activations"));
  BALLAST_RETURN_IF_ERROR(allocate(logits, std::min<size_t>(rows, kLogitRows) * config.vocab_size * 4, "logits"));
  partial_bytes =
      std::min(kMostAttentionBytes, AttentionWorkspaceBytes(std::min(options.max_rows, kMostSharedRows),
                                                            config.num_heads, config.head_dim, config.max_positions));
  return allocate(partials, partial_bytes, "attention's sums");
}

absl::Status DeviceDecoder::Impl::GrowTable(size_t needed) {
  if (needed <= table_words) return absl::OkStatus();
  // The graphs have the old addresses.
  graphs.Clear();
  const size_t grown = std::max(needed, 2 * table_words), bytes = (words.table + grown) * sizeof(int32_t);
  void* pinned = nullptr;
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaMallocHost(&pinned, bytes), absl::StrCat(bytes, " bytes of pinned memory for a step's words")));
  Pinned host(pinned);
  BALLAST_ASSIGN_OR_RETURN(DeviceMemory device, AllocateDevice(bytes, "a step's words"));
  host_words = std::move(host);
  device_words = std::move(device);
  table_words = grown;
  return absl::OkStatus();
}

absl::StatusOr<DeviceDecoder::Impl::Launch> DeviceDecoder::Impl::Prepare(const StepInput& input, cudaStream_t stream) {
  size_t blocks = 0;
  for (const StepSequence& s : input.sequences) blocks += KvCache::BlocksFor(s.start_position + s.num_rows);
  BALLAST_RETURN_IF_ERROR(GrowTable(blocks));
  Launch launch = {.rows = static_cast<int>(input.token_ids.size()),
                   .logits = static_cast<int>(input.logit_rows.size())};
  const int group = config.num_heads / config.num_kv_heads;
  for (const StepSequence& s : input.sequences) {
    if (s.num_rows * group > kFewVectors) launch.tile_vectors = kManyVectors;
  }
  std::copy(input.token_ids.begin(), input.token_ids.end(), Host(words.tokens));
  std::copy(input.logit_rows.begin(), input.logit_rows.end(), Host(words.logit_rows));
  auto* sequences = reinterpret_cast<AttentionSequence*>(Host(words.sequences));
  auto* tiles = reinterpret_cast<AttentionTile*>(Host(words.tiles));
  int32_t* table = Host(words.table);
  int longest = 1;
  int32_t used = 0;
  for (size_t i = 0; i < input.sequences.size(); ++i) {
    const StepSequence& s = input.sequences[i];
    const int end = s.start_position + s.num_rows, count = KvCache::BlocksFor(end);
    sequences[i] = {s.first_row, s.num_rows, s.start_position, used};
    std::copy_n(s.kv->blocks(), count, table + used);
    used += count;
    longest = std::max(longest, end);
    for (int row = 0; row < s.num_rows; ++row) {
      const int position = s.start_position + row;
      Host(words.positions)[s.first_row + row] = position;
      Host(words.row_blocks)[s.first_row + row] = s.kv->blocks()[position / kKvBlockPositions];
    }
    for (int first = 0; first < s.num_rows * group; first += launch.tile_vectors) {
      tiles[launch.tiles++] = {static_cast<int32_t>(i), first};
    }
  }
  const auto spans = static_cast<unsigned>((longest + internal::kSpanPositions - 1) / internal::kSpanPositions);
  launch.max_positions = static_cast<int>(std::bit_ceil(spans)) * internal::kSpanPositions;
  if (launch.rows == 0) return launch;
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(device_words.get(), host_words.get(), (words.table + used) * sizeof(int32_t),
                                 cudaMemcpyHostToDevice, stream),
                 "the step's words"));
  return launch;
}

absl::Status DeviceDecoder::Impl::Multiply(const Matrix& matrix, const void* from, int count, float* to,
                                           cudaStream_t stream) {
  return linear != nullptr
             ? linear->Product(from, matrix.data.get(), count, matrix.inputs, matrix.outputs, to, stream)
             : InvariantProduct(from, matrix.data.get(), count, matrix.inputs, matrix.outputs, to, stream);
}

absl::Status DeviceDecoder::Impl::Norm(CudaNormArgs args, const DeviceMemory& weight, int count,
                                       cudaStream_t stream) const {
  args.weight = Floats(weight);
  args.epsilon = config.rms_norm_eps;
  args.rows = count;
  args.hidden_size = config.hidden_size;
  args.out = normed.get();
  return NormRows(args, stream);
}

// Everything between the copies of a step's words and of its first logits.
absl::Status DeviceDecoder::Impl::Enqueue(const Launch& launch, DeviceMoeLayer& moe, cudaStream_t stream) {
  const int rows = launch.rows;
  const size_t layer_elements = AttentionBlockElements(config.num_kv_heads, config.head_dim);
  auto* const stream_rows = static_cast<float*>(x.get());
  auto* const added = static_cast<float*>(delta.get());
  BALLAST_RETURN_IF_ERROR(
      Norm({.source = embedding.data.get(), .source_bf16 = true, .gather = Device(words.tokens), .sum = stream_rows},
           layers[0].input_norm, rows, stream));
  CudaQkvArgs qkv_args = {
      .qkv = Floats(qkv),
      .norm = HeadNorm(config.qk_norm()),
      .epsilon = config.rms_norm_eps,
      .clip = config.clip_qkv.value_or(std::numeric_limits<float>::infinity()),
      .cosine = Floats(cosine),
      .sine = Floats(sine),
      .position = Device(words.positions),
      .block = Device(words.row_blocks),
      .block_stride = cache_block_bytes / sizeof(uint16_t),
      .rows = rows,
      .num_heads = config.num_heads,
      .num_kv_heads = config.num_kv_heads,
      .head_dim = config.head_dim,
      .q = q.get(),
  };
  CudaAttentionArgs attention = {
      .q = q.get(),
      .block_stride = qkv_args.block_stride,
      .sequences = reinterpret_cast<const AttentionSequence*>(Device(words.sequences)),
      .blocks = Device(words.table),
      .tiles = reinterpret_cast<const AttentionTile*>(Device(words.tiles)),
      .num_tiles = launch.tiles,
      .tile_vectors = launch.tile_vectors,
      .rows = rows,
      .max_positions = launch.max_positions,
      .num_heads = config.num_heads,
      .num_kv_heads = config.num_kv_heads,
      .head_dim = config.head_dim,
      .out = attended.get(),
  };
  bool from_moe = false;
  for (int i = 0; i < config.num_layers; ++i) {
    const Layer& layer = layers[i];
    if (i > 0) {
      BALLAST_RETURN_IF_ERROR(Norm({.source = stream_rows,
                                    .delta = from_moe ? moe_out.get() : delta.get(),
                                    .delta_bf16 = from_moe,
                                    .sum = stream_rows},
                                   layer.input_norm, rows, stream));
    }
    BALLAST_RETURN_IF_ERROR(Multiply(layer.qkv, normed.get(), rows, static_cast<float*>(qkv.get()), stream));
    qkv_args.bias = Floats(layer.qkv_bias);
    qkv_args.q_weight = Floats(layer.q_norm);
    qkv_args.k_weight = Floats(layer.k_norm);
    qkv_args.cache = cache + i * layer_elements * sizeof(uint16_t);
    BALLAST_RETURN_IF_ERROR(StoreQkv(qkv_args, stream));
    attention.cache = qkv_args.cache;
    BALLAST_RETURN_IF_ERROR(Attend(attention, partials.get(), partial_bytes, stream));
    BALLAST_RETURN_IF_ERROR(Multiply(layer.o, attended.get(), rows, added, stream));
    BALLAST_RETURN_IF_ERROR(
        Norm({.source = stream_rows, .delta = added, .bias = Floats(layer.o_bias), .sum = stream_rows},
             layer.post_attention_norm, rows, stream));
    from_moe = layer.moe_layer >= 0;
    if (from_moe) {
      BALLAST_RETURN_IF_ERROR(moe.Run(layer.moe_layer, normed.get(), rows, moe_out.get(), stream));
    } else {
      BALLAST_RETURN_IF_ERROR(Multiply(layer.gate_up, normed.get(), rows, static_cast<float*>(inner.get()), stream));
      BALLAST_RETURN_IF_ERROR(SwiGluRows(Floats(inner), rows, config.dense_intermediate_size, acted.get(), stream));
      BALLAST_RETURN_IF_ERROR(Multiply(layer.down, acted.get(), rows, added, stream));
    }
  }
  return EnqueueLogits(0, std::min(launch.logits, kLogitRows), from_moe, stream);
}

absl::Status DeviceDecoder::Impl::EnqueueLogits(int first, int count, bool from_moe, cudaStream_t stream) {
  BALLAST_RETURN_IF_ERROR(Norm({.source = x.get(),
                                .delta = from_moe ? moe_out.get() : delta.get(),
                                .delta_bf16 = from_moe,
                                .gather = Device(words.logit_rows + first)},
                               final_norm, count, stream));
  return Multiply(config.tie_word_embeddings ? embedding : lm_head, normed.get(), count,
                  static_cast<float*>(logits.get()), stream);
}

// Enqueue by a graph, which is recorded where there is none for such a step yet.
absl::Status DeviceDecoder::Impl::Replay(const Launch& launch, DeviceMoeLayer& moe, cudaStream_t stream) {
  const auto key = std::tuple(&moe, cache, launch.rows, launch.logits, launch.max_positions);
  Graph* at = graphs.Find(key);
  if (at == nullptr) {
    cudaGraph_t recorded = nullptr;
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a step"));
    const absl::Status enqueued = Enqueue(launch, moe, stream);
    const absl::Status ended = CudaStatus(cudaStreamEndCapture(stream, &recorded), "recording a step");
    cudaGraphExec_t graph = nullptr;
    absl::Status status = enqueued.ok() ? ended : enqueued;
    if (status.ok()) status = CudaStatus(cudaGraphInstantiate(&graph, recorded, 0), "a step's graph");
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    BALLAST_RETURN_IF_ERROR(status);
    at = graphs.Insert(key, Graph(graph));
  }
  return CudaStatus(cudaGraphLaunch(at->get(), stream), "a step's graph");
}

absl::Status DeviceDecoder::Impl::Run(const StepInput& input, DeviceMoeLayer& moe, float* out, cudaStream_t stream) {
  BALLAST_ASSIGN_OR_RETURN(const Launch launch, Prepare(input, stream));
  if (launch.rows == 0) {
    for (size_t i = 0; i < routers.size(); ++i) {
      BALLAST_RETURN_IF_ERROR(moe.Run(static_cast<int>(i), normed.get(), 0, moe_out.get(), stream));
    }
    return absl::OkStatus();
  }
  cache = input.sequences[0].kv->cache().data();
  cache_block_bytes = input.sequences[0].kv->cache().block_bytes();
  const bool decodes = static_cast<size_t>(launch.rows) == input.sequences.size();
  if (decodes && launch.rows <= kMostGraphRows && launch.logits <= kMostGraphRows && moe.capturable() &&
      stream != nullptr) {
    BALLAST_RETURN_IF_ERROR(Replay(launch, moe, stream));
  } else {
    BALLAST_RETURN_IF_ERROR(Enqueue(launch, moe, stream));
  }
  const size_t vocab = config.vocab_size;
  for (int first = 0; first < launch.logits; first += kLogitRows) {
    const int count = std::min(launch.logits - first, kLogitRows);
    if (first > 0) BALLAST_RETURN_IF_ERROR(EnqueueLogits(first, count, layers.back().moe_layer >= 0, stream));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(out + first * vocab, logits.get(), count * vocab * sizeof(float),
                                                       cudaMemcpyDeviceToHost, stream),
                                       "the logits"));
  }
  return absl::OkStatus();
}

DeviceDecoder::DeviceDecoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceDecoder::~DeviceDecoder() = default;

absl::StatusOr<std::unique_ptr<DeviceDecoder>> DeviceDecoder::Create(const Checkpoint& checkpoint,
                                                                     const DeviceDecoderOptions& options) {
  if (options.max_rows < 1 || options.max_rows > (1 << 20)) {
    return absl::InvalidArgumentError(absl::StrCat("max_rows=", options.max_rows, " must lie in [1, ", 1 << 20, "]"));
  }
  auto impl = std::make_unique<Impl>(checkpoint);
  impl->options = options;
  BALLAST_RETURN_IF_ERROR(impl->Load(checkpoint));
  return std::unique_ptr<DeviceDecoder>(new DeviceDecoder(std::move(impl)));
}

const ModelConfig& DeviceDecoder::config() const { return impl_->config; }
int DeviceDecoder::max_rows() const { return impl_->options.max_rows; }
bool DeviceDecoder::exact() const { return impl_->options.exact; }
const std::string& DeviceDecoder::fingerprint() const { return impl_->fingerprint; }
const void* DeviceDecoder::router_weights(int moe_layer) const { return impl_->routers[moe_layer].get(); }

CudaRouterRule DeviceDecoder::router_rule() const {
  return {.score = RouterScore::kSoftmax,
          .num_experts = impl_->config.num_experts,
          .top_k = impl_->config.experts_per_token,
          .renormalize = impl_->config.norm_topk_prob};
}

size_t DeviceDecoder::kv_block_bytes() const {
  const ModelConfig& config = impl_->config;
  return AttentionBlockElements(config.num_kv_heads, config.head_dim) * sizeof(uint16_t) * config.num_layers;
}

absl::StatusOr<std::unique_ptr<KvCache>> DeviceDecoder::CreateKvCache(int num_blocks) const {
  const ModelConfig& config = impl_->config;
  const KvCache::Shape shape = {
      .num_layers = config.num_layers,
      .attention = {.num_heads = config.num_heads, .num_kv_heads = config.num_kv_heads, .head_dim = config.head_dim}};
  return KvCache::Create(shape, num_blocks, kv_block_bytes(), [](size_t bytes) -> absl::StatusOr<KvCache::Memory> {
    BALLAST_ASSIGN_OR_RETURN(DeviceMemory memory, AllocateDevice(bytes, "a KV cache"));
    return KvCache::Memory(static_cast<std::byte*>(memory.release()), [](std::byte* p) { cudaFree(p); });
  });
}

absl::Status DeviceDecoder::Forward(const StepInput& input, DeviceMoeLayer& moe, float* logits, cudaStream_t stream) {
  Impl& d = *impl_;
  BALLAST_RETURN_IF_ERROR(CheckStepInput(d.config, d.options.max_rows, input));
  if (input.logit_rows.size() > static_cast<size_t>(d.options.max_rows)) {
    return absl::InvalidArgumentError(
        absl::StrCat("logit_rows has ", input.logit_rows.size(), " rows, the step's limit is ", d.options.max_rows));
  }
  for (const StepSequence& s : input.sequences) {
    BALLAST_CHECK(&s.kv->cache() == &input.sequences[0].kv->cache()) << "a step's sequences are of two caches";
    BALLAST_CHECK(s.kv->cache().block_bytes() == kv_block_bytes()) << "not a cache of this decoder";
  }
  const absl::Status enqueued = d.Run(input, moe, logits, stream);
  // After an error, too: the next step writes to memory that copies under way read.
  const absl::Status done = moe.Await(stream);
  return enqueued.ok() ? done : enqueued;
}

}  // namespace ballast
