#include <cuda_bf16.h>

#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/hopper.h"
#include "kernels/cuda/launch.h"

namespace ballast::internal {
namespace {

// One persistent block a multiprocessor runs both GEMMs as one stream of tiles: gate and up with SwiGLU (phase 0), then
// down (phase 1). A warp loads weights by the tensor copy engine, three warps gather the tokens' rows, two warpgroups
// multiply. Weights are the M side of the product, so that a tile has as few columns as the expert has tokens. The
// weight loads of phase 1 do not wait for phase 0; the rows' do, by one counter a token tile.
//
// Where groups have many rows, two blocks of a cluster are a unit: they share a tile of weights, each loads one half of
// it to both, and have half of the tokens each (what bounds these steps is the way from L2 to the multiprocessors).
// Where they have few, tiles are narrow, for more stages: reading at full rate needs more bytes on their way.
//
// Whole tiles go round the units; the last one to two rounds are cut into equal runs of k steps (Osama et al.,
// "Stream-K", 2023), so that all units end together. A unit that ends a run inside a tile leaves its sums in the
// workspace; the unit that began the tile adds them in the order of units.
constexpr int kThreads = 384;
constexpr int kGatherThreads = 96;
constexpr int kConsumerWarps = 8;
constexpr uint32_t kBoxBytes = kBoxRows * kTileK * 2;
constexpr uint32_t kWeightBytes = kTileBoxes * kBoxBytes;
constexpr int kRowBytes = kTileK * 2;
// Output goes through shared memory, this many tokens at a time, so that it is written by whole lines: rows of at most
// 128 elements, padded so that 8 of them are in different banks.
constexpr int kStoreTokens = 16;
constexpr int kStoreBytes = 128 * 2 + 16;

// Blocks of a tile, its tokens, and k steps in shared memory at once.
template <int kBlocksOf, int kTokensOf, int kStagesOf>
struct Form {
  static constexpr int kBlocks = kBlocksOf, kTokens = kTokensOf, kStages = kStagesOf;
  // Whether the products of a k step begin while those of the one before run: not where loads take longer than both.
  static constexpr bool kHolds = kTokens == kWideTokens;
  // Two of 64 rows of weights: a thread's sums.
  using Sums = float[2][kTokens / 2];
};
using Narrow = Form<1, kNarrowTokens, 5>;
using Wide = Form<1, kWideTokens, 4>;
using Pair = Form<2, kWideTokens, 4>;

template <class F>
struct Shared {
  alignas(1024) uint8_t weights[F::kStages][kWeightBytes];
  alignas(1024) uint8_t tokens[F::kStages][F::kTokens * kRowBytes];
  // For each warpgroup two buffers of output rows.
  alignas(16) uint8_t rows[2][2][kStoreTokens * kStoreBytes];
  uint64_t full[F::kStages], empty[F::kStages];
  uint32_t launch;
  int slots[kMaxGroups];
  int begin[kMaxGroups + 1];
  // Token tiles of the groups before.
  int tiles[kMaxGroups + 1];
};

// A tile, or a run of its k steps.
struct Work {
  int phase, group, row_tile, token_tile;
  // This block's rows of `order`: [first, first + width). None, where the other block of a pair has all.
  int first, width;
  int k_begin, k_end;
};

__device__ int DivideUp(int a, int b) { return (a + b - 1) / b; }

// The work of one unit (a block, or a pair), in order.
template <class F>
class Schedule {
 public:
  __device__ Schedule(const Shared<F>& shared, const ExpertsArgs& args)
      : shared_(shared), args_(args), unit_(blockIdx.x / F::kBlocks), units_(gridDim.x / F::kBlocks) {
    Begin(0);
  }

  __device__ bool Next(Work& work) {
    if (next_tile_ >= whole_ && next_step_ >= last_step_) {
      if (phase_ == 1) return false;
      Begin(1);
      if (next_tile_ >= whole_ && next_step_ >= last_step_) return false;
    }
    int tile = next_tile_;
    work.k_begin = 0;
    work.k_end = k_steps_;
    if (tile < whole_) {
      next_tile_ += units_;
    } else {
      const int run_tile = next_step_ / k_steps_;
      work.k_begin = next_step_ - run_tile * k_steps_;
      work.k_end = min(k_steps_, work.k_begin + last_step_ - next_step_);
      next_step_ += work.k_end - work.k_begin;
      tile = whole_ + run_tile;
    }
    Locate(tile, work);
    return true;
  }

  // The first k step, of the steps after the whole tiles, that `unit` does. (Two rounds of tiles times the units is far
  // from 2^32.)
  __device__ int RunBegin(int unit) const { return static_cast<uint32_t>(steps_) * unit / units_; }
  __device__ int unit() const { return unit_; }
  __device__ int k_steps() const { return k_steps_; }
  // Row tiles of phase 0.
  __device__ static int ActivationTiles(const ExpertsArgs& args) {
    return DivideUp((args.gated ? 2 : 1) * args.intermediate_size, kTileRows);
  }

 private:
  __device__ void Begin(int phase) {
    phase_ = phase;
    row_tiles_ = phase == 0 ? ActivationTiles(args_) : DivideUp(args_.hidden_size, kTileRows);
    k_steps_ = DivideUp(phase == 0 ? args_.hidden_size : args_.intermediate_size, kTileK);
    const int tiles = shared_.tiles[args_.num_groups] * row_tiles_;
    const int rounds = tiles / units_;
    whole_ = tiles % units_ == 0 ? tiles : rounds > 1 ? (rounds - 1) * units_ : 0;
    steps_ = (tiles - whole_) * k_steps_;
    next_tile_ = unit_;
    next_step_ = RunBegin(unit_);
    last_step_ = RunBegin(unit_ + 1);
  }

  __device__ void Locate(int tile, Work& work) const {
    int low = 0, high = args_.num_groups - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (shared_.tiles[middle + 1] * row_tiles_ > tile) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const int token_tiles = shared_.tiles[low + 1] - shared_.tiles[low];
    const int local = tile - shared_.tiles[low] * row_tiles_;
    const int index = local % token_tiles;
    const int tokens = shared_.begin[low + 1] - shared_.begin[low];
    // Equal parts in columns of 8: 130 tokens are 72 and 58, not 128 and 2.
    const int part = index * F::kBlocks + blockIdx.x % F::kBlocks, parts = token_tiles * F::kBlocks;
    const int eights = DivideUp(tokens, 8), least = eights / parts, wider = eights % parts;
    const int begin = (least * part + min(part, wider)) * 8, end = begin + (least + (part < wider ? 1 : 0)) * 8;
    work.phase = phase_;
    work.group = low;
    work.row_tile = local / token_tiles;
    work.token_tile = shared_.tiles[low] * F::kBlocks + part;
    work.first = shared_.begin[low] + begin;
    work.width = min(end, tokens) - begin;
  }

  const Shared<F>& shared_;
  const ExpertsArgs& args_;
  const int unit_, units_;
  int phase_, row_tiles_, k_steps_, whole_, steps_, next_tile_, next_step_, last_step_;
};

// This launch's flags. The other half was the launch's before, and is cleared for the next.
__device__ uint32_t* Flags(const ExpertsArgs& args, uint32_t launch) {
  return args.flags + (launch & 1) * static_cast<size_t>(args.flag_words);
}

template <class F>
__device__ __forceinline__ void LoadWeights(Shared<F>& shared, const ExpertsArgs& args, const CUtensorMap* gate_up,
                                            const CUtensorMap* down) {
  uint32_t step = 0;
  Schedule<F> schedule(shared, args);
  Work work;
  while (schedule.Next(work)) {
    const int slot = shared.slots[work.group];
    for (int k = work.k_begin; k < work.k_end; ++k, ++step) {
      const int stage = step % F::kStages;
      BarrierWait(&shared.empty[stage], (step / F::kStages & 1) ^ 1);
      BarrierArriveExpect(&shared.full[stage], kWeightBytes);
#pragma unroll
      for (int i = 0; i < kTileBoxes / F::kBlocks; ++i) {
        const int box = F::kBlocks == 1 ? i : blockIdx.x % F::kBlocks;
        const int tile_box = work.row_tile * kTileBoxes + box;
        uint8_t* to = shared.weights[stage] + box * kBoxBytes;
        if (work.phase == 0 && args.gated) {
          TensorLoad<F::kBlocks>(to, gate_up, &shared.full[stage], k * kTileK, 0, 0, tile_box * kBoxGroups, slot);
        } else {
          TensorLoad<F::kBlocks>(to, work.phase == 0 ? gate_up : down, &shared.full[stage], k * kTileK,
                                 tile_box * kBoxRows, slot);
        }
      }
    }
  }
}

template <class F>
__device__ __forceinline__ void GatherTokens(Shared<F>& shared, const ExpertsArgs& args, int thread) {
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kRowsAtOnce = kGatherThreads / kChunks;
  constexpr int kRows = (F::kTokens + kRowsAtOnce - 1) / kRowsAtOnce;
  const int chunk = thread % kChunks, row = thread / kChunks;
  const int ready = 2 * Schedule<F>::ActivationTiles(args);
  const uint32_t* tile_flags = Flags(args, shared.launch);
  uint32_t step = 0;
  Schedule<F> schedule(shared, args);
  Work work;
  while (schedule.Next(work)) {
    const int width = work.phase == 0 ? args.hidden_size : args.intermediate_size;
    const auto* source = static_cast<const uint8_t*>(work.phase == 0 ? args.x : args.activations) + chunk * 16;
    if (work.phase == 1) {
      if (thread % 32 == 0) {
        while (LoadAcquire(tile_flags + work.token_tile) < ready) {
        }
      }
      __syncwarp();
    }
    uint32_t source_row[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = row + i * kRowsAtOnce;
      source_row[i] = 0;
      if (r < work.width) {
        source_row[i] = work.phase == 0 ? args.order[work.first + r] / args.pairs_per_token : work.first + r;
      }
    }
    for (int k = work.k_begin; k < work.k_end; ++k, ++step) {
      const int stage = step % F::kStages;
      BarrierWait(&shared.empty[stage], (step / F::kStages & 1) ^ 1);
      const bool inside = k * kTileK + chunk * 8 < width;
      const uint8_t* from = source + (inside ? k * kRowBytes : 0);
      const uint32_t to = SharedAddress(shared.tokens[stage]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int r = row + i * kRowsAtOnce;
        if (r < work.width) {
          CopyAsync16(to + r * kRowBytes + ((chunk ^ (r & 7)) << 4), from + size_t{source_row[i]} * (width * 2u),
                      inside);
        }
      }
      BarrierArriveOnCopies(&shared.full[stage]);
    }
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// One k step of a tile for 128 of its rows: sums[0] for the first 64, sums[1] for the others; N columns.
template <class F, int N>
__device__ __forceinline__ void MultiplyStep(typename F::Sums& sums, uint64_t a, uint64_t b, int accumulate) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < kTileK / 16; ++i) {
    Wgmma<N>::Run(sums[0], a + 2 * i, b + 2 * i, i > 0 || accumulate);
    Wgmma<N>::Run(sums[1], a + (64 * kRowBytes >> 4) + 2 * i, b + 2 * i, i > 0 || accumulate);
  }
  WgmmaCommit();
}

// The narrowest that has `width` columns.
template <class F, int N>
__device__ __forceinline__ void MultiplyUpTo(typename F::Sums& sums, int width, uint64_t a, uint64_t b,
                                             int accumulate) {
  if constexpr (N > 16) {
    if (width <= N - 16) return MultiplyUpTo<F, N - 16>(sums, width, a, b, accumulate);
  }
  MultiplyStep<F, N>(sums, a, b, accumulate);
}

// Where a warpgroup's thread leaves its sums of a tile that another unit began.
__device__ uint4* Partials(const ExpertsArgs& args, int phase, int block, int half) {
  return static_cast<uint4*>(args.partials) +
         (static_cast<size_t>(phase * gridDim.x + block) * 2 + half) * (kPartialBytes / 2 / sizeof(uint4)) +
         threadIdx.x % 128;
}

template <class F>
__device__ __forceinline__ void StorePartials(const typename F::Sums& sums, const ExpertsArgs& args, const Work& work,
                                              int half, uint32_t tag) {
  uint4* to = Partials(args, work.phase, blockIdx.x, half);
#pragma unroll
  for (int j = 0; j < F::kTokens / 8; ++j) {
    if (j * 8 >= work.width) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* v = &sums[i / 2][j * 4 + i % 2 * 2];
      StoreTagged(to + (j * 4 + i) * 128, v[0], v[1], tag);
    }
  }
}

// Adds the sums of the units that went on with this unit's tile, in the order of units; loads those of kAtOnce at once.
template <class F>
__device__ __forceinline__ void AddPartials(typename F::Sums& sums, const ExpertsArgs& args,
                                            const Schedule<F>& schedule, const Work& work, int half, uint32_t tag) {
  constexpr int kAtOnce = 2;
  int unit = schedule.unit() + 1;
  int begin = schedule.RunBegin(unit);
  const int tile_end = begin - work.k_end + schedule.k_steps();
  while (begin < tile_end) {
    const uint4* from[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u, ++unit) {
      const int end = begin < tile_end ? schedule.RunBegin(unit + 1) : begin;
      from[u] = end > begin ? Partials(args, work.phase, unit * F::kBlocks + blockIdx.x % F::kBlocks, half) : nullptr;
      begin = end;
    }
#pragma unroll
    for (int j = 0; j < F::kTokens / 8; ++j) {
      if (j * 8 >= work.width) break;
      uint4 v[kAtOnce][4];
      bool whole;
      do {
        whole = true;
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (from[u] == nullptr) continue;
#pragma unroll
          for (int i = 0; i < 4; ++i) v[u][i] = LoadTagged(from[u] + (j * 4 + i) * 128);
        }
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          if (from[u] == nullptr) continue;
#pragma unroll
          for (int i = 0; i < 4; ++i) whole = whole && v[u][i].y == tag && v[u][i].w == tag;
        }
      } while (!whole);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (from[u] == nullptr) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float* sum = &sums[i / 2][j * 4 + i % 2 * 2];
          sum[0] += __uint_as_float(v[u][i].x);
          sum[1] += __uint_as_float(v[u][i].z);
        }
      }
    }
  }
}

// Rows of the phase's output, of 128 of the tile's weight rows. `turn` counts the buffers used.
template <class F>
__device__ __forceinline__ void StoreTile(const typename F::Sums& sums, Shared<F>& shared, const ExpertsArgs& args,
                                          const Work& work, int half, uint32_t& turn) {
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, matrix = lane / 8;
  const bool hidden = work.phase == 0, activate = hidden && args.gated;
  auto* to = static_cast<__nv_bfloat16*>(hidden ? args.activations : args.out);
  const int width = hidden ? args.intermediate_size : args.hidden_size;
  // Two rows of weights make one gated activation.
  const int own = activate ? kTileRows / 4 : kTileRows / 2;
  const int first_column = (work.row_tile * 2 + half) * own;
  const int chunks = own / 8;  // of 16 bytes
  const int chunk = thread % chunks, chunk_row = thread / chunks;
  const auto rectified = [&](float v) { return hidden ? Relu(v) : v; };
  // Where the lane's column of a matrix begins: of 8 activations for each 16 rows (slabs 4 i + warp), or of 8 rows.
  const uint32_t at = activate ? (matrix % 2 * 8 + lane % 8) * kStoreBytes + (matrix / 2 * 4 + warp) * 16
                               : (matrix / 2 * 8 + lane % 8) * kStoreBytes + warp * 32 + matrix % 2 * 16;
#pragma unroll
  for (int j = 0; j < F::kTokens / 8; j += kStoreTokens / 8) {
    if (j * 8 >= work.width) break;
    uint8_t* const buffer = shared.rows[half][turn++ % 2];
    const uint32_t to_buffer = SharedAddress(buffer) + at;
    const float *v0 = &sums[0][j * 4], *v1 = &sums[1][j * 4];
    if (activate) {
      // Rows l/4 are gates, and those 8 further their ups.
      const auto active = [](const float* v) { return PackBf16(Silu(v[0]) * v[2], Silu(v[1]) * v[3]); };
      StoreTransposed(to_buffer, active(v0), active(v0 + 4), active(v1), active(v1 + 4));
    } else {
      const auto packed = [&](const float* v) { return PackBf16(rectified(v[0]), rectified(v[1])); };
      StoreTransposed(to_buffer, packed(v0), packed(v0 + 2), packed(v0 + 4), packed(v0 + 6));
      StoreTransposed(to_buffer + 128, packed(v1), packed(v1 + 2), packed(v1 + 4), packed(v1 + 6));
    }
    NamedBarrier(1 + half, 128);
    for (int r = chunk_row; r < kStoreTokens; r += 128 / chunks) {
      if (j * 8 + r < work.width && first_column + chunk * 8 < width) {
        *reinterpret_cast<uint4*>(to + static_cast<size_t>(work.first + j * 8 + r) * width + first_column + chunk * 8) =
            *reinterpret_cast<const uint4*>(buffer + r * kStoreBytes + chunk * 16);
      }
    }
  }
}

template <class F>
__device__ __forceinline__ void ReleaseStage(Shared<F>& shared, int stage) {
  if constexpr (F::kBlocks == 1) {
    BarrierArrive(&shared.empty[stage]);
  } else {
#pragma unroll
    for (int block = 0; block < F::kBlocks; ++block) BarrierArriveAt(&shared.empty[stage], block);
  }
}

template <class F>
__device__ __forceinline__ void Multiply(Shared<F>& shared, const ExpertsArgs& args, int half) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  uint32_t* flags = Flags(args, shared.launch);
  const uint32_t tag = shared.launch + 1;
  uint32_t step = 0, turn = 0;
  Schedule<F> schedule(shared, args);
  Work work;
  while (schedule.Next(work)) {
    typename F::Sums sums = {};
    const int k_count = work.k_end - work.k_begin;
    // Whether the stage before is still being read.
    bool held = false;
    for (int k = 0; k < k_count; ++k, ++step) {
      const int stage = step % F::kStages;
      // With nothing to go on with, it is not kept until there is: that would be one stage less on its way.
      if (held && !BarrierTest(&shared.full[stage], step / F::kStages & 1)) {
        WgmmaWait<0>();
        if (lane == 0) ReleaseStage<F>(shared, (step - 1) % F::kStages);
        held = false;
      }
      BarrierWait(&shared.full[stage], step / F::kStages & 1);
      FenceAsyncProxy();
      const uint64_t a = OperandDescriptor(shared.weights[stage] + half * (kWeightBytes / 2));
      const uint64_t b = OperandDescriptor(shared.tokens[stage]);
      MultiplyUpTo<F, F::kTokens>(sums, work.width, a, b, k);
      if constexpr (!F::kHolds) {
        WgmmaWait<0>();
        if (lane == 0) ReleaseStage<F>(shared, stage);
        continue;
      }
      if (held) {
        WgmmaWait<1>();
        if (lane == 0) ReleaseStage<F>(shared, (step - 1) % F::kStages);
      }
      held = true;
    }
    WgmmaWait<0>();
    PinRegisters(sums[0]);
    PinRegisters(sums[1]);
    if (held && lane == 0) ReleaseStage<F>(shared, (step - 1) % F::kStages);
    if (work.k_begin > 0) {
      StorePartials<F>(sums, args, work, half, tag);
      continue;
    }
    if (work.k_end < schedule.k_steps()) AddPartials<F>(sums, args, schedule, work, half, tag);
    StoreTile<F>(sums, shared, args, work, half, turn);
    if (work.phase == 0) {
      NamedBarrier(1 + half, 128);
      if (thread == 0) AddRelease(flags + work.token_tile, 1);
    }
  }
}

template <class F>
__global__ void __launch_bounds__(kThreads, 1)
    ExpertsKernel(const __grid_constant__ CUtensorMap gate_up, const __grid_constant__ CUtensorMap down,
                  const __grid_constant__ ExpertsArgs args) {
  extern __shared__ __align__(1024) uint8_t storage[];
  auto& shared = *reinterpret_cast<Shared<F>*>(storage);
  const int thread = threadIdx.x;
  if (thread == 0) {
    for (int i = 0; i < F::kStages; ++i) {
      BarrierInit(&shared.full[i], 1 + kGatherThreads);
      BarrierInit(&shared.empty[i], kConsumerWarps * F::kBlocks);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    PrefetchTensorMap(&gate_up);
    PrefetchTensorMap(&down);
  }
  for (int i = thread; i < args.num_groups; i += kThreads) shared.slots[i] = args.slots[i];
  WaitForPreviousKernel();
  for (int i = thread; i <= args.num_groups; i += kThreads) shared.begin[i] = args.begin[i];
  if (thread == kThreads - 1) shared.launch = *static_cast<volatile uint32_t*>(args.launch);
  if constexpr (F::kBlocks > 1) {
    ClusterBarrier();
  } else {
    __syncthreads();
  }
  if (thread < 32) {
    int before = 0;
    for (int base = 0; base < args.num_groups; base += 32) {
      const int group = base + thread;
      const int own = group < args.num_groups
                          ? DivideUp(shared.begin[group + 1] - shared.begin[group], F::kTokens * F::kBlocks)
                          : 0;
      int sum = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int v = __shfl_up_sync(~0u, sum, distance);
        if (thread >= distance) sum += v;
      }
      if (group < args.num_groups) shared.tiles[group] = before + sum - own;
      before += __shfl_sync(~0u, sum, 31);
    }
    if (thread == 0) shared.tiles[args.num_groups] = before;
  }
  __syncthreads();

  if (thread < 128) {
    LowerRegisters<88>();
    if (thread == 0) {
      LoadWeights<F>(shared, args, &gate_up, &down);
    } else if (thread >= 32) {
      GatherTokens<F>(shared, args, thread - 32);
    }
  } else {
    RaiseRegisters<208>();
    uint32_t* other_flags = Flags(args, shared.launch + 1);
    for (int i = blockIdx.x * 256 + thread - 128; i < args.flag_words; i += gridDim.x * 256) other_flags[i] = 0;
    // All blocks have read the launch's number when the last one draws its ticket.
    if (thread == kThreads - 1 && atomicAdd(args.launch + 1, 1) == gridDim.x - 1) {
      args.launch[1] = 0;
      args.launch[0] = shared.launch + 1;
    }
    Multiply<F>(shared, args, thread / 128 - 1);
  }
  // The other block may still be loading to this one's memory and arriving at its barriers.
  if constexpr (F::kBlocks > 1) ClusterBarrier();
}

// A form's kernel and what its launch needs.
struct Kernel {
  void (*kernel)(CUtensorMap, CUtensorMap, ExpertsArgs);
  int cluster;
  size_t shared_bytes;
};
template <class F>
constexpr Kernel KernelOf() {
  static_assert(sizeof(Shared<F>) <= 227 * 1024);
  return {ExpertsKernel<F>, F::kBlocks, sizeof(Shared<F>)};
}
constexpr Kernel kKernels[kExpertsKernelForms] = {KernelOf<Narrow>(), KernelOf<Wide>(), KernelOf<Pair>()};

}  // namespace

cudaError_t ExpertsBlocks(ExpertsKernelForm form, int* blocks) {
  const Kernel& kernel = kKernels[static_cast<int>(form)];
  cudaError_t error = AllowSharedMemory(kernel.kernel, kernel.shared_bytes);
  int device = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(blocks, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess || kernel.cluster == 1) return error;
  // A processing cluster with an odd number of multiprocessors leaves one over.
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kernel.cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(*blocks / kernel.cluster * kernel.cluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kernel.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  error = cudaOccupancyMaxActiveClusters(&clusters, kernel.kernel, &config);
  *blocks = clusters * kernel.cluster;
  return error;
}

cudaError_t LaunchExperts(const CUtensorMap& gate_up, const CUtensorMap& down, const ExpertsArgs& args,
                          ExpertsKernelForm form, int blocks, cudaStream_t stream) {
  const Kernel& kernel = kKernels[static_cast<int>(form)];
  return Launch(kernel.kernel, {dim3(blocks), kThreads, kernel.shared_bytes, kernel.cluster, /*cooperative=*/true},
                stream, gate_up, down, args);
}

}  // namespace ballast::internal
