// Products of rows of weights with a few columns (tokens), for steps that are bound by reading the weights: each byte
// of a weight goes from memory to a register and from there to the tensor cores, once.
#ifndef BALLAST_KERNELS_CUDA_COLUMNS_H_
#define BALLAST_KERNELS_CUDA_COLUMNS_H_

#include <cstdint>

#include "kernels/cuda/cache_policy.h"

namespace ballast::internal {

// A line: 64 elements (128 bytes) of a row. A warp's tile is 16 rows by tiles of 8 columns. Lane (g, t) = (lane / 4,
// lane % 4) has elements 8 t .. 8 t + 7 of both halves of a line, of rows g and g + 8 and of column g: mma's order of k
// differs, but is the same for rows and columns.
inline constexpr int kLineK = 64;
// Lines whose loads are in flight at once.
inline constexpr int kLinesAtOnce = 4;
inline constexpr int kTileColumns = 8;

struct WeightLines {
  // Of each line: row g's halves, row g + 8's halves.
  uint4 v[kLinesAtOnce][2][2];
};

// Read once, by this warp alone; with kOnce by no later kernel either, so that it need not stay in L2. (volatile: loads
// stay in front of waits that follow them.)
template <bool kOnce = false>
__device__ inline uint4 LoadWeight(const uint8_t* p, bool valid) {
  uint4 v = {};
  if (valid && kOnce) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(kEvictFirst));
  } else if (valid) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
  }
  return v;
}

// Where the lane's element of `line` begins, and whether it lies inside rows of k elements.
__device__ inline int LineOffset(int line, int half) { return line * 128 + half * 64 + threadIdx.x % 4 * 16; }
__device__ inline bool InLine(int line, int half, int end, int k) {
  return line < end && line * kLineK + half * 32 + static_cast<int>(threadIdx.x % 4) * 8 < k;
}

// The i-th of the lines: line `at` of the lane's rows, zeros from `end` on; nullptr: a row of zeros.
template <bool kOnce = false>
__device__ inline void LoadLine(WeightLines& weights, int i, const uint8_t* row, const uint8_t* row_8, int at, int end,
                                int k) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool inside = InLine(at, half, end, k);
    weights.v[i][0][half] = LoadWeight<kOnce>(row + LineOffset(at, half), inside && row != nullptr);
    weights.v[i][1][half] = LoadWeight<kOnce>(row_8 + LineOffset(at, half), inside && row_8 != nullptr);
  }
}

// Lines line, line + stride, ... below `end` of the lane's rows.
template <bool kOnce = false>
__device__ inline void LoadLines(WeightLines& weights, const uint8_t* row, const uint8_t* row_8, int line, int stride,
                                 int end, int k) {
#pragma unroll
  for (int i = 0; i < kLinesAtOnce; ++i) LoadLine<kOnce>(weights, i, row, row_8, line + i * stride, end, k);
}

__device__ inline void MultiplyTile(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Adds the lines' products to sums[j], columns 8 j ..: the lane holds row g, columns 2 t and 2 t + 1, then row g + 8's.
// columns[j] is the lane's column; nullptr: zeros.
template <int kTiles>
__device__ inline void MultiplyLines(float (&sums)[kTiles][4], const WeightLines& weights,
                                     const uint8_t* const (&columns)[kTiles], int line, int stride, int end, int k) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    // All of a tile's columns are on their way while the weights still are.
    uint4 b[kLinesAtOnce][2];
#pragma unroll
    for (int i = 0; i < kLinesAtOnce; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = line + i * stride;
        b[i][half] = columns[j] != nullptr && InLine(at, half, end, k)
                         ? *reinterpret_cast<const uint4*>(columns[j] + LineOffset(at, half))
                         : uint4{};
      }
    }
#pragma unroll
    for (int i = 0; i < kLinesAtOnce; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 &w = weights.v[i][0][half], &w8 = weights.v[i][1][half], &v = b[i][half];
        MultiplyTile(sums[j], w.x, w8.x, w.y, w8.y, v.x, v.y);
        MultiplyTile(sums[j], w.z, w8.z, w.w, w8.w, v.z, v.w);
      }
    }
    // One tile's columns at a time: there are no registers for more.
    asm volatile("" ::: "memory");
  }
}

// The same, line by line; `reload`(i) is called when the i-th line's weights are no longer needed, so that as many
// loads are on their way at any time.
template <int kTiles, typename Reload>
__device__ inline void MultiplyAndReload(float (&sums)[kTiles][4], const WeightLines& weights,
                                         const uint8_t* const (&columns)[kTiles], int line, int stride, int end, int k,
                                         const Reload& reload) {
  // A line's columns are loaded while the weights of the one before are still on their way.
  uint4 b[2][kTiles][2];
  const auto load = [&](int i) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = line + i * stride;
        b[i % 2][j][half] = columns[j] != nullptr && InLine(at, half, end, k)
                                ? *reinterpret_cast<const uint4*>(columns[j] + LineOffset(at, half))
                                : uint4{};
      }
    }
  };
  load(0);
#pragma unroll
  for (int i = 0; i < kLinesAtOnce; ++i) {
    if (i + 1 < kLinesAtOnce) load(i + 1);
    asm volatile("" ::: "memory");
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 &w = weights.v[i][0][half], &w8 = weights.v[i][1][half];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const uint4& v = b[i % 2][j][half];
        MultiplyTile(sums[j], w.x, w8.x, w.y, w8.y, v.x, v.y);
        MultiplyTile(sums[j], w.z, w8.z, w.w, w8.w, v.z, v.w);
      }
    }
    reload(i);
  }
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_COLUMNS_H_
