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
// Whole tiles go round the blocks; the last one to two rounds are cut into equal runs of k steps (Osama et al.,
// "Stream-K", 2023), so that all blocks end together. A block that ends a run inside a tile leaves its sums in the
// workspace; the block that began the tile adds them in the order of blocks.
constexpr int kStages = 4;
constexpr int kThreads = 384;
constexpr int kGatherThreads = 96;
constexpr int kConsumerWarps = 8;
constexpr uint32_t kWeightBytes = kTileRows * kTileK * 2;
constexpr int kRowBytes = kTileK * 2;

struct Shared {
  alignas(1024) uint8_t weights[kStages][kWeightBytes];
  alignas(1024) uint8_t tokens[kStages][kTileTokens * kRowBytes];
  uint64_t full[kStages], empty[kStages];
  uint32_t launch;
  int slots[kMaxGroups];
  int begin[kMaxGroups + 1];
  // Token tiles of the groups before.
  int tiles[kMaxGroups + 1];
};

// A tile, or a run of its k steps.
struct Work {
  int phase, group, row_tile, token_tile;
  // Rows of `order`: [first, first + width).
  int first, width;
  int k_begin, k_end;
};

__device__ int DivideUp(int a, int b) { return (a + b - 1) / b; }

// The work of one block, in order.
class Schedule {
 public:
  __device__ Schedule(const Shared& shared, const ExpertsArgs& args) : shared_(shared), args_(args) { Begin(0); }

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
      next_tile_ += gridDim.x;
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

  // The first k step, of the steps after the whole tiles, that `block` does.
  __device__ int RunBegin(int block) const {
    return static_cast<int>(static_cast<int64_t>(steps_) * block / static_cast<int>(gridDim.x));
  }
  __device__ int k_steps() const { return k_steps_; }
  // Row tiles of phase 0.
  __device__ static int ActivationTiles(const ExpertsArgs& args) {
    return DivideUp(2 * args.intermediate_size, kTileRows);
  }

 private:
  __device__ void Begin(int phase) {
    phase_ = phase;
    row_tiles_ = phase == 0 ? ActivationTiles(args_) : DivideUp(args_.hidden_size, kTileRows);
    k_steps_ = DivideUp(phase == 0 ? args_.hidden_size : args_.intermediate_size, kTileK);
    const int tiles = shared_.tiles[args_.num_groups] * row_tiles_, blocks = gridDim.x;
    const int rounds = tiles / blocks;
    whole_ = tiles % blocks == 0 ? tiles : rounds > 1 ? (rounds - 1) * blocks : 0;
    steps_ = (tiles - whole_) * k_steps_;
    next_tile_ = blockIdx.x;
    next_step_ = RunBegin(blockIdx.x);
    last_step_ = RunBegin(blockIdx.x + 1);
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
    // Equal tiles: 130 tokens are 72 and 58, not 128 and 2.
    const int wide = DivideUp(DivideUp(tokens, token_tiles), 8) * 8;
    work.phase = phase_;
    work.group = low;
    work.row_tile = local / token_tiles;
    work.token_tile = shared_.tiles[low] + index;
    work.first = shared_.begin[low] + index * wide;
    work.width = min(wide, tokens - index * wide);
  }

  const Shared& shared_;
  const ExpertsArgs& args_;
  int phase_, row_tiles_, k_steps_, whole_, steps_, next_tile_, next_step_, last_step_;
};

// This launch's flags. The other half was the launch's before, and is cleared for the next.
__device__ uint32_t* Flags(const ExpertsArgs& args, uint32_t launch) {
  return args.flags + (launch & 1) * static_cast<size_t>(args.flag_words);
}

__device__ __forceinline__ void LoadWeights(Shared& shared, const ExpertsArgs& args, const CUtensorMap* gate_up,
                                            const CUtensorMap* down) {
  uint32_t step = 0;
  Schedule schedule(shared, args);
  Work work;
  while (schedule.Next(work)) {
    const int slot = shared.slots[work.group];
    for (int k = work.k_begin; k < work.k_end; ++k, ++step) {
      const int stage = step % kStages;
      BarrierWait(&shared.empty[stage], (step / kStages & 1) ^ 1);
      BarrierArriveExpect(&shared.full[stage], kWeightBytes);
      if (work.phase == 0) {
        TensorLoad(shared.weights[stage], gate_up, &shared.full[stage], k * kTileK, 0, 0, work.row_tile * kGateUpGroups,
                   slot);
      } else {
        TensorLoad(shared.weights[stage], down, &shared.full[stage], k * kTileK, work.row_tile * kTileRows, slot);
      }
    }
  }
}

__device__ __forceinline__ void GatherTokens(Shared& shared, const ExpertsArgs& args, int thread) {
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kRowsAtOnce = kGatherThreads / kChunks;
  constexpr int kRows = (kTileTokens + kRowsAtOnce - 1) / kRowsAtOnce;
  const int chunk = thread % kChunks, row = thread / kChunks;
  const int ready = 2 * Schedule::ActivationTiles(args);
  const uint32_t* tile_flags = Flags(args, shared.launch);
  uint32_t step = 0;
  Schedule schedule(shared, args);
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
      const int stage = step % kStages;
      BarrierWait(&shared.empty[stage], (step / kStages & 1) ^ 1);
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

__device__ float SiluTimes(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

// One k step of a tile for 128 of its rows: sums[0] for the first 64, sums[1] for the others; N columns.
template <int N>
__device__ __forceinline__ void MultiplyStep(float (&sums)[2][kTileTokens / 2], uint64_t a, uint64_t b,
                                             int accumulate) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < kTileK / 16; ++i) {
    Wgmma<N>::Run(sums[0], a + 2 * i, b + 2 * i, i > 0 || accumulate);
    Wgmma<N>::Run(sums[1], a + (64 * kRowBytes >> 4) + 2 * i, b + 2 * i, i > 0 || accumulate);
  }
  WgmmaCommit();
}

// Adds the sums of the blocks that went on with this block's tile, in the order of blocks.
__device__ __forceinline__ void AddPartials(float (&sums)[2][kTileTokens / 2], const ExpertsArgs& args,
                                            const uint32_t* flags, const Schedule& schedule, const Work& work,
                                            int half) {
  const int thread = threadIdx.x % 128;
  int begin = schedule.RunBegin(blockIdx.x + 1);
  const int tile_end = begin - work.k_end + schedule.k_steps();
  for (int block = blockIdx.x + 1; begin < tile_end; ++block) {
    const int end = schedule.RunBegin(block + 1);
    if (end > begin) {
      const int index = work.phase * gridDim.x + block;
      if (thread == 0) {
        while (LoadAcquire(flags + args.tile_flags + index * 2 + half) == 0) {
        }
      }
      NamedBarrier(1 + half, 128);
      const auto* from = reinterpret_cast<const float4*>(args.partials + static_cast<size_t>(index) * kPartialFloats +
                                                         half * (kPartialFloats / 2)) +
                         thread;
#pragma unroll
      for (int j = 0; j < kTileTokens / 8; ++j) {
        if (j * 8 >= work.width) break;
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const float4 v = __ldcg(from + (j * 2 + b) * 128);
          sums[b][j * 4] += v.x;
          sums[b][j * 4 + 1] += v.y;
          sums[b][j * 4 + 2] += v.z;
          sums[b][j * 4 + 3] += v.w;
        }
      }
    }
    begin = end;
  }
}

__device__ __forceinline__ void StorePartials(const float (&sums)[2][kTileTokens / 2], const ExpertsArgs& args,
                                              uint32_t* flags, const Work& work, int half) {
  const int thread = threadIdx.x % 128;
  const int index = work.phase * gridDim.x + blockIdx.x;
  auto* to = reinterpret_cast<float4*>(args.partials + static_cast<size_t>(index) * kPartialFloats +
                                       half * (kPartialFloats / 2)) +
             thread;
#pragma unroll
  for (int j = 0; j < kTileTokens / 8; ++j) {
    if (j * 8 >= work.width) break;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const float* v = &sums[b][j * 4];
      __stcg(to + (j * 2 + b) * 128, make_float4(v[0], v[1], v[2], v[3]));
    }
  }
  NamedBarrier(1 + half, 128);
  if (thread == 0) AddRelease(flags + args.tile_flags + index * 2 + half, 1);
}

// Rows of the phase's output, of 128 of the tile's weight rows.
__device__ __forceinline__ void StoreTile(const float (&sums)[2][kTileTokens / 2], const ExpertsArgs& args,
                                          const Work& work, int half) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  const int column = lane / 4, pair = lane % 4 * 2;  // after a transposition
  auto* to = static_cast<__nv_bfloat16*>(work.phase == 0 ? args.activations : args.out);
  const int width = work.phase == 0 ? args.intermediate_size : args.hidden_size;
#pragma unroll
  for (int j = 0; j < kTileTokens / 8; ++j) {
    if (j * 8 >= work.width) break;
    const int row = j * 8 + column;
    __nv_bfloat16* at = to + static_cast<size_t>(work.first + row) * width;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const float* v = &sums[b][j * 4];
      const int slab = (half * 2 + b) * 4 + warp;  // 16 rows of the tile
      if (work.phase == 0) {
        // Rows l/4 are gates, and those 8 further their ups.
        const uint32_t h = Transpose8x8(PackBf16(SiluTimes(v[0], v[2]), SiluTimes(v[1], v[3])));
        const int i = (work.row_tile * kGateUpGroups + slab) * 8 + pair;
        if (row < work.width && i < width) *reinterpret_cast<uint32_t*>(at + i) = h;
      } else {
        const uint32_t low = Transpose8x8(PackBf16(v[0], v[1])), high = Transpose8x8(PackBf16(v[2], v[3]));
        const int d = work.row_tile * kTileRows + slab * 16 + pair;
        if (row < work.width && d < width) *reinterpret_cast<uint32_t*>(at + d) = low;
        if (row < work.width && d + 8 < width) *reinterpret_cast<uint32_t*>(at + d + 8) = high;
      }
    }
  }
}

__device__ __forceinline__ void Multiply(Shared& shared, const ExpertsArgs& args, int half) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  uint32_t* flags = Flags(args, shared.launch);
  float sums[2][kTileTokens / 2];
  uint32_t step = 0;
  Schedule schedule(shared, args);
  Work work;
  while (schedule.Next(work)) {
    const int columns = (work.width + 15) / 16;
    const int k_count = work.k_end - work.k_begin;
    for (int k = 0; k < k_count; ++k, ++step) {
      const int stage = step % kStages;
      BarrierWait(&shared.full[stage], step / kStages & 1);
      FenceAsyncProxy();
      const uint64_t a = OperandDescriptor(shared.weights[stage] + half * (kWeightBytes / 2));
      const uint64_t b = OperandDescriptor(shared.tokens[stage]);
      switch (columns) {
        case 1:
          MultiplyStep<16>(sums, a, b, k);
          break;
        case 2:
          MultiplyStep<32>(sums, a, b, k);
          break;
        case 3:
          MultiplyStep<48>(sums, a, b, k);
          break;
        case 4:
          MultiplyStep<64>(sums, a, b, k);
          break;
        case 5:
          MultiplyStep<80>(sums, a, b, k);
          break;
        case 6:
          MultiplyStep<96>(sums, a, b, k);
          break;
        case 7:
          MultiplyStep<112>(sums, a, b, k);
          break;
        default:
          MultiplyStep<128>(sums, a, b, k);
          break;
      }
      WgmmaWait<1>();
      if (k > 0 && lane == 0) BarrierArrive(&shared.empty[(step - 1) % kStages]);
    }
    WgmmaWait<0>();
    PinRegisters(sums[0]);
    PinRegisters(sums[1]);
    if (lane == 0) BarrierArrive(&shared.empty[(step - 1) % kStages]);
    if (work.k_begin > 0) {
      StorePartials(sums, args, flags, work, half);
      continue;
    }
    if (work.k_end < schedule.k_steps()) AddPartials(sums, args, flags, schedule, work, half);
    StoreTile(sums, args, work, half);
    if (work.phase == 0) {
      NamedBarrier(1 + half, 128);
      if (thread == 0) AddRelease(flags + work.token_tile, 1);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    ExpertsKernel(const __grid_constant__ CUtensorMap gate_up, const __grid_constant__ CUtensorMap down,
                  const __grid_constant__ ExpertsArgs args) {
  extern __shared__ uint8_t storage[];
  auto& shared = *reinterpret_cast<Shared*>(storage + (1024 - SharedAddress(storage) % 1024) % 1024);
  const int thread = threadIdx.x;
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&shared.full[i], 1 + kGatherThreads);
      BarrierInit(&shared.empty[i], kConsumerWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    PrefetchTensorMap(&gate_up);
    PrefetchTensorMap(&down);
  }
  for (int i = thread; i < args.num_groups; i += kThreads) shared.slots[i] = args.slots[i];
  WaitForPreviousKernel();
  for (int i = thread; i <= args.num_groups; i += kThreads) shared.begin[i] = args.begin[i];
  if (thread == 0) {
    const uint32_t launch = *static_cast<volatile uint32_t*>(args.launch);
    shared.launch = launch;
    // All blocks have read the launch's number when the last one draws its ticket.
    __threadfence();
    if (atomicAdd(args.launch + 1, 1) == gridDim.x - 1) {
      args.launch[1] = 0;
      args.launch[0] = launch + 1;
    }
  }
  __syncthreads();
  uint32_t* other_flags = Flags(args, shared.launch + 1);
  for (int i = blockIdx.x * kThreads + thread; i < args.flag_words; i += gridDim.x * kThreads) other_flags[i] = 0;
  if (thread < 32) {
    int before = 0;
    for (int base = 0; base < args.num_groups; base += 32) {
      const int group = base + thread;
      const int own =
          group < args.num_groups ? DivideUp(shared.begin[group + 1] - shared.begin[group], kTileTokens) : 0;
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
    LowerRegisters<72>();
    if (thread == 0) {
      LoadWeights(shared, args, &gate_up, &down);
    } else if (thread >= 32) {
      GatherTokens(shared, args, thread - 32);
    }
  } else {
    RaiseRegisters<216>();
    Multiply(shared, args, thread / 128 - 1);
  }
}

}  // namespace

cudaError_t LaunchExperts(const CUtensorMap& gate_up, const CUtensorMap& down, const ExpertsArgs& args, int blocks,
                          cudaStream_t stream) {
  constexpr size_t kSharedBytes = sizeof(Shared) + 1024;
  static const cudaError_t allowed = AllowSharedMemory(ExpertsKernel, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  return Launch(ExpertsKernel, dim3(blocks), kThreads, kSharedBytes, /*cooperative=*/true, stream, gate_up, down, args);
}

}  // namespace ballast::internal
