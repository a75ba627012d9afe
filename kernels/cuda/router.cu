#include <cuda_bf16.h>

#include "kernels/cuda/columns.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/router_kernel.h"

namespace ballast::internal {
namespace {

constexpr int kThreads = 256;
constexpr int kTileK = 64;
constexpr int kRowBytes = kTileK * 2;
constexpr int kFewTokens = 512;  // up to here the tiles of the first kernel have 16 tokens
constexpr int kMultiprocessors = 132;
// Warps of a block of the second kernel. Many tokens are first counted in shared memory, because additions to one
// address of global memory wait for each other.
constexpr int kFewWarps = 4;
constexpr int kManyWarps = 16;
constexpr int kTableCells = 2048;
constexpr unsigned kAll = ~0u;

__host__ __device__ constexpr int DivideUp(int a, int b) { return (a + b - 1) / b; }

__device__ uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Four 8x8 matrices of bf16, whose rows are at the lanes' addresses.
__device__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ void Multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MultiplyTile(d, a[0], a[1], a[2], a[3], b0, b1);
}

// Address of 16 bytes of a row of 128, swizzled so that 8 rows' are in different banks.
__device__ uint32_t Chunk(uint32_t tile, int row, int chunk) {
  return tile + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Rows [first, first + count) of a matrix of `rows` rows, 64 columns from `column` on; zeros outside.
template <int kRows>
__device__ void LoadRows(uint32_t tile, const void* matrix, int first, int rows, int column, int columns) {
#pragma unroll
  for (int i = 0; i < DivideUp(kRows * 8, kThreads); ++i) {
    const int index = i * kThreads + threadIdx.x, row = index / 8, chunk = index % 8;
    if (kRows * 8 % kThreads != 0 && row >= kRows) break;
    const int at = column + chunk * 8;
    const bool inside = first + row < rows && at < columns;
    const auto* from =
        static_cast<const __nv_bfloat16*>(matrix) + (inside ? static_cast<size_t>(first + row) * columns + at : 0);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(Chunk(tile, row, chunk)), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
  }
}

// Experts of a tile: few for models with few, whose steps are bound by reading the tokens.
constexpr int kFewExperts = 16, kManyExperts = 128;

template <int kTokens, int kExperts>
struct LogitsTile {
  // Warps side by side over experts, and over tokens where there are many.
  static constexpr int kWarpTokens = kTokens == 16 || kExperts == kFewExperts ? 16 : 32;
  static constexpr int kTokenWarps = kTokens / kWarpTokens;
  static constexpr int kExpertWarps =
      kThreads / 32 / kTokenWarps < kExperts / 16 ? kThreads / 32 / kTokenWarps : kExperts / 16;
  static constexpr int kWarpExperts = kExperts / kExpertWarps;
  static constexpr int kStageBytes = (kTokens + kExperts) * kRowBytes;
  // A decode step's part is in flight at once; the largest tiles leave room for a second block.
  static constexpr int kStages = kTokens == 16 ? 6 : kExperts == kFewExperts ? 4 : 3;
};

// Logits of kTokens tokens by kExperts experts over one part of the hidden size: grid (token tiles, expert tiles,
// parts).
template <int kTokens, int kExperts>
__global__ void __launch_bounds__(kThreads) LogitsKernel(const RouterArgs args) {
  using Tile = LogitsTile<kTokens, kExperts>;
  constexpr int kWarpTokens = Tile::kWarpTokens, kWarpExperts = Tile::kWarpExperts;
  constexpr int kStages = Tile::kStages, kStageBytes = Tile::kStageBytes;
  extern __shared__ __align__(128) uint8_t storage[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_token = blockIdx.x * kTokens, first_expert = blockIdx.y * kExperts;
  const int warp_token = warp % Tile::kTokenWarps * kWarpTokens, warp_expert = warp / Tile::kTokenWarps * kWarpExperts;
  // Few tokens by few experts leave warps over, which only load.
  const bool multiplies = warp < Tile::kTokenWarps * Tile::kExpertWarps;
  const int steps = DivideUp(args.hidden_size, kTileK);
  const int begin = static_cast<int>(static_cast<int64_t>(steps) * blockIdx.z / gridDim.z);
  const int end = static_cast<int>(static_cast<int64_t>(steps) * (blockIdx.z + 1) / gridDim.z);
  const uint32_t shared = SharedAddress(storage);
  const auto load = [&](int step) {
    if (step < end) {
      const uint32_t tile = shared + step % kStages * kStageBytes;
      LoadRows<kTokens>(tile, args.hidden, first_token, args.num_tokens, step * kTileK, args.hidden_size);
      LoadRows<kExperts>(tile + kTokens * kRowBytes, args.router_weights, first_expert, args.rule.num_experts,
                         step * kTileK, args.hidden_size);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sums[kWarpTokens / 16][kWarpExperts / 8][4] = {};
  LetNextKernelStart();
  WaitForPreviousKernel();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load(begin + i);
  for (int step = begin; step < end; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();
    load(step + kStages - 1);
    const uint32_t tokens = shared + step % kStages * kStageBytes, experts = tokens + kTokens * kRowBytes;
#pragma unroll
    for (int k = 0; k < kTileK / 16 && multiplies; ++k) {
      uint32_t a[kWarpTokens / 16][4];
#pragma unroll
      for (int m = 0; m < kWarpTokens / 16; ++m) {
        LoadMatrices(a[m], Chunk(tokens, warp_token + m * 16 + lane % 16, k * 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kWarpExperts / 16; ++n) {
        // Experts 0-7 and 8-15, k 0-7 and 8-15.
        uint32_t b[4];
        LoadMatrices(b, Chunk(experts, warp_expert + n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kWarpTokens / 16; ++m) {
          Multiply(sums[m][n * 2], a[m], b[0], b[1]);
          Multiply(sums[m][n * 2 + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
  if (!multiplies) return;
  float* logits = args.logits + static_cast<size_t>(blockIdx.z) * args.num_tokens * args.rule.num_experts;
#pragma unroll
  for (int m = 0; m < kWarpTokens / 16; ++m) {
#pragma unroll
    for (int n = 0; n < kWarpExperts / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first_token + warp_token + m * 16 + lane / 4 + i / 2 * 8;
        const int expert = first_expert + warp_expert + n * 8 + lane % 4 * 2 + i % 2;
        if (token < args.num_tokens && expert < args.rule.num_experts) {
          logits[static_cast<size_t>(token) * args.rule.num_experts + expert] = sums[m][n][i];
        }
      }
    }
  }
}

// Order of floats as order of integers.
__device__ uint32_t Ordered(float f) {
  const uint32_t u = __float_as_uint(f);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ float WarpSum(float v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(kAll, v, distance);
  return v;
}

// The lane's kOwn neighbours: the warp's best, ties to the lower expert; -infinity is never chosen while another is
// left.
template <int kOwn>
__device__ int Best(const float (&scores)[kOwn], int lane) {
  float own = scores[0];
  int at = 0;
#pragma unroll
  for (int i = 1; i < kOwn; ++i) {
    if (scores[i] > own) {
      own = scores[i];
      at = i;
    }
  }
  const uint32_t key = Ordered(own), best = __reduce_max_sync(kAll, key);
  return __reduce_min_sync(kAll, key == best ? lane * kOwn + at : 0x7fffffff);
}

// Sums the parts of a token's logits, in order, and chooses its experts: a warp, kOwn neighbouring experts a lane.
// Counts to `counts` and `gate_mass`, in shared or global memory.
template <int kOwn>
__device__ __forceinline__ void SelectToken(const RouterArgs& args, int parts, int token, unsigned long long* counts,
                                            unsigned long long* gate_mass) {
  const CudaRouterRule& rule = args.rule;
  const int lane = threadIdx.x % 32, experts = rule.num_experts;
  const float kNone = -__int_as_float(0x7f800000);
  float scores[kOwn] = {};
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
        // Past L1: other blocks of this kernel may have written them.
        v[part][i] = valid ? __ldcg(logits + static_cast<size_t>(first + part) * args.num_tokens * experts + i) : 0;
      }
    }
#pragma unroll
    for (int part = 0; part < kBatch; ++part) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) scores[i] += v[part][i];
    }
  }
  float chosen_by[kOwn];
  if (rule.score == RouterScore::kSoftmax) {
    float most = kNone;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (lane * kOwn + i >= experts) scores[i] = kNone;
      most = fmaxf(most, scores[i]);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, distance));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      scores[i] = expf(scores[i] - most);
      sum += scores[i];
    }
    sum = WarpSum(sum);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      scores[i] /= sum;
      chosen_by[i] = lane * kOwn + i < experts ? scores[i] : kNone;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int expert = lane * kOwn + i;
      scores[i] = 1 / (1 + expf(-scores[i]));
      chosen_by[i] = expert < experts ? scores[i] + (args.bias != nullptr ? args.bias[expert] : 0) : kNone;
    }
    if (rule.num_groups > 1) {
      // The group's lanes are neighbours, too.
      const int group_lanes = 32 / rule.num_groups;
      float first = kNone, second = kNone;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        second = fmaxf(second, fminf(first, chosen_by[i]));
        first = fmaxf(first, chosen_by[i]);
      }
      for (int distance = 1; distance < group_lanes; distance *= 2) {
        const float other_first = __shfl_xor_sync(kAll, first, distance);
        const float other_second = __shfl_xor_sync(kAll, second, distance);
        second = fmaxf(fmaxf(second, other_second), fminf(first, other_first));
        first = fmaxf(first, other_first);
      }
      const float score = first + second;
      int better = 0;
      for (int g = 0; g < rule.num_groups; ++g) {
        const float other = __shfl_sync(kAll, score, g * group_lanes);
        better += other > score || (other == score && g < lane / group_lanes);
      }
      if (better >= rule.top_groups) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) chosen_by[i] = kNone;
      }
    }
  }
  // Lane j keeps choice j.
  int own_id = 0;
  float own_weight = 0;
  for (int j = 0; j < rule.top_k; ++j) {
    const int id = Best<kOwn>(chosen_by, lane);
    float weight = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (lane * kOwn + i == id) {
        weight = scores[i];
        chosen_by[i] = kNone;
      }
    }
    weight = __shfl_sync(kAll, weight, id / kOwn);
    if (lane == j) {
      own_id = id;
      own_weight = weight;
    }
  }
  if (rule.renormalize) {
    float sum = 0;  // in the order of choices
    for (int j = 0; j < rule.top_k; ++j) sum += __shfl_sync(kAll, own_weight, j);
    // Sigmoids can all be 0.
    own_weight /= rule.score == RouterScore::kSigmoid ? sum + 1e-20f : sum;
  }
  own_weight *= rule.scale;
  if (lane < rule.top_k) {
    const size_t at = static_cast<size_t>(token) * rule.top_k + lane;
    args.ids[at] = own_id;
    args.weights[at] = own_weight;
    const int cell = (args.task != nullptr ? args.task[token] * experts : 0) + own_id;
    if (counts != nullptr) atomicAdd(counts + cell, 1ull);
    if (gate_mass != nullptr) atomicAdd(gate_mass + cell, __float2ull_rn(own_weight * 4294967296.0f));
  }
}

template <int kOwn>
__global__ void __launch_bounds__(kFewWarps * 32) SelectFewKernel(const RouterArgs args, int parts) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int token = blockIdx.x * kFewWarps + threadIdx.x / 32;
  if (token >= args.num_tokens) return;
  SelectToken<kOwn>(args, parts, token, reinterpret_cast<unsigned long long*>(args.counts),
                    reinterpret_cast<unsigned long long*>(args.gate_mass));
}

// Each warp has warp_tokens tokens.
template <int kOwn>
__global__ void __launch_bounds__(kManyWarps * 32) SelectManyKernel(const RouterArgs args, int parts, int warp_tokens) {
  __shared__ unsigned long long table[2][kTableCells];
  const int cells = args.num_tasks * args.rule.num_experts;
  const bool tabled = cells <= kTableCells;
  for (int i = threadIdx.x; tabled && i < cells; i += kManyWarps * 32) table[0][i] = table[1][i] = 0;
  LetNextKernelStart();
  WaitForPreviousKernel();
  __syncthreads();
  auto* counts = reinterpret_cast<unsigned long long*>(args.counts);
  auto* gate_mass = reinterpret_cast<unsigned long long*>(args.gate_mass);
  const int first = (blockIdx.x * kManyWarps + threadIdx.x / 32) * warp_tokens;
  const int end = min(first + warp_tokens, args.num_tokens);
  for (int token = first; token < end; ++token) {
    SelectToken<kOwn>(args, parts, token, tabled && counts != nullptr ? table[0] : counts,
                      tabled && gate_mass != nullptr ? table[1] : gate_mass);
  }
  __syncthreads();
  for (int i = threadIdx.x; tabled && i < cells; i += kManyWarps * 32) {
    if (table[0][i] != 0) atomicAdd(counts + i, table[0][i]);
    if (table[1][i] != 0) atomicAdd(gate_mass + i, table[1][i]);
  }
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
    SelectToken<kOwn>(args, gridDim.y, token, reinterpret_cast<unsigned long long*>(args.counts),
                      reinterpret_cast<unsigned long long*>(args.gate_mass));
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

int TileExperts(int num_experts) { return num_experts <= kFewExperts ? kFewExperts : kManyExperts; }

template <int kTokens, int kExperts>
cudaError_t LaunchLogits(const RouterArgs& args, int parts, cudaStream_t stream) {
  using Tile = LogitsTile<kTokens, kExperts>;
  constexpr size_t kSharedBytes = size_t{Tile::kStages} * Tile::kStageBytes;
  // Every time: it is kept by device.
  const cudaError_t allowed = AllowSharedMemory(LogitsKernel<kTokens, kExperts>, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const dim3 grid(DivideUp(args.num_tokens, kTokens), DivideUp(args.rule.num_experts, kExperts), parts);
  return Launch(LogitsKernel<kTokens, kExperts>, {grid, kThreads, kSharedBytes}, stream, args);
}

template <int kTokens>
cudaError_t LaunchLogits(const RouterArgs& args, int parts, cudaStream_t stream) {
  return args.rule.num_experts <= kFewExperts ? LaunchLogits<kTokens, kFewExperts>(args, parts, stream)
                                              : LaunchLogits<kTokens, kManyExperts>(args, parts, stream);
}

template <int kOwn>
cudaError_t LaunchSelect(const RouterArgs& args, int parts, cudaStream_t stream) {
  // A block has to add to a cell at least twice to be worth it.
  const bool many =
      args.num_tokens > kFewTokens ||
      (args.num_tokens >= kManyWarps && kManyWarps * args.rule.top_k >= 2 * args.num_tasks * args.rule.num_experts);
  if (!many) {
    return Launch(SelectFewKernel<kOwn>, {dim3(DivideUp(args.num_tokens, kFewWarps)), kFewWarps * 32}, stream, args,
                  parts);
  }
  const int warp_tokens = DivideUp(args.num_tokens, kManyWarps * kMultiprocessors);
  return Launch(SelectManyKernel<kOwn>, {dim3(DivideUp(args.num_tokens, kManyWarps * warp_tokens)), kManyWarps * 32},
                stream, args, parts, warp_tokens);
}

}  // namespace

int RouterParts(int num_tokens, int num_experts) {
  const int tiles =
      DivideUp(num_tokens, num_tokens <= kFewTokens ? 16 : 128) * DivideUp(num_experts, TileExperts(num_experts));
  // About a block a multiprocessor, two where tokens are many; sums of more parts take longer than they save.
  const int blocks = num_tokens <= kFewTokens || tiles < kMultiprocessors / 2 ? kMultiprocessors : 2 * kMultiprocessors;
  int parts = 1;
  while (parts < kMaxRouterParts && tiles * parts * 2 <= blocks) parts *= 2;
  return parts;
}

cudaError_t LaunchRouter(const RouterArgs& args, cudaStream_t stream) {
  const int parts = args.row_invariant ? 1 : RouterParts(args.num_tokens, args.rule.num_experts);
  const cudaError_t error =
      args.num_tokens <= kFewTokens ? LaunchLogits<16>(args, parts, stream) : LaunchLogits<128>(args, parts, stream);
  if (error != cudaSuccess) return error;
  if (args.rule.num_experts <= 64) return LaunchSelect<2>(args, parts, stream);
  if (args.rule.num_experts <= 128) return LaunchSelect<4>(args, parts, stream);
  if (args.rule.num_experts <= 256) return LaunchSelect<8>(args, parts, stream);
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
