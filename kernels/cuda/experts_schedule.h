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
template <int kBlocksOf, int kTokensOf, int kStagesOf, bool kQueuedOf = false>
struct Form {
  static constexpr int kBlocks = kBlocksOf, kTokens = kTokensOf, kStages = kStagesOf;
  // Whether the products of a k step begin while those of the one before run: not where loads take longer than both.
  static constexpr bool kHolds = kTokens == kWideTokens;
  static constexpr bool kTokensAreRows = false;
  static constexpr bool kFp8 = false;
  // Whether blocks draw their work from a queue, and the two warpgroups work on pieces of it in turn, so that one
  // multiplies while the other stores. Else both work on a half of each tile's rows.
  static constexpr bool kQueued = kQueuedOf;
  // Whether a tile's weights are not read by another's: they need not stay in L2.
  static constexpr bool kReadsOnce = kTokens == kNarrowTokens;
  // Whether there is shared memory for the groups' slots.
  static constexpr bool kKeepsSlots = kTokens < kWideTokens;
  // Tokens of a block's tile are a multiple of it but for a group's last.
  static constexpr int kTokenUnit = 8;
  // Arrivals at a token tile's flag for each tile of activations.
  static constexpr int kArrivals = kQueued ? 1 : 2;
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
using Narrow = Form<1, kNarrowTokens, 5, true>;
using NarrowRuns = Form<1, kNarrowTokens, 5>;
using Wide = Form<1, kWideTokens, 4>;
using Pair = Form<2, kWideTokens, 4>;

// Tokens are the rows of the product: each warpgroup has 64 of them (the second none where a tile has no more) and all
// rows of the tile's weights.
struct TokenRows {
  static constexpr int kBlocks = 2, kTokens = 128, kStages = 4;
  static constexpr bool kHolds = true, kTokensAreRows = true, kFp8 = false, kKeepsSlots = false, kQueued = false,
                        kReadsOnce = false;
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

// Pieces of work that a block has drawn and not all of its warps have seen: at most one for each stage, for a piece has
// at least one k step, and two more.
inline constexpr int kDrawn = 8;
// Before a piece's last k steps begin, the next one is looked up.
inline constexpr int kLookAhead = 6;

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
  // What the queue gave, in turn, and when it has.
  uint64_t drawn_full[F::kQueued ? kDrawn : 1];
  int drawn[F::kQueued ? kDrawn : 1];
  // Of each warpgroup: the other has multiplied the piece before its next one.
  uint64_t turn[2];
  uint32_t launch;
  // For each warpgroup: how many parts of its tile were there before its own.
  uint32_t parts_before[2];
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
  // Of a queue's: which of the tile's parts this is, and which of the tiles that are cut.
  int part, parts, cut;
};

__device__ inline int DivideUp(int a, int b) { return (a + b - 1) / b; }

// The tile's group, rows of weights and tokens.
template <class F>
__device__ void Locate(const Shared<F>& shared, const ExpertsArgs& args, int phase, int row_tiles, int tile,
                       Work& work) {
  int low = 0, high = args.num_groups - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (shared.tiles[middle + 1] * row_tiles > tile) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const int token_tiles = shared.tiles[low + 1] - shared.tiles[low];
  const int local = tile - shared.tiles[low] * row_tiles;
  const int index = local % token_tiles;
  const int tokens = shared.begin[low + 1] - shared.begin[low];
  // Equal parts, in columns of 8 but with tokens as rows: 150 tokens are 80 and 70, not 144 and 6.
  const int part = index * F::kBlocks + blockIdx.x % F::kBlocks, parts = token_tiles * F::kBlocks;
  const int token_units = DivideUp(tokens, F::kTokenUnit), least = token_units / parts, wider = token_units % parts;
  const int begin = (least * part + min(part, wider)) * F::kTokenUnit;
  const int end = begin + (least + (part < wider ? 1 : 0)) * F::kTokenUnit;
  work.phase = phase;
  work.group = low;
  work.row_tile = local / token_tiles;
  work.token_tile = shared.tiles[low] * F::kBlocks + part;
  work.first = shared.begin[low] + begin;
  work.width = min(end, tokens) - begin;
}

// This launch's flags. The other half was the launch's before, and is cleared for the next.
__device__ inline uint32_t* Flags(const ExpertsArgs& args, uint32_t launch) {
  return args.flags + (launch & 1) * static_cast<size_t>(args.flag_words);
}

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
    Locate<F>(shared_, args_, phase_, row_tiles_, tile, work);
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

  const Shared<F>& shared_;
  const ExpertsArgs& args_;
  const int unit_, units_;
  int phase_, row_tiles_, k_steps_, whole_, steps_, next_tile_, next_step_, last_step_;
};

// The work that blocks draw from a queue, one piece after the other, so that blocks that read faster do more: tiles of
// phase 0, then those of phase 1, of which the last, one a block, are cut into parts of k steps, so that all blocks end
// together. What a piece waits for comes before it in the queue. Which block has a piece changes no bits.
template <class F>
class Queue {
 public:
  // One thread draws, the block's others follow.
  __device__ Queue(Shared<F>& shared, const ExpertsArgs& args, bool draws)
      : shared_(shared), args_(args), draws_(draws), token_tiles_(shared.tiles[args.num_groups]) {
    const int tiles = token_tiles_ * RowTiles(1), steps = Steps(1), cut = min(tiles, static_cast<int>(gridDim.x));
    whole_ = tiles - cut;
    const int wanted = max(DivideUp(steps, kPartSteps), DivideUp(2 * gridDim.x, max(cut, 1)));
    parts_ = max(1, min(min(wanted, kPartsOfBlock * static_cast<int>(gridDim.x) / max(cut, 1)), steps / 2));
    first_pieces_ = token_tiles_ * RowTiles(0);
    pieces_ = first_pieces_ + whole_ + cut * parts_;
    if (draws) Give(blockIdx.x);
  }

  // The thread that draws has to call it once for each piece, before it calls Next again: what Next gives then.
  __device__ void Draw() { Give(gridDim.x + drawn_); }

  __device__ bool Next(Work& work) {
    const int entry = count_ % kDrawn;
    int piece;
    if (draws_) {
      piece = shared_.drawn[entry];
    } else {
      // One lane reads, the one that says what the warp has done with.
      BarrierWait(&shared_.drawn_full[entry], count_ / kDrawn & 1);
      piece = __shfl_sync(~0u, threadIdx.x % 32 == 0 ? shared_.drawn[entry] : 0, 0);
    }
    ++count_;
    if (piece >= pieces_) return false;
    // Draw() waits for it.
    if (draws_) drawn_ = atomicAdd(Flags(args_, shared_.launch) + args_.flag_words - 1, 1);
    const int phase = piece >= first_pieces_ ? 1 : 0, steps = Steps(phase);
    int tile = phase == 0 ? piece : piece - first_pieces_;
    work.part = 0;
    work.parts = 1;
    if (phase == 1 && tile >= whole_) {
      const int part = tile - whole_;
      work.cut = part / parts_;
      work.part = part % parts_;
      work.parts = parts_;
      tile = whole_ + work.cut;
    }
    work.k_begin = steps * work.part / work.parts;
    work.k_end = steps * (work.part + 1) / work.parts;
    Locate<F>(shared_, args_, phase, RowTiles(phase), tile, work);
    return true;
  }

 private:
  // About as many as a part has: fewer cost more than they level.
  static constexpr int kPartSteps = 16;

  __device__ void Give(int piece) {
    const int entry = given_++ % kDrawn;
    shared_.drawn[entry] = piece;
    BarrierArrive(&shared_.drawn_full[entry]);
  }
  __device__ int RowTiles(int phase) const {
    return phase == 0 ? Schedule<F>::ActivationTiles(args_) : DivideUp(args_.hidden_size, kTileRows);
  }
  __device__ int Steps(int phase) const {
    return DivideUp(phase == 0 ? args_.hidden_size : args_.intermediate_size, kTileK);
  }

  Shared<F>& shared_;
  const ExpertsArgs& args_;
  const bool draws_;
  const int token_tiles_;
  // Pieces of phase 0, and of both; tiles of phase 1 that are not cut, and parts of one that is.
  int first_pieces_, pieces_, whole_, parts_;
  int count_ = 0, given_ = 0, drawn_ = 0;
};

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_SCHEDULE_H_
