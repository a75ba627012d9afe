// Logits of a tile of tokens by a tile of experts over a part of the hidden size, by a block.
#ifndef BALLAST_KERNELS_CUDA_ROUTER_PRODUCT_H_
#define BALLAST_KERNELS_CUDA_ROUTER_PRODUCT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/columns.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/router_kernel.h"

namespace ballast::internal {

__host__ __device__ constexpr int DivideUp(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int Larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int Smaller(int a, int b) { return a < b ? a : b; }

__device__ inline uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Four 8x8 matrices of bf16, whose rows are at the lanes' addresses.
__device__ inline void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ inline void Multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MultiplyTile(d, a[0], a[1], a[2], a[3], b0, b1);
}

// Address of 16 bytes of a row of kTileK elements, swizzled so that 8 rows' are in different banks.
template <int kTileK>
__device__ uint32_t Chunk(uint32_t tile, int row, int chunk) {
  return tile + row * kTileK * 2 + ((chunk ^ (row & 7)) << 4);
}

// Loads kRows rows of a matrix, from `first` on, kTileK columns at a time; zeros outside.
template <class Tile, int kRows>
class RowLoader {
 public:
  __device__ RowLoader(const void* matrix, int first, int rows, int columns)
      : columns_(columns),
        at_(threadIdx.x % kChunks * 8),
        left_(rows - first - static_cast<int>(threadIdx.x / kChunks)) {
    // A row that there is: nothing is read of it where it is not the thread's.
    const int row = left_ > 0 ? first + threadIdx.x / kChunks : 0;
    from_ = static_cast<const uint16_t*>(matrix) + static_cast<size_t>(row) * columns + at_;
  }
  __device__ void Load(uint32_t tile, int step) const {
    const uint32_t to = Chunk<Tile::kTileK>(tile, threadIdx.x / kChunks, threadIdx.x % kChunks);
    const int column = step * Tile::kTileK;
    const bool inside = at_ + column < columns_;
#pragma unroll
    for (int i = 0; i < DivideUp(kRows, kRowsAtOnce); ++i) {
      if (kRows % kRowsAtOnce != 0 && i * kRowsAtOnce + threadIdx.x / kChunks >= kRows) break;
      const bool valid = inside && i * kRowsAtOnce < left_;
      const uint16_t* from = valid ? from_ + static_cast<size_t>(i * kRowsAtOnce) * columns_ + column : from_;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + i * kRowsAtOnce * Tile::kTileK * 2),
                   "l"(from), "r"(valid ? 16 : 0)
                   : "memory");
    }
  }

 private:
  static constexpr int kChunks = Tile::kTileK / 8, kRowsAtOnce = Tile::kThreads / kChunks;
  static_assert(kRowsAtOnce % 8 == 0);  // whose chunks are swizzled alike
  const int columns_, at_, left_;
  const uint16_t* from_;
};

// Tile: kTokens, kExperts; kTileK elements of k a stage, kStages of them, of kStageBytes each; kThreads, whose warps
// are side by side over tokens, kTokenWarps with kWarpTokens each, and over experts. Those that are left only load.
template <class Tile>
struct Product {
  float sums[Tile::kWarpTokens / 16][Tile::kWarpExperts / 8][4] = {};

  // k stages [begin, end) of the tokens from first_token on and the experts from first_expert on. Reads the weights
  // before, and anything else after the kernel in front has ended; calls `meanwhile` when that has. Threads are not in
  // step afterwards.
  template <class Meanwhile>
  __device__ void Add(const RouterArgs& args, int first_token, int first_expert, int begin, int end, uint8_t* storage,
                      Meanwhile meanwhile) {
    constexpr int kStages = Tile::kStages;
    const int lane = threadIdx.x % 32;
    const auto tokens_of = [&](int step) { return SharedAddress(storage) + step % kStages * Tile::kStageBytes; };
    const auto experts_of = [&](int step) { return tokens_of(step) + Tile::kTokens * Tile::kTileK * 2; };
    const RowLoader<Tile, Tile::kTokens> tokens(args.hidden, first_token, args.num_tokens, args.hidden_size);
    const RowLoader<Tile, Tile::kExperts> experts(args.router_weights, first_expert, args.rule.num_experts,
                                                  args.hidden_size);
    LetNextKernelStart();
    for (int step = begin; step < min(begin + kStages - 1, end); ++step) experts.Load(experts_of(step), step);
    WaitForPreviousKernel();
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (begin + i < end) tokens.Load(tokens_of(begin + i), begin + i);
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
    meanwhile();
    for (int step = begin; step < end; ++step) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
      __syncthreads();
      if (const int next = step + kStages - 1; next < end) {
        tokens.Load(tokens_of(next), next);
        experts.Load(experts_of(next), next);
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
#pragma unroll
      for (int k = 0; k < Tile::kTileK / 16 && Multiplies(); ++k) {
        uint32_t a[Tile::kWarpTokens / 16][4];
#pragma unroll
        for (int m = 0; m < Tile::kWarpTokens / 16; ++m) {
          LoadMatrices(a[m], Chunk<Tile::kTileK>(tokens_of(step), WarpToken() + m * 16 + lane % 16, k * 2 + lane / 16));
        }
#pragma unroll
        for (int n = 0; n < Tile::kWarpExperts / 16; ++n) {
          // Experts 0-7 and 8-15, k 0-7 and 8-15.
          uint32_t b[4];
          LoadMatrices(b, Chunk<Tile::kTileK>(experts_of(step), WarpExpert() + n * 16 + lane / 16 * 8 + lane % 8,
                                              k * 2 + lane / 8 % 2));
#pragma unroll
          for (int m = 0; m < Tile::kWarpTokens / 16; ++m) {
            Multiply(sums[m][n * 2], a[m], b[0], b[1]);
            Multiply(sums[m][n * 2 + 1], a[m], b[2], b[3]);
          }
        }
      }
    }
  }

  // emit(token, expert, sum of the expert, of the next one), counted from the tile's first.
  template <class Emit>
  __device__ void ForEach(Emit emit) const {
    if (!Multiplies()) return;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < Tile::kWarpTokens / 16; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kWarpExperts / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          emit(WarpToken() + m * 16 + lane / 4 + half * 8, WarpExpert() + n * 8 + lane % 4 * 2, sums[m][n][half * 2],
               sums[m][n][half * 2 + 1]);
        }
      }
    }
  }

 private:
  __device__ static bool Multiplies() { return threadIdx.x / 32 < Tile::kTokenWarps * Tile::kExpertWarps; }
  __device__ static int WarpToken() { return threadIdx.x / 32 % Tile::kTokenWarps * Tile::kWarpTokens; }
  __device__ static int WarpExpert() { return threadIdx.x / 32 / Tile::kTokenWarps * Tile::kWarpExperts; }
};

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_ROUTER_PRODUCT_H_
