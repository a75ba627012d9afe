#include "kernels/cuda/grouping.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/router_kernel.h"
#include "kernels/cuda/router_product.h"
#include "kernels/cuda/router_select.h"

namespace ballast::internal {
namespace {

// A block computes the logits of a tile of tokens over one part of the hidden size; a cluster of blocks has all parts.
// Each of them then has its share of the tile's tokens: it sums their logits' parts, which lie in the cluster's shared
// memory, in order, chooses their experts, and ranks the choices by group for PlaceKernel.

constexpr int kMultiprocessors = 132;
constexpr int kMostExperts = 512;
constexpr int kMaxTopK = 32;
constexpr int kMaxGroups = 1024;
constexpr int kMostParts = 8;  // a cluster's blocks
// Cells that a block counts in shared memory, where it is likely to add to one more than once: additions to one address
// of global memory wait for each other.
constexpr int kTableCells = 1024;

// Counts and gate mass of a block, in shared memory: counts, and lower and upper words of the mass.
struct BlockTally {
  __device__ void Add(int cell, float weight) const {
    const unsigned long long mass = GlobalTally::Mass(weight);
    const uint32_t low = static_cast<uint32_t>(mass), before = atomicAdd(words + kTableCells + cell, low);
    atomicAdd(words + cell, 1);
    // 64 bits at once would be a loop.
    atomicAdd(words + 2 * kTableCells + cell, static_cast<uint32_t>(mass >> 32) + (before + low < low ? 1 : 0));
  }
  __device__ void AddTo(const GlobalTally& all, int cell) const {
    if (words[cell] == 0) return;
    if (all.counts != nullptr) {
      atomicAdd(reinterpret_cast<unsigned long long*>(all.counts) + cell, static_cast<unsigned long long>(words[cell]));
    }
    if (all.gate_mass != nullptr) {
      atomicAdd(reinterpret_cast<unsigned long long*>(all.gate_mass) + cell,
                static_cast<unsigned long long>(words[2 * kTableCells + cell]) << 32 | words[kTableCells + cell]);
    }
  }

  uint32_t* words;
};
constexpr int kTableBytes = kTableCells * 12;

// All blocks of the cluster wait for each other, in two halves. One block is a cluster, too.
__device__ void ArriveAtCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ void WaitForCluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// Neighbouring floats in shared memory of block `rank` of the cluster, at this block's address of the same.
template <int kCount>
__device__ void LoadFrom(int rank, const float* p, float (&v)[kCount]) {
#if __CUDA_ARCH__ >= 900
  uint32_t at;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(SharedAddress(p)), "r"(rank));
  if constexpr (kCount == 1) {
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v[0]) : "r"(at) : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v[0]), "=f"(v[1]) : "r"(at) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(v[i]), "=f"(v[i + 1]), "=f"(v[i + 2]), "=f"(v[i + 3])
                   : "r"(at + 4 * i)
                   : "memory");
    }
  }
#else
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = p[i];
#endif
}

// Adds a row's logits in the cluster's blocks, in order.
template <int kExperts, int kOwn>
__device__ void SumParts(float (&scores)[kOwn], const float* row, int parts) {
  const int first = threadIdx.x % 32 * kOwn;
  if (first >= kExperts) return;
  if (parts == 1) {
    LoadFrom(0, row + first, scores);
    return;
  }
  constexpr int kAtOnce = kOwn >= 16 ? 2 : kOwn == 8 ? 4 : 8;
  for (int base = 0; base < parts; base += kAtOnce) {
    float v[kAtOnce][kOwn] = {};
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
      if (base + p < parts) LoadFrom(base + p, row + first, v[p]);
    }
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) scores[j] += v[p][j];
    }
  }
}

template <int kTokensOf, int kExpertsOf>
struct RouteTile {
  static constexpr int kTokens = kTokensOf, kExperts = kExpertsOf;
  static constexpr int kThreads = 512, kWarps = kThreads / 32;
  // Elements of k of a stage: more where little is done with them, so that there are fewer barriers.
  static constexpr int kTileK = kExperts == 16 ? 128 : 64;
  static constexpr int kWarpTokens = kExperts == 16 ? 16 : 32;
  static constexpr int kTokenWarps = kTokens / kWarpTokens;
  static constexpr int kExpertWarps = Smaller(kWarps / kTokenWarps, kExperts / 16);
  static constexpr int kWarpExperts = kExperts / kExpertWarps;
  static constexpr int kStageBytes = (kTokens + kExperts) * kTileK * 2;
  static constexpr int kStages = Smaller(216 * 1024 / kStageBytes, 8);
  // After the products: logits, so padded that rows are in different banks; the choices' groups; counts and gate mass;
  // ranks of runs of pairs.
  // As many as where tokens are few: a softmax is summed by lanes.
  static constexpr int kOwn = Larger(kExperts / 32, 2);
  static constexpr int kLogitsStride = kExperts + 8;
  static constexpr int kGroups = kTokens * kLogitsStride * 4;
  static constexpr int kTable = kGroups + kTokens * kMaxTopK * 4;
  static constexpr int kRuns = kTable + kTableBytes;
  static constexpr int kRunWarps = 8;
  static constexpr int SharedBytes(int num_groups) {
    return Larger(kStages * kStageBytes, kRuns + kRunWarps * num_groups * 4);
  }
};

// Grid: clusters of `parts` blocks, one a tile. `group`: no groups, where choices are not grouped.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    RouteKernel(const __grid_constant__ RouterArgs args, const __grid_constant__ GroupKernelArgs group, int parts) {
  constexpr int kTokens = Tile::kTokens, kExperts = Tile::kExperts;
  constexpr int kThreads = Tile::kThreads, kWarps = Tile::kWarps, kOwn = Tile::kOwn;
  extern __shared__ __align__(128) uint8_t storage[];
  __shared__ int group_of[kMostExperts];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int experts = args.rule.num_experts, top_k = args.rule.top_k;
  const int part = blockIdx.x % parts, first_token = blockIdx.x / parts * kTokens;
  const int steps = DivideUp(args.hidden_size, Tile::kTileK);
  Product<Tile> product;
  product.Add(args, first_token, 0, steps * part / parts, steps * (part + 1) / parts, storage, [&] {
    for (int i = thread; group.num_groups > 0 && i < experts; i += kThreads) group_of[i] = group.group_of[i];
  });
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  // The stages have been read.
  auto* const logits = reinterpret_cast<float*>(storage);
  auto* const groups = reinterpret_cast<int*>(storage + Tile::kGroups);
  const BlockTally table = {reinterpret_cast<uint32_t*>(storage + Tile::kTable)};
  auto* const runs = reinterpret_cast<int*>(storage + Tile::kRuns);
  // This block's tokens, and pairs.
  const int own_tokens = kTokens / parts, first = blockIdx.x * own_tokens;
  const int tokens = max(0, min(args.num_tokens - first, own_tokens)), pairs = tokens * top_k;
  const int run_pairs = RunPairs(pairs, Tile::kRunWarps), num_runs = Runs(pairs, run_pairs);
  const int cells = args.num_tasks * experts;
  const bool tabled =
      (args.counts != nullptr || args.gate_mass != nullptr) && cells <= kTableCells && own_tokens * top_k >= cells;
  for (int i = thread; tabled && i < cells; i += kThreads) {
    for (int word = 0; word < 3; ++word) table.words[word * kTableCells + i] = 0;
  }
  for (int i = thread; i < num_runs * group.num_groups; i += kThreads) runs[i] = 0;
  product.ForEach([&](int token, int expert, float sum, float next) {
    *reinterpret_cast<float2*>(logits + token * Tile::kLogitsStride + expert) = {sum, next};
  });
  ArriveAtCluster();
  WaitForCluster();
  // Tokens of a warp at once.
  constexpr int kCount = kOwn <= 8 ? 2 : 1;
  for (int i = warp; i < tokens; i += kCount * kWarps) {
    float scores[kCount][kOwn] = {};
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      if (i + u * kWarps < tokens) {
        SumParts<kExperts>(scores[u], logits + (part * own_tokens + i + u * kWarps) * Tile::kLogitsStride, parts);
      }
    }
    int ids[kCount];
    if (tabled) {
      SelectTokens<kOwn>(args, scores, first + i, kWarps, first + tokens, table, ids);
    } else {
      SelectTokens<kOwn>(args, scores, first + i, kWarps, first + tokens, GlobalTally(args), ids);
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const int at = i + u * kWarps;
      if (group.num_groups > 0 && lane < top_k && at < tokens) groups[at * top_k + lane] = group_of[ids[u]];
    }
  }
  // Nothing of another block is read from here on.
  ArriveAtCluster();
  __syncthreads();
  for (int i = thread; tabled && i < cells; i += kThreads) table.AddTo(GlobalTally(args), i);
  if (group.num_groups > 0) {
    CountRuns(groups, pairs, run_pairs, group.num_groups, runs);
    __syncthreads();
    for (int g = thread; g < group.num_groups; g += kThreads) {
      group.tile_counts[static_cast<size_t>(blockIdx.x) * group.num_groups + g] =
          BeginRuns(runs, g, num_runs, group.num_groups, 0);
    }
    __syncthreads();
    int32_t* const rank_of = group.row_of + static_cast<size_t>(first) * top_k;
    RankRuns(groups, pairs, run_pairs, group.num_groups, runs, [&](int pair, int rank) { rank_of[pair] = rank; });
  }
  WaitForCluster();
}

// Tokens of a tile, its blocks, and those of all tiles.
struct Shape {
  int tokens, parts, blocks;
};
Shape ShapeOf(const RouterArgs& args, bool clusters) {
  const int middle = args.rule.num_experts > 256 ? 32 : 64;
  Shape shape = {args.num_tokens <= kMultiprocessors * middle ? middle : 2 * middle, 1, 0};
  // All blocks run at once, one a multiprocessor. Large clusters leave some of a processing cluster's over.
  const int tiles = DivideUp(args.num_tokens, shape.tokens);
  const auto room = [](int parts) { return parts <= 2 ? kMultiprocessors : parts == 4 ? 120 : 96; };
  while (clusters && !args.row_invariant && shape.parts < kMostParts &&
         tiles * shape.parts * 2 <= room(shape.parts * 2)) {
    shape.parts *= 2;
  }
  shape.blocks = tiles * shape.parts;
  return shape;
}

template <int kTokens, int kExperts>
cudaError_t LaunchTiles(const RouterArgs& args, const GroupKernelArgs& group, const Shape& shape, cudaStream_t stream) {
  using Tile = RouteTile<kTokens, kExperts>;
  // Every time: it is kept by device.
  const size_t bytes = Tile::SharedBytes(group.num_groups);
  const cudaError_t allowed = AllowSharedMemory(RouteKernel<Tile>, Tile::SharedBytes(kMaxGroups));
  if (allowed != cudaSuccess) return allowed;
  return Launch(RouteKernel<Tile>, {dim3(shape.blocks), Tile::kThreads, bytes, shape.parts}, stream, args, group,
                shape.parts);
}

template <int kExperts>
cudaError_t LaunchTiles(const RouterArgs& args, const GroupKernelArgs& group, const Shape& shape, cudaStream_t stream) {
  constexpr int kMiddle = kExperts == 512 ? 32 : 64;
  return shape.tokens == kMiddle ? LaunchTiles<kMiddle, kExperts>(args, group, shape, stream)
                                 : LaunchTiles<2 * kMiddle, kExperts>(args, group, shape, stream);
}

}  // namespace

int MostRouteBlocks(int max_tokens) { return Larger(kMultiprocessors, DivideUp(max_tokens, 32)); }

cudaError_t LaunchRouteMany(const RouterArgs& args, const GroupKernelArgs& group, cudaStream_t stream) {
  int device = 0, clusters = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  if (error != cudaSuccess) return error;
  const Shape shape = ShapeOf(args, clusters != 0);
  const int experts = args.rule.num_experts;
  error = experts <= 16    ? LaunchTiles<16>(args, group, shape, stream)
          : experts <= 64  ? LaunchTiles<64>(args, group, shape, stream)
          : experts <= 128 ? LaunchTiles<128>(args, group, shape, stream)
          : experts <= 256 ? LaunchTiles<256>(args, group, shape, stream)
                           : LaunchTiles<512>(args, group, shape, stream);
  if (error != cudaSuccess || group.num_groups == 0) return error;
  return LaunchPlacePairs(group, shape.tokens / shape.parts * args.rule.top_k, shape.blocks, stream);
}

}  // namespace ballast::internal
