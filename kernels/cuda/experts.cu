#include <cuda_bf16.h>

#include "kernels/cuda/experts_fp8.h"
#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/experts_partials.h"
#include "kernels/cuda/experts_schedule.h"
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
// Where they have few, tiles are narrow, for more stages: reading at full rate needs more bytes on their way. Then
// blocks draw tiles from a queue, because some multiprocessors read faster than others, and the two warpgroups take
// turns, so that one multiplies while the other stores; but equal runs where tiles are few or long. Where they have
// very many, tokens are the M side: products of 64 x 256 read a sixth less of shared memory than those of 64 x 144,
// which counts where the GPU's power limit decides, but a tile's tokens are rounded up to 64. A wide tile's 144 tokens
// let a group of about 128 or 256 stay in one tile or two.
//
// Where each token has one choice, the last phase writes its rows times their weights where the tokens are.
//
// Whole tiles go round the units; the last one to two rounds are cut into equal runs of k steps (Osama et al.,
// "Stream-K", 2023), so that all units end together. A unit that ends a run inside a tile leaves its sums in the
// workspace; the unit that began the tile adds them in the order of units.

// What gives a thread its block's work; `draws`: the one that loads weights.
template <class F>
__device__ __forceinline__ auto WorkOf(Shared<F>& shared, const ExpertsArgs& args, bool draws) {
  if constexpr (F::kQueued) {
    return Queue<F>(shared, args, draws);
  } else {
    return Schedule<F>(shared, args);
  }
}

__device__ int LookAt(const Work& work) { return max(work.k_begin, work.k_end - kLookAhead); }

template <class F>
__device__ __forceinline__ void LoadWeights(Shared<F>& shared, const ExpertsArgs& args, const CUtensorMap* gate_up,
                                            const CUtensorMap* down) {
  uint32_t step = 0;
  auto schedule = WorkOf<F>(shared, args, true);
  Work work;
  while (schedule.Next(work)) {
    const int slot = F::kKeepsSlots ? shared.slots[work.group] : args.slots[work.group];
    for (int k = work.k_begin; k < work.k_end; ++k, ++step) {
      if constexpr (F::kQueued) {
        if (k == LookAt(work)) schedule.Draw();
      }
      const int stage = step % F::kStages;
      BarrierWait(&shared.empty[stage], (step / F::kStages & 1) ^ 1);
      BarrierArriveExpect(&shared.full[stage], kWeightBytes);
#pragma unroll
      for (int i = 0; i < kTileBoxes / F::kBlocks; ++i) {
        const int box = F::kBlocks == 1 ? i : blockIdx.x % F::kBlocks;
        const int tile_box = work.row_tile * kTileBoxes + box;
        uint8_t* to = shared.weights[stage] + box * kBoxBytes;
        if constexpr (F::kFp8) {
          const int row =
              work.phase == 0 ? box * args.intermediate_size + work.row_tile * kBoxRows : tile_box * kBoxRows;
          TensorLoad<F::kBlocks>(to, work.phase == 0 ? gate_up : down, &shared.full[stage], k * kScaleBlock, row, slot);
        } else if constexpr (F::kReadsOnce) {
          if (work.phase == 0 && args.gated) {
            TensorLoadOnce(to, gate_up, &shared.full[stage], k * kTileK, 0, 0, tile_box * kBoxGroups, slot);
          } else {
            TensorLoadOnce(to, work.phase == 0 ? gate_up : down, &shared.full[stage], k * kTileK, tile_box * kBoxRows,
                           slot);
          }
        } else if (work.phase == 0 && args.gated) {
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
  constexpr int kScaleRows = (F::kTokens + kGatherThreads - 1) / kGatherThreads;
  const int chunk = thread % kChunks, row = thread / kChunks;
  const int ready = F::kArrivals * Schedule<F>::ActivationTiles(args);
  const uint32_t* tile_flags = Flags(args, shared.launch);
  uint32_t step = 0;
  auto schedule = WorkOf<F>(shared, args, false);
  // Of the r-th row: what says where it is, and that.
  const auto pair_of = [&](const Work& work, int r) -> uint32_t {
    if (r >= work.width) return 0;
    return work.phase == 0 ? args.order[work.first + r] : work.first + r;
  };
  const auto row_of = [&](const Work& work, uint32_t pair) {
    return work.phase == 0 ? pair / args.pairs_per_token : pair;
  };
  // Narrow tiles' rows are looked up early, which takes as long as reading some steps; wide ones leave no registers.
  constexpr bool kAhead = F::kReadsOnce;
  uint32_t source_row[kRows], next_pair[kAhead ? kRows : 1];
  Work work, next = {};
  const auto look = [&] {
    if (!schedule.Next(next)) return false;
    if constexpr (kAhead) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) next_pair[i] = pair_of(next, row + i * kRowsAtOnce);
    }
    return true;
  };
  for (bool more = look(); more;) {
    work = next;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      source_row[i] = row_of(work, kAhead ? next_pair[kAhead ? i : 0] : pair_of(work, row + i * kRowsAtOnce));
    }
    if (work.phase == 1) {
      if (thread % 32 == 0) {
        while (LoadAcquire(tile_flags + work.token_tile) < ready) {
        }
      }
      __syncwarp();
    }
    const int width = work.phase == 0 ? args.hidden_size : args.intermediate_size;
    const int row_bytes = width * (F::kFp8 ? 1 : 2);
    const auto* source = static_cast<const uint8_t*>(work.phase == 0 ? args.x : args.activations) + chunk * 16;
    const float* scales[kScaleRows];
    if constexpr (F::kFp8) {
#pragma unroll
      for (int i = 0; i < kScaleRows; ++i) {
        scales[i] = (work.phase == 0 ? args.x_scales : args.activation_scales) +
                    size_t{row_of(work, pair_of(work, thread + i * kGatherThreads))} * DivideUp(width, kScaleBlock);
      }
    }
    for (int k = work.k_begin; k < work.k_end; ++k, ++step) {
      if (kAhead && k == LookAt(work)) more = look();
      const int stage = step % F::kStages;
      BarrierWait(&shared.empty[stage], (step / F::kStages & 1) ^ 1);
      const bool inside = k * kRowBytes + chunk * 16 < row_bytes;
      const uint8_t* from = source + (inside ? k * kRowBytes : 0);
      const uint32_t to = SharedAddress(shared.tokens[stage]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int r = row + i * kRowsAtOnce;
        if (r < work.width) {
          CopyAsync16(to + r * kRowBytes + ((chunk ^ (r & 7)) << 4), from + size_t{source_row[i]} * row_bytes, inside);
        }
      }
      if constexpr (F::kFp8) {
#pragma unroll
        for (int i = 0; i < kScaleRows; ++i) {
          const int r = thread + i * kGatherThreads;
          if (r < work.width) CopyAsync4(SharedAddress(&shared.scales[stage][r]), scales[i] + k);
        }
      }
      BarrierArriveOnCopies(&shared.full[stage]);
    }
    if (!kAhead) more = look();
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

// One k step for 64 tokens and all of the tile's rows of weights.
template <class F>
__device__ __forceinline__ void MultiplyRows(typename F::Sums& sums, uint64_t a, uint64_t b, int accumulate) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < kTileK / 16; ++i) Wgmma<kTileRows>::Run(sums[0], a + 2 * i, b + 2 * i, i > 0 || accumulate);
  WgmmaCommit();
}

// Of row `r` of the tile; as it is where the step does not combine.
__device__ Target TargetOf(const ExpertsArgs& args, const Work& work, int r) {
  Target target = {work.first + r, 1};
  if (args.weights != nullptr && work.phase == 1 && r < work.width) {
    target.row = args.order[work.first + r];
    target.weight = args.weights[target.row];
  }
  return target;
}
// A row rounded to bf16 times its weight: as CombineRows does it.
__device__ uint4 Weighted(uint4 v, float weight) {
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&v);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 f = __bfloat1622float2(pairs[i]);
    pairs[i] = __floats2bfloat162_rn(fmaf(weight, f.x, 0), fmaf(weight, f.y, 0));
  }
  return v;
}
// Zeros for the tokens that have no row, by `warps` warps.
__device__ void ZeroTokens(const ExpertsArgs& args, int warp, int warps) {
  const int lane = threadIdx.x % 32;
  for (int base = warp * 32; base < args.num_tokens; base += warps * 32) {
    const bool none = base + lane < args.num_tokens && args.row_of[base + lane] < 0;
    for (unsigned left = __ballot_sync(~0u, none); left != 0; left &= left - 1) {
      uint4* row = static_cast<uint4*>(args.out) + static_cast<size_t>(base + __ffs(left) - 1) * (args.hidden_size / 8);
      for (int i = lane; i < args.hidden_size / 8; i += 32) row[i] = {};
    }
  }
}

// Rows of the phase's output, of 128 of the tile's weight rows, by a warpgroup. `turn` counts the buffers used.
template <class F>
__device__ __forceinline__ void StoreTile(const typename F::Sums& sums, Shared<F>& shared, const ExpertsArgs& args,
                                          const Work& work, int half, int warpgroup, const typename F::Targets& targets,
                                          uint32_t& turn) {
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, matrix = lane / 8;
  const bool hidden = work.phase == 0, activate = hidden && args.gated, combines = !hidden && args.weights != nullptr;
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
    uint8_t* const buffer = shared.rows[warpgroup][turn++ % 2];
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
    if (combines) {
      // Behind the row, where it is padded.
      const int low = thread - j * 8, high = low + 128;
      if (low >= 0 && low < kStoreTokens) *reinterpret_cast<Target*>(buffer + low * kStoreBytes + 256) = targets.low;
      if (high >= 0 && high < kStoreTokens) {
        *reinterpret_cast<Target*>(buffer + high * kStoreBytes + 256) = targets.high;
      }
    }
    NamedBarrier(1 + warpgroup, 128);
    for (int r = chunk_row; r < kStoreTokens; r += 128 / chunks) {
      if (j * 8 + r < work.width && first_column + chunk * 8 < width) {
        uint4 v = *reinterpret_cast<const uint4*>(buffer + r * kStoreBytes + chunk * 16);
        int row = work.first + j * 8 + r;
        if (combines) {
          const Target target = *reinterpret_cast<const Target*>(buffer + r * kStoreBytes + 256);
          v = Weighted(v, target.weight);
          row = target.row;
        }
        *reinterpret_cast<uint4*>(to + static_cast<size_t>(row) * width + first_column + chunk * 8) = v;
      }
    }
  }
}

// Rows of the phase's output where tokens are rows, by each warp for its 16 tokens.
enum class Activation { kNone, kRelu, kSwiGlu };
template <class F, Activation kActivation>
__device__ __forceinline__ void StoreTokens(const typename F::Sums& sums, Shared<F>& shared, const ExpertsArgs& args,
                                            const Work& work, int half, const typename F::Targets& targets) {
  constexpr bool kGated = kActivation == Activation::kSwiGlu;
  constexpr int kColumns = (kGated ? kTileRows / 2 : kTileRows) / F::kColumnParts;
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  const int first_row = F::FirstToken(half) + warp * 16;
  const int first_column = (work.row_tile * F::kColumnParts + half % F::kColumnParts) * kColumns;
  const int width = kActivation == Activation::kNone ? args.hidden_size : args.intermediate_size;
  auto* const to = static_cast<__nv_bfloat16*>(kActivation == Activation::kNone ? args.out : args.activations);
  uint8_t* const buffer = shared.warp_rows[half * 4 + warp];
  const uint32_t matrix_row = SharedAddress(buffer) + (lane / 8 % 2 * 8 + lane % 8) * kWarpStoreBytes + lane / 16 * 16;
  const int chunk = lane % 8;
  const uint8_t* const from = buffer + lane / 8 * kWarpStoreBytes + chunk * 16;
  // Sums of the rows l / 4 (second = 0) or those 8 further of the b-th eight columns.
  const auto packed = [&](int b, int second) {
    const float* v = &sums[0][(kGated ? 2 : 1) * b * 4 + second * 2];
    if constexpr (kGated) return PackBf16(Silu(v[0]) * v[4], Silu(v[1]) * v[5]);
    if constexpr (kActivation == Activation::kRelu) return PackBf16(Relu(v[0]), Relu(v[1]));
    return PackBf16(v[0], v[1]);
  };
#pragma unroll
  for (int base = 0; base < kColumns; base += kWarpStoreColumns) {
#pragma unroll
    for (int q = 0; q < kWarpStoreColumns / 16; ++q) {
      const int b = base / 8 + 2 * q;
      StoreMatrices(matrix_row + q * 32, packed(b, 0), packed(b, 1), packed(b + 1, 0), packed(b + 1, 1));
    }
    __syncwarp();
    const int column = first_column + base + chunk * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + i * 4 + lane / 8;
      if (row < work.width && column < width) {
        uint4 v = *reinterpret_cast<const uint4*>(from + i * 4 * kWarpStoreBytes);
        if (kActivation == Activation::kNone && args.weights != nullptr) v = Weighted(v, targets.rows[i].weight);
        *reinterpret_cast<uint4*>(to + static_cast<size_t>(targets.rows[i].row) * width + column) = v;
      }
    }
    __syncwarp();
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
  // The flag of a token tile whose activations this warp has stored, but not told: by then the stores have been done,
  // and it need not wait for them. Nobody waits for these flags before phase 1.
  uint32_t* owed = nullptr;
  constexpr int kTellAt = 2;
  const auto tell = [&] {
    if (owed != nullptr && lane == 0) AddRelease(owed, 1);
    owed = nullptr;
  };
  while (schedule.Next(work)) {
    if (work.phase == 1) tell();
    const int k_count = work.k_end - work.k_begin;
    if (!F::HasTokens(work.width, half)) {
      // The other warpgroup has all tokens, or the other block.
      for (int k = 0; k < k_count; ++k, ++step) {
        BarrierWait(&shared.full[step % F::kStages], step / F::kStages & 1);
        if (lane == 0) ReleaseStage<F>(shared, step % F::kStages);
      }
      tell();
      if (work.phase == 0 && work.k_begin == 0) owed = flags + work.token_tile;
      continue;
    }
    typename F::Sums sums = {};
    const float* weight_scales = nullptr;
    if constexpr (F::kFp8) weight_scales = WeightScalesOf(args, work, half) + work.k_begin;
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
      if constexpr (F::kFp8) {
        MultiplyScaled<F>(sums, shared, stage, half, __ldg(weight_scales + k));
        if (k == kTellAt) tell();
        continue;
      }
      if constexpr (F::kTokensAreRows) {
        MultiplyRows<F>(sums, OperandDescriptor(shared.tokens[stage] + F::FirstToken(half) * kRowBytes),
                        OperandDescriptor(shared.weights[stage]), k);
        if (k == kTellAt) tell();
      } else {
        const uint64_t a = OperandDescriptor(shared.weights[stage] + half * (kWeightBytes / 2));
        const uint64_t b = OperandDescriptor(shared.tokens[stage]);
        MultiplyUpTo<F, F::kTokens>(sums, work.width, a, b, k);
      }
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
    if constexpr (!F::kTokensAreRows) PinRegisters(sums[1]);
    if (held && lane == 0) ReleaseStage<F>(shared, (step - 1) % F::kStages);
    if (work.k_begin > 0) {
      StorePartials<F>(sums, args, work, half, tag);
      continue;
    }
    if (work.k_end < schedule.k_steps()) AddPartials<F>(sums, args, schedule, work, half, tag);
    typename F::Targets targets;
    if constexpr (F::kTokensAreRows) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        targets.rows[i] = TargetOf(args, work, F::FirstToken(half) + thread / 32 * 16 + i * 4 + lane / 8);
      }
      tell();
      if (work.phase == 1) {
        StoreTokens<F, Activation::kNone>(sums, shared, args, work, half, targets);
      } else if constexpr (F::kFp8) {
        StoreQuantized<F>(sums, shared, args, work, half);
      } else if (args.gated) {
        StoreTokens<F, Activation::kSwiGlu>(sums, shared, args, work, half, targets);
      } else {
        StoreTokens<F, Activation::kRelu>(sums, shared, args, work, half, targets);
      }
      if (work.phase == 0) owed = flags + work.token_tile;
    } else {
      targets = {TargetOf(args, work, thread), TargetOf(args, work, thread + 128)};
      StoreTile<F>(sums, shared, args, work, half, half, targets, turn);
      if (work.phase == 0) {
        NamedBarrier(1 + half, 128);
        if (thread == 0) AddRelease(flags + work.token_tile, 1);
      }
    }
  }
  tell();
}

// The warpgroup's pieces of a queue: every other one.
template <class F>
__device__ __forceinline__ void MultiplyPieces(Shared<F>& shared, const ExpertsArgs& args, int warpgroup) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  uint32_t* flags = Flags(args, shared.launch);
  uint32_t step = 0, turn = 0;
  Queue<F> queue(shared, args, false);
  Work work;
  for (int piece = 0; queue.Next(work); ++piece) {
    if (piece % 2 != warpgroup) {
      step += work.k_end - work.k_begin;
      continue;
    }
    // A stage's barrier knows this round of stages from the one before alone: the other warpgroup has seen that one
    // end.
    if (piece > 0) BarrierWait(&shared.turn[warpgroup], ((piece + 1) / 2 - 1) & 1);
    typename F::Sums sums[2] = {};
    for (int k = work.k_begin; k < work.k_end; ++k, ++step) {
      const int stage = step % F::kStages;
      BarrierWait(&shared.full[stage], step / F::kStages & 1);
      FenceAsyncProxy();
      const uint64_t b = OperandDescriptor(shared.tokens[stage]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint64_t a = OperandDescriptor(shared.weights[stage] + half * (kWeightBytes / 2));
        MultiplyUpTo<F, F::kTokens>(sums[half], work.width, a, b, k);
      }
      WgmmaWait<0>();
      if (lane == 0) ReleaseStage<F>(shared, stage);
    }
    if (thread == 0) BarrierArrive(&shared.turn[1 - warpgroup]);
#pragma unroll
    for (int i = 0; i < 4; ++i) PinRegisters(sums[i / 2][i % 2]);
    if (work.parts > 1 && !GiveOrAddParts<F>(sums, shared, args, work, warpgroup)) continue;
    const typename F::Targets targets = {TargetOf(args, work, thread), TargetOf(args, work, thread + 128)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      StoreTile<F>(sums[half], shared, args, work, half, warpgroup, targets, turn);
    }
    if (work.phase == 0) {
      NamedBarrier(1 + warpgroup, 128);
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
      BarrierInit(&shared.empty[i], (F::kQueued ? kConsumerWarps / 2 : kConsumerWarps) * F::kBlocks);
    }
    if constexpr (F::kQueued) {
      for (int i = 0; i < kDrawn; ++i) BarrierInit(&shared.drawn_full[i], 1);
      for (int i = 0; i < 2; ++i) BarrierInit(&shared.turn[i], 1);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    PrefetchTensorMap(&gate_up);
    PrefetchTensorMap(&down);
  }
  if constexpr (F::kKeepsSlots) {
    for (int i = thread; i < args.num_groups; i += kThreads) shared.slots[i] = args.slots[i];
  }
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
    LowerRegisters<kLoadRegisters>();
    if (thread == 0) {
      LoadWeights<F>(shared, args, &gate_up, &down);
    } else if (thread >= 32) {
      GatherTokens<F>(shared, args, thread - 32);
    }
  } else {
    RaiseRegisters<kMultiplyRegisters>();
    uint32_t* other_flags = Flags(args, shared.launch + 1);
    for (int i = blockIdx.x * 256 + thread - 128; i < args.flag_words; i += gridDim.x * 256) other_flags[i] = 0;
    // All blocks have read the launch's number when the last one draws its ticket.
    if (thread == kThreads - 1 && atomicAdd(args.launch + 1, 1) == gridDim.x - 1) {
      args.launch[1] = 0;
      args.launch[0] = shared.launch + 1;
    }
    if (args.weights != nullptr)
      ZeroTokens(args, blockIdx.x * kConsumerWarps + thread / 32 - 4, gridDim.x * kConsumerWarps);
    if constexpr (F::kQueued) {
      MultiplyPieces<F>(shared, args, thread / 128 - 1);
    } else {
      Multiply<F>(shared, args, thread / 128 - 1);
    }
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
constexpr Kernel kKernels[kExpertsKernelForms] = {KernelOf<Narrow>(), KernelOf<NarrowRuns>(), KernelOf<Wide>(),
                                                  KernelOf<Pair>(),   KernelOf<TokenRows>(),  KernelOf<Fp8Narrow>(),
                                                  KernelOf<Fp8Pair>()};

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
