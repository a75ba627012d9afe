#include "kernels/cuda/columns.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/router_kernel.h"
#include "kernels/cuda/router_product.h"
#include "kernels/cuda/router_select.h"

namespace ballast::internal {
namespace {

constexpr int kMultiprocessors = 132;
constexpr int kSelectWarps = 4;
// Experts of a tile: few for models with few, whose steps are bound by reading the tokens.
constexpr int kFewExperts = 16, kManyExperts = 128;

template <int kExpertsOf>
struct LogitsTile {
  static constexpr int kTokens = 16, kExperts = kExpertsOf, kThreads = 256, kTileK = 64;
  static constexpr int kWarpTokens = 16, kTokenWarps = 1;
  static constexpr int kExpertWarps = Smaller(kThreads / 32, kExperts / 16);
  static constexpr int kWarpExperts = kExperts / kExpertWarps;
  static constexpr int kStageBytes = (kTokens + kExperts) * kTileK * 2;
  // A decode step's part is in flight at once.
  static constexpr int kStages = 6;
};

// Logits of 16 tokens by a tile of experts over one part of the hidden size: grid (token tiles, expert tiles, parts).
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) LogitsKernel(const RouterArgs args) {
  extern __shared__ __align__(128) uint8_t storage[];
  const int first_token = blockIdx.x * Tile::kTokens, first_expert = blockIdx.y * Tile::kExperts;
  const int64_t steps = DivideUp(args.hidden_size, Tile::kTileK);
  Product<Tile> product;
  product.Add(args, first_token, first_expert, static_cast<int>(steps * blockIdx.z / gridDim.z),
              static_cast<int>(steps * (blockIdx.z + 1) / gridDim.z), storage, [] {});
  float* logits = args.logits + static_cast<size_t>(blockIdx.z) * args.num_tokens * args.rule.num_experts;
  product.ForEach([&](int token, int expert, float sum, float next) {
    token += first_token;
    expert += first_expert;
    if (token >= args.num_tokens) return;
    float* const to = logits + static_cast<size_t>(token) * args.rule.num_experts + expert;
    if (expert < args.rule.num_experts) to[0] = sum;
    if (expert + 1 < args.rule.num_experts) to[1] = next;
  });
}

// Past L1: other blocks of this kernel may have written it. (With a branch around the load, loads would wait for each
// other.)
__device__ float LoadLogit(const float* p, bool valid) {
  float v;
  asm volatile(
      "{\n"
      ".reg .pred valid;\n"
      "setp.ne.b32 valid, %2, 0;\n"
      "mov.f32 %0, 0f00000000;\n"
      "@valid ld.global.cg.f32 %0, [%1];\n"
      "}\n"
      : "=f"(v)
      : "l"(p), "r"(static_cast<int>(valid)));
  return v;
}

// Sums of a token's logits' parts, in order: kOwn neighbouring experts a lane.
template <int kOwn>
__device__ __forceinline__ void SumParts(float (&scores)[kOwn], const RouterArgs& args, int parts, int token) {
  const int lane = threadIdx.x % 32, experts = args.rule.num_experts;
  const float* logits = args.logits + static_cast<size_t>(token) * experts + lane * kOwn;
  // Loads at once.
  constexpr int kBatch = kOwn >= 8 ? 32 / kOwn : 16;
  for (int first = 0; first < parts; first += kBatch) {
    float v[kBatch][kOwn];
#pragma unroll
    for (int part = 0; part < kBatch; ++part) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const bool valid = first + part < parts && lane * kOwn + i < experts;
        v[part][i] = LoadLogit(logits + static_cast<size_t>(first + part) * args.num_tokens * experts + i, valid);
      }
    }
#pragma unroll
    for (int part = 0; part < kBatch; ++part) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) scores[i] += v[part][i];
    }
  }
}

// A warp a token.
template <int kOwn>
__global__ void __launch_bounds__(kSelectWarps * 32) SelectKernel(const RouterArgs args, int parts) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int token = blockIdx.x * kSelectWarps + threadIdx.x / 32;
  if (token >= args.num_tokens) return;
  float scores[1][kOwn] = {};
  int ids[1];
  SumParts<kOwn>(scores[0], args, parts, token);
  SelectTokens<kOwn>(args, scores, token, 1, args.num_tokens, GlobalTally(args), ids);
}

constexpr int kFusedWarps = 16;
constexpr int kFusedPairs = kFewRoutedTokens * 32;

struct FusedShared {
  // Of each warp, each lane's four sums.
  float sums[kFusedWarps][4][32];
  alignas(16) int groups[kFusedPairs];
  bool last;
};

// Rows of the pairs and beginnings of the groups, by comparing all pairs with each other: their groups are in `groups`.
template <int kThreadCount>
__device__ void GroupFew(const GroupKernelArgs& args, int* groups) {
  constexpr int kNone = 1 << 20;
  const int thread = threadIdx.x, padded = DivideUp(args.num_pairs, 4) * 4;
  for (int pair = thread; pair < padded; pair += kThreadCount) {
    const int group = pair < args.num_pairs ? args.group_of[args.ids[pair]] : -1;
    groups[pair] = group >= 0 ? group : kNone;
  }
  __syncthreads();
  // Entry i of both: pair i, and the beginning of group i.
  const int entries = max(args.num_pairs, args.num_groups + 1);
  for (int i = thread; i < entries; i += kThreadCount) {
    const int own = i < args.num_pairs ? groups[i] : kNone;
    int row = 0, begin = 0;
    for (int base = 0; base < padded; base += 4) {
      const int4 v = *reinterpret_cast<const int4*>(groups + base);
      const int others[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        row += others[j] < own || (others[j] == own && base + j < i);
        begin += others[j] < i;
      }
    }
    if (i < args.num_pairs) {
      args.row_of[i] = own != kNone ? row : -1;
      if (own != kNone) args.order[row] = i;
    }
    if (i <= args.num_groups) args.begin[i] = begin;
  }
}

// Grid (tiles of 16 experts, parts of the hidden size): logits of the tokens. The last block to end routes them and
// groups their pairs. (RouterArgs' ids are GroupKernelArgs'.)
template <int kOwn>
__global__ void __launch_bounds__(kFusedWarps * 32, 1)
    RouteAndGroupKernel(const __grid_constant__ RouterArgs args, const __grid_constant__ GroupKernelArgs group,
                        uint32_t* done) {
  static_assert(kFewRoutedTokens <= kTileColumns);
  __shared__ FusedShared shared;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int experts = args.rule.num_experts, first_expert = blockIdx.x * 16;
  const int lines = DivideUp(args.hidden_size, kLineK), stride = gridDim.y * kFusedWarps;
  const int own = first_expert + lane / 4;
  const size_t bytes = size_t{2} * args.hidden_size;
  const auto* router = static_cast<const uint8_t*>(args.router_weights);
  const uint8_t* row = own < experts ? router + own * bytes : nullptr;
  const uint8_t* row_8 = own + 8 < experts ? router + (own + 8) * bytes : nullptr;
  int line = blockIdx.y * kFusedWarps + warp;
  WeightLines weights;
  LoadLines(weights, row, row_8, line, stride, lines, args.hidden_size);
  LetNextKernelStart();
  WaitForPreviousKernel();
  const uint8_t* const columns[1] = {
      lane / 4 < args.num_tokens ? static_cast<const uint8_t*>(args.hidden) + lane / 4 * bytes : nullptr};
  float sums[1][4] = {};
  for (bool loaded = true; line < lines; loaded = false) {
    if (!loaded) LoadLines(weights, row, row_8, line, stride, lines, args.hidden_size);
    MultiplyLines(sums, weights, columns, line, stride, lines, args.hidden_size);
    line += kLinesAtOnce * stride;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) shared.sums[warp][i][lane] = sums[0][i];
  __syncthreads();
  if (thread < 128) {
    const int i = thread / 32, token = lane % 4 * 2 + i % 2, expert = first_expert + lane / 4 + i / 2 * 8;
    if (token < args.num_tokens && expert < experts) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kFusedWarps; ++w) sum += shared.sums[w][i][lane];
      args.logits[(static_cast<size_t>(blockIdx.y) * args.num_tokens + token) * experts + expert] = sum;
    }
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) shared.last = atomicAdd(done, 1) + 1 == gridDim.x * gridDim.y;
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  if (thread == 0) *done = 0;
  for (int token = warp; token < args.num_tokens; token += kFusedWarps) {
    float scores[1][kOwn] = {};
    int ids[1];
    SumParts<kOwn>(scores[0], args, gridDim.y, token);
    SelectTokens<kOwn>(args, scores, token, 1, args.num_tokens, GlobalTally(args), ids);
  }
  __syncthreads();
  GroupFew<kFusedWarps * 32>(group, shared.groups);
}

template <int kOwn>
cudaError_t LaunchFused(const RouterArgs& args, const GroupKernelArgs& group, uint32_t* done, cudaStream_t stream) {
  // A line a warp.
  const int parts = min(DivideUp(DivideUp(args.hidden_size, kLineK), kFusedWarps), kMaxRouterParts);
  const dim3 grid(DivideUp(args.rule.num_experts, 16), parts);
  return Launch(RouteAndGroupKernel<kOwn>, {grid, kFusedWarps * 32}, stream, args, group, done);
}

template <int kExperts>
cudaError_t LaunchLogits(const RouterArgs& args, int parts, cudaStream_t stream) {
  using Tile = LogitsTile<kExperts>;
  constexpr size_t kSharedBytes = size_t{Tile::kStages} * Tile::kStageBytes;
  // Every time: it is kept by device.
  const cudaError_t allowed = AllowSharedMemory(LogitsKernel<Tile>, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(DivideUp(args.num_tokens, Tile::kTokens), DivideUp(args.rule.num_experts, kExperts), parts);
  return Launch(LogitsKernel<Tile>, {grid, Tile::kThreads, kSharedBytes}, stream, args);
}

template <int kOwn>
cudaError_t LaunchSelect(const RouterArgs& args, int parts, cudaStream_t stream) {
  return Launch(SelectKernel<kOwn>, {dim3(DivideUp(args.num_tokens, kSelectWarps)), kSelectWarps * 32}, stream, args,
                parts);
}

}  // namespace

cudaError_t LaunchRouteFew(const RouterArgs& args, cudaStream_t stream) {
  const int experts = args.rule.num_experts, tile_experts = experts <= kFewExperts ? kFewExperts : kManyExperts;
  // About a block a multiprocessor; sums of more parts take longer than they save.
  const int tiles = DivideUp(args.num_tokens, LogitsTile<kFewExperts>::kTokens) * DivideUp(experts, tile_experts);
  int parts = 1;
  while (!args.row_invariant && parts < kMaxRouterParts && tiles * parts * 2 <= kMultiprocessors) parts *= 2;
  const cudaError_t error = tile_experts == kFewExperts ? LaunchLogits<kFewExperts>(args, parts, stream)
                                                        : LaunchLogits<kManyExperts>(args, parts, stream);
  if (error != cudaSuccess) return error;
  if (experts <= 64) return LaunchSelect<2>(args, parts, stream);
  if (experts <= 128) return LaunchSelect<4>(args, parts, stream);
  if (experts <= 256) return LaunchSelect<8>(args, parts, stream);
  return LaunchSelect<16>(args, parts, stream);
}

cudaError_t LaunchRouteAndGroupFew(const RouterArgs& args, const GroupKernelArgs& group, uint32_t* done,
                                   cudaStream_t stream) {
  if (args.rule.num_experts <= 64) return LaunchFused<2>(args, group, done, stream);
  if (args.rule.num_experts <= 128) return LaunchFused<4>(args, group, done, stream);
  if (args.rule.num_experts <= 256) return LaunchFused<8>(args, group, done, stream);
  return LaunchFused<16>(args, group, done, stream);
}

}  // namespace ballast::internal
