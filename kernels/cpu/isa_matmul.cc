// Row-invariant products of f32 rows with bf16 weights. Compiled once for each instruction set.
#include "kernels/cpu/isa_kernels.h"

namespace ballast::internal::BALLAST_ISA {
namespace {

// Rows and outputs of one register tile; for a single row, the outputs alone. Chosen so that accumulators, widened
// weights and a row fit the registers, and that the additions' latency is covered.
#if defined(__AVX512F__)
constexpr int kTileRows = 4, kTileOutputs = 4, kSingleRowOutputs = 8;
#elif defined(__AVX2__)
constexpr int kTileRows = 2, kTileOutputs = 2, kSingleRowOutputs = 4;
#else
constexpr int kTileRows = 1, kTileOutputs = 4, kSingleRowOutputs = 4;
#endif

// Rows of weights shorter than this end before the hardware's prefetcher has understood them.
constexpr int kPrefetchBelow = 512;

// out[m * out_stride + n] for m < M and n < valid; weights' row n is at weights[n]. Ahead: asks for the weights that
// the next tile reads, which follow these.
template <int M, int N, bool Ahead = false>
BALLAST_INLINE void Tile(const float* x, size_t x_stride, const uint16_t* const (&weights)[N], int k, int valid,
                         float* out, size_t out_stride) {
  F16 sum[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[m][n] = Splat16(0);
  }
  const uint16_t* next = weights[0] + N * k;
  const auto block = [&](const uint16_t* const(&w)[N], int from, int w_from) __attribute__((always_inline)) {
    F16 even[N], odd[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) LoadBf16Pairs(w[n] + w_from, even[n], odd[n]);
    if constexpr (Ahead) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) __builtin_prefetch(next + n * kPackBlock);
      next += N * kPackBlock;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const F16 x_even = Load(x + m * x_stride + from);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[m][n] = Fma(x_even, even[n], sum[m][n]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const F16 x_odd = Load(x + m * x_stride + from + 16);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[m][n] = Fma(x_odd, odd[n], sum[m][n]);
    }
  };
  const int whole = k / kPackBlock * kPackBlock;
  for (int from = 0; from < whole; from += kPackBlock) block(weights, from, from);
  if (whole < k) {
    alignas(64) uint16_t padded[N][kPackBlock] = {};
    const uint16_t* at[N];
    for (int n = 0; n < N; ++n) {
      memcpy(padded[n], weights[n] + whole, static_cast<size_t>(k - whole) * sizeof(uint16_t));
      at[n] = padded[n];
    }
    block(at, whole, 0);
  }
  static_assert(M * N % 4 == 0);
  float result[M * N];
#pragma GCC unroll 8
  for (int i = 0; i < M * N; i += 4) {
    *reinterpret_cast<Float4Any*>(result + i) = Sum4(sum[i / N][i % N], sum[(i + 1) / N][(i + 1) % N],
                                                     sum[(i + 2) / N][(i + 2) % N], sum[(i + 3) / N][(i + 3) % N]);
  }
  if (valid == N) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) out[m * out_stride + n] = result[m * N + n];
    }
  } else {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < valid; ++n) out[m * out_stride + n] = result[m * N + n];
    }
  }
}

// N outputs for every row.
template <int M, int N, bool Ahead = false>
BALLAST_INLINE void Outputs(const float* packed, int num_rows, int k, const uint16_t* weights, int valid, float* out,
                            size_t out_stride) {
  const size_t x_stride = PackedWidth(k);
  const uint16_t* at[N];
  // Beyond the last output the last weights are read again and the result dropped.
  for (int n = 0; n < N; ++n) at[n] = weights + static_cast<size_t>(n < valid ? n : valid - 1) * k;
  int r = 0;
  for (; r + M <= num_rows; r += M) {
    Tile<M, N, Ahead>(packed + r * x_stride, x_stride, at, k, valid, out + r * out_stride, out_stride);
  }
  // The rows left over, together: each tile widens the weights anew.
  if constexpr (N % 4 == 0) {
    const int left = num_rows - r;
    const float* x = packed + r * x_stride;
    float* y = out + r * out_stride;
    if constexpr (M > 3) {
      if (left == 3) Tile<3, N, Ahead>(x, x_stride, at, k, valid, y, out_stride);
    }
    if constexpr (M > 2) {
      if (left == 2) Tile<2, N, Ahead>(x, x_stride, at, k, valid, y, out_stride);
    }
    if constexpr (M > 1) {
      if (left == 1) Tile<1, N, Ahead>(x, x_stride, at, k, valid, y, out_stride);
    }
  }
}

template <int M, int N, bool Ahead = false>
BALLAST_INLINE void AllOutputs(const float* packed, int num_rows, int k, const uint16_t* weights, int outputs,
                               float* out, size_t out_stride) {
  for (int n = 0; n < outputs; n += N) {
    Outputs<M, N, Ahead>(packed, num_rows, k, weights + static_cast<size_t>(n) * k, outputs - n < N ? outputs - n : N,
                         out + n, out_stride);
  }
}

}  // namespace

void PackRows(const float* const* rows, int num_rows, int k, float* packed) {
  for (int r = 0; r < num_rows; ++r, packed += PackedWidth(k)) {
    const float* row = rows[r];
    int from = 0;
    for (; from + kPackBlock <= k; from += kPackBlock)
      StoreSplit(Load(row + from), Load(row + from + 16), packed + from);
    if (from < k) {
      const int left = k - from;
      StoreSplit(LoadFirst(row + from, left < 16 ? left : 16, 0),
                 LoadFirst(row + from + 16, left < 16 ? 0 : left - 16, 0), packed + from);
    }
  }
}

void Matmul(const float* packed, int num_rows, int k, const uint16_t* weights, int outputs, float* out,
            size_t out_stride) {
  // A tile smaller than four sums has no row left over for a single one: those rows go by themselves.
  const int tiled = kTileOutputs % 4 == 0 ? num_rows : num_rows / kTileRows * kTileRows;
  // Up to one tile's rows read each weight once, and so wait for them.
  if (num_rows > 1 && num_rows <= kTileRows && k < kPrefetchBelow) {
    AllOutputs<kTileRows, kTileOutputs, true>(packed, tiled, k, weights, outputs, out, out_stride);
  } else if (num_rows > 1) {
    AllOutputs<kTileRows, kTileOutputs>(packed, tiled, k, weights, outputs, out, out_stride);
  }
  for (int r = num_rows > 1 ? tiled : 0; r < num_rows; ++r) {
    const float* row = packed + r * PackedWidth(k);
    if (k < kPrefetchBelow) {
      AllOutputs<1, kSingleRowOutputs, true>(row, 1, k, weights, outputs, out + r * out_stride, out_stride);
    } else {
      AllOutputs<1, kSingleRowOutputs>(row, 1, k, weights, outputs, out + r * out_stride, out_stride);
    }
  }
}

}  // namespace ballast::internal::BALLAST_ISA
