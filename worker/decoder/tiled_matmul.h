// The decoder's projections: oneDNN matrix products at one fixed row tile.
#ifndef BALLAST_WORKER_DECODER_TILED_MATMUL_H_
#define BALLAST_WORKER_DECODER_TILED_MATMUL_H_

#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"

namespace ballast {

// y = x W^T for rows of x, always kTileRows rows at a time (padded by the caller), so that the library sees one shape
// whatever the step holds. W is packed once, in chunks of outputs that stay in a core's L2 while rows pass by; a chunk
// is a product of its own, so chunks may run on several threads and no bit changes. Each product runs on one thread:
// OpenMP inside of the library is told so for every thread that comes here, and never starts one of its own.
//
// Thread-safe after Create for up to `max_threads` threads at once.
class TiledMatmul {
 public:
  // Measured on Zen 4: 4 rows reach 95 % of what 64 do, and a decode step of one token computes 4 rows, not 32.
  static constexpr int kTileRows = 4;
  // `rows` rounded up to whole tiles.
  static constexpr int PaddedRows(int rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

  // weights: [outputs][inputs] f32, as in a checkpoint; copied. Internal when the library fails.
  static absl::StatusOr<std::unique_ptr<TiledMatmul>> Create(std::span<const float> weights, int outputs, int inputs,
                                                             int max_threads);
  ~TiledMatmul();
  TiledMatmul(const TiledMatmul&) = delete;
  TiledMatmul& operator=(const TiledMatmul&) = delete;

  int inputs() const;
  int outputs() const;
  int num_chunks() const;

  // y[r][chunk's outputs] for r < num_rows, a multiple of kTileRows; x is [num_rows][inputs], y [num_rows][outputs].
  void RunChunk(int chunk, const float* x, int num_rows, float* y) const;
  // Every chunk, one after another.
  void Run(const float* x, int num_rows, float* y) const {
    for (int chunk = 0; chunk < num_chunks(); ++chunk) RunChunk(chunk, x, num_rows, y);
  }
  // Every chunk, over the pool where that pays.
  void RunOnPool(const float* x, int num_rows, float* y, ThreadPool& pool) const;

  // Whether a row has the same bits at each place of the tile and beside any other rows, tried with random rows.
  bool RowInvariant() const;
  // The library's version and the kernels that it chose, which decide the last bits.
  const std::string& fingerprint() const;

 private:
  struct Impl;
  explicit TiledMatmul(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_TILED_MATMUL_H_
