// Sums of a tile whose k steps more than one unit of the grouped expert kernel (experts.cu) does.
#ifndef BALLAST_KERNELS_CUDA_EXPERTS_PARTIALS_H_
#define BALLAST_KERNELS_CUDA_EXPERTS_PARTIALS_H_

#include <cstdint>

#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/experts_schedule.h"
#include "kernels/cuda/hopper.h"

namespace ballast::internal {

// Where a warpgroup's thread leaves its sums of a tile that another unit began.
__device__ inline uint4* Partials(const ExpertsArgs& args, int phase, int block, int half) {
  return static_cast<uint4*>(args.partials) +
         (static_cast<size_t>(phase * gridDim.x + block) * 2 + half) * (kPartialBytes / 2 / sizeof(uint4)) +
         threadIdx.x % 128;
}

template <class F>
__device__ __forceinline__ void StorePartials(const typename F::Sums& sums, const ExpertsArgs& args, const Work& work,
                                              int half, uint32_t tag) {
  uint4* to = Partials(args, work.phase, blockIdx.x, half);
  const int units = F::SumUnits(work.width, half);
#pragma unroll
  for (int j = 0; j < F::kSumUnits; ++j) {
    if (j >= units) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* v = F::PairOf(sums, j, i);
      // The additions keep the compiler from giving every sum of fp8 a pair of registers, for a tag beside it,
      // throughout the kernel.
      const float none = F::kFp8 ? 0.0f : -0.0f;
      StoreTagged(to + (j * 4 + i) * 128, v[0] + none, v[1] + none, tag);
    }
  }
}

// Adds the sums of the units that went on with this unit's tile, in the order of units; loads those of kAtOnce at once
// (wide tiles leave no registers for two).
template <class F>
__device__ __forceinline__ void AddPartials(typename F::Sums& sums, const ExpertsArgs& args,
                                            const Schedule<F>& schedule, const Work& work, int half, uint32_t tag) {
  constexpr int kAtOnce = F::kTokens == kWideTokens ? 1 : 2;
  int unit = schedule.unit() + 1;
  int begin = schedule.RunBegin(unit);
  const int tile_end = begin - work.k_end + schedule.k_steps();
  const int units = F::SumUnits(work.width, half);
  while (begin < tile_end) {
    const uint4* from[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u, ++unit) {
      const int end = begin < tile_end ? schedule.RunBegin(unit + 1) : begin;
      from[u] = end > begin ? Partials(args, work.phase, unit * F::kBlocks + blockIdx.x % F::kBlocks, half) : nullptr;
      begin = end;
    }
#pragma unroll
    for (int j = 0; j < F::kSumUnits; ++j) {
      if (j >= units) break;
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
          float* sum = F::PairOf(sums, j, i);
          sum[0] += __uint_as_float(v[u][i].x);
          sum[1] += __uint_as_float(v[u][i].z);
        }
      }
    }
  }
}

// Where a thread leaves its sums of a part of a narrow tile.
__device__ inline float4* PartAt(const ExpertsArgs& args, const Work& work, int part) {
  return static_cast<float4*>(args.partials) +
         static_cast<size_t>(work.cut * work.parts + part) * (kPartBytes / sizeof(float4)) + threadIdx.x % 128;
}

// Leaves the warpgroup's sums of a part, of both halves of the tile, where the others find them. Whoever comes last
// gets the sums of all parts, added in their order, and true: nobody waits.
template <class F>
__device__ __forceinline__ bool GiveOrAddParts(typename F::Sums (&sums)[2], Shared<F>& shared, const ExpertsArgs& args,
                                               const Work& work, int warpgroup) {
  const int units = F::SumUnits(work.width, 0);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float4* to = PartAt(args, work, work.part) + half * F::kSumUnits * 2 * 128;
#pragma unroll
    for (int j = 0; j < F::kSumUnits; ++j) {
      if (j >= units) break;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const float *v = F::PairOf(sums[half], j, i), *w = F::PairOf(sums[half], j, i + 1);
        __stcg(to + (j * 2 + i / 2) * 128, make_float4(v[0], v[1], w[0], w[1]));
      }
    }
  }
  NamedBarrier(1 + warpgroup, 128);
  if (threadIdx.x % 128 == 0) {
    uint32_t* const there = Flags(args, shared.launch) + args.token_flag_words + work.cut;
    shared.parts_before[warpgroup] = AddAcquireRelease(there, 1);
  }
  NamedBarrier(1 + warpgroup, 128);
  if (shared.parts_before[warpgroup] != work.parts - 1) return false;
  for (int part = 0; part < work.parts; ++part) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4* from = PartAt(args, work, part) + half * F::kSumUnits * 2 * 128;
      float4 v[F::kSumUnits][2];
#pragma unroll
      for (int j = 0; j < F::kSumUnits; ++j) {
        if (j >= units) break;
        v[j][0] = __ldcg(from + j * 2 * 128);
        v[j][1] = __ldcg(from + (j * 2 + 1) * 128);
      }
#pragma unroll
      for (int j = 0; j < F::kSumUnits; ++j) {
        if (j >= units) break;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          float *sum = F::PairOf(sums[half], j, i), *next = F::PairOf(sums[half], j, i + 1);
          const float4 own = v[j][i / 2];
          sum[0] = part == 0 ? own.x : sum[0] + own.x;
          sum[1] = part == 0 ? own.y : sum[1] + own.y;
          next[0] = part == 0 ? own.z : next[0] + own.z;
          next[1] = part == 0 ? own.w : next[1] + own.w;
        }
      }
    }
  }
  return true;
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_PARTIALS_H_
