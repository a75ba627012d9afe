// The forms of the grouped expert kernel (experts.cu), what a block keeps in shared memory, and which tiles it works
// on.
#ifndef BALLAST_KERNELS_CUDA_EXPERTS_SCHEDULE_H_
#define BALLAST_KERNELS_CUDA_EXPERTS_SCHEDULE_H_

#include <cstdint>

#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/hopper.h"

namespace ballast::internal {

inline constexpr int kThreads = 384;
inline constexpr int kGatherThreads = 96;
inline constexpr int kConsumerWarps = 8;
// Registers of a thread that loads and of one that multiplies. A launch gets the same for all, in eights: a warpgroup
// that asks for more than the others have left waits for ever.
inline constexpr int kLoadRegisters = 88, kMultiplyRegisters = 208;
static_assert(128 * kLoadRegisters + 256 * kMultiplyRegisters <= 65536 / kThreads / 8 * 8 * kThreads);
inline constexpr uint32_t kBoxBytes = kBoxRows * kTileK * 2;
inline constexpr uint32_t kWeightBytes = kTileBoxes * kBoxBytes;
inline constexpr int kRowBytes = kTileK * 2;
// Of fp8, elements of k that share a scale; a row of a tile holds as many.
static_assert(kScaleBlock == kRowBytes);
// Output goes through shared memory, this many tokens at a time, so that it is written by whole lines: rows of at most
// 128 elements, padded so that 8 of them are in different banks.
inline constexpr int kStoreTokens = 16;
inline constexpr int kStoreBytes = 128 * 2 + 16;
// Where tokens are rows: each warp's 16 tokens, this many columns at a time.
inline constexpr int kWarpStoreColumns = 64;
inline constexpr int kWarpStoreBytes = kWarpStoreColumns * 2 + 16;

// Where a row of the experts' output goes, and what it is multiplied by.
struct Target {
  int row;
  float weight;
};

// Blocks of a tile, its tokens, and k steps in shared memory at once.
template <int kBlocksOf, int kTokensOf, int kStagesOf>
struct Form {
  static constexpr int kBlocks = kBlocksOf, kTokens = kTokensOf, kStages = kStagesOf;
  // Whether the products of a k step begin while those of the one before run: not where loads take longer than both.
  static constexpr bool kHolds = kTokens == kWideTokens;
  static constexpr bool kTokensAreRows = false;
  static constexpr bool kFp8 = false;
  // Whether there is shared memory for the groups' slots.
  static constexpr bool kKeepsSlots = kTokens < kWideTokens;
  // Tokens of a block's tile are a multiple of it but for a group's last.
  static constexpr int kTokenUnit = 8;
  // Arrivals at a token tile's flag for each tile of activations.
  static constexpr int kArrivals = 2;
  // Two of 64 rows of weights: a thread's sums, and how many eights they are.
  using Sums = float[2][kTokens / 2];
  static constexpr int kSumUnits = kTokens / 8;
  // Warps with a buffer for 16 rows of output.
  static constexpr int kStoreWarps = 1;
  // Of rows t and t + 128 of the tile, in thread t.
  struct Targets {
    Target low, high;
  };
  // Sum pair i of four of the j-th eight columns.
  __device__ static float* PairOf(Sums& sums, int j, int i) { return &sums[i / 2][j * 4 + i % 2 * 2]; }
  __device__ static const float* PairOf(const Sums& sums, int j, int i) { return &sums[i / 2][j * 4 + i % 2 * 2]; }
  __device__ static bool HasTokens(int width, int half) { return true; }
  // The units of sums that the warpgroup has.
  __device__ static int SumUnits(int width, int half) { return (width + 7) / 8; }
};
using Narrow = Form<1, kNarrowTokens, 5>;
using Wide = Form<1, kWideTokens, 4>;
using Pair = Form<2, kWideTokens, 4>;

// Tokens are the rows of the product: each warpgroup has 64 of them (the second none where a tile has no more) and all
// rows of the tile's weights.
struct TokenRows {
  static constexpr int kBlocks = 2, kTokens = 128, kStages = 4;
  static constexpr bool kHolds = true, kTokensAreRows = true, kFp8 = false, kKeepsSlots = false;
  static constexpr int kTokenUnit = 64;
  static constexpr int kArrivals = kConsumerWarps;
  using Sums = float[1][kTileRows / 2];
  static constexpr int kSumUnits = kTileRows / 16;
  static constexpr int kStoreWarps = kConsumerWarps;
  // Of rows that the thread stores.
  struct Targets {
    Target rows[4];
  };
  __device__ static float* PairOf(Sums& sums, int j, int i) { return &sums[0][j * 8 + i * 2]; }
  __device__ static const float* PairOf(const Sums& sums, int j, int i) { return &sums[0][j * 8 + i * 2]; }
  __device__ static int SumUnits(int width, int half) { return HasTokens(width, half) ? kSumUnits : 0; }
  // The warpgroup's first of the tile's tokens, and its part of the tile's columns.
  __device__ static int FirstToken(int half) { return 64 * half; }
  static constexpr int kColumnParts = 1;
  __device__ static bool HasTokens(int width, int half) { return width > FirstToken(half); }
};

// The same in fp8: both warpgroups have the same 64 tokens, and one box of weights each (of gates and of ups, in phase
// 0), for a thread has sums of a step beside those of the tile.
template <int kBlocksOf>
struct Fp8Form : TokenRows {
  static constexpr int kBlocks = kBlocksOf, kTokens = 64;
  static constexpr bool kHolds = false, kFp8 = true;
  using Sums = float[1][kBoxRows / 2];
  static constexpr int kSumUnits = kBoxRows / 16;
  __device__ static float* PairOf(Sums& sums, int j, int i) { return &sums[0][j * 8 + i * 2]; }
  __device__ static const float* PairOf(const Sums& sums, int j, int i) { return &sums[0][j * 8 + i * 2]; }
  __device__ static int SumUnits(int width, int half) { return HasTokens(width, half) ? kSumUnits : 0; }
  __device__ static int FirstToken(int half) { return 0; }
  static constexpr int kColumnParts = 2;
  __device__ static bool HasTokens(int width, int half) { return width > 0; }
};
using Fp8Narrow = Fp8Form<1>;
using Fp8Pair = Fp8Form<2>;

// Elements of k of a step.
template <class F>
inline constexpr int kStepK = F::kFp8 ? kScaleBlock : kTileK;

template <class F>
struct Shared {
  alignas(1024) uint8_t weights[F::kStages][kWeightBytes];
  alignas(1024) uint8_t tokens[F::kStages][F::kTokens * kRowBytes];
  // For each warpgroup two buffers of output rows; or for each warp one.
  union {
    alignas(16) uint8_t rows[F::kTokensAreRows ? 1 : 2][2][kStoreTokens * kStoreBytes];
    uint8_t warp_rows[F::kStoreWarps][16 * kWarpStoreBytes];
  };
  // What the warpgroups give each other in fp8, by thread.
  float exchange[2][F::kFp8 ? kBoxRows / 4 : 1][F::kFp8 ? 128 : 1];
  // Of the stage's tokens, in fp8.
  float scales[F::kStages][F::kFp8 ? F::kTokens : 1];
  uint64_t full[F::kStages], empty[F::kStages];
  uint32_t launch;
  int slots[F::kKeepsSlots ? kMaxGroups : 1];
  int begin[kMaxGroups + 1];
  // Token tiles of the groups before.
  int tiles[kMaxGroups + 1];
};

// Of a warp, and of all blocks that wrote to the stage.
template <class F>
__device__ __forceinline__ void ReleaseStage(Shared<F>& shared, int stage) {
  if constexpr (F::kBlocks == 1) {
    BarrierArrive(&shared.empty[stage]);
  } else {
#pragma unroll
    for (int block = 0; block < F::kBlocks; ++block) BarrierArriveAt(&shared.empty[stage], block);
  }
}

// A tile, or a run of its k steps.
struct Work {
  int phase, group, row_tile, token_tile;
  // This block's rows of `order`: [first, first + width). None, where the other block of a pair has all.
  int first, width;
  int k_begin, k_end;
};

__device__ inline int DivideUp(int a, int b) { return (a + b - 1) / b; }

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
    k_steps_ = DivideUp(phase == 0 ? args_.hidden_size : args_.intermediate_size, kStepK<F>);
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
    // Equal parts, in columns of 8 but with tokens as rows: 150 tokens are 80 and 70, not 144 and 6.
    const int part = index * F::kBlocks + blockIdx.x % F::kBlocks, parts = token_tiles * F::kBlocks;
    const int token_units = DivideUp(tokens, F::kTokenUnit), least = token_units / parts, wider = token_units % parts;
    const int begin = (least * part + min(part, wider)) * F::kTokenUnit;
    const int end = begin + (least + (part < wider ? 1 : 0)) * F::kTokenUnit;
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

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_SCHEDULE_H_
