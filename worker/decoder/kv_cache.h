// The paged KV cache: a bounded pool of blocks, and sequences that own some of them.
#ifndef BALLAST_WORKER_DECODER_KV_CACHE_H_
#define BALLAST_WORKER_DECODER_KV_CACHE_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace ballast {

// A pool of equal blocks, each with the keys and values of kKvBlockPositions positions for every layer; a layer's part
// is as kernels/attention.h says. Owned by the step thread: only it takes and gives back blocks. used_blocks() may be
// read from any thread.
class KvCache {
 public:
  struct Shape {
    int num_layers = 0;
    AttentionShape attention;
  };

  // The memory is reserved at once and touched block by block. InvalidArgument: a size that is not positive, or a pool
  // larger than memory can be. ResourceExhausted: no memory.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Shape& shape, int num_blocks);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const Shape& shape() const { return shape_; }
  int num_blocks() const { return num_blocks_; }
  int used_blocks() const { return used_.load(std::memory_order_relaxed); }
  int free_blocks() const { return num_blocks_ - used_blocks(); }
  size_t block_bytes() const { return block_floats_ * sizeof(float); }
  // Blocks that `positions` positions need.
  static int BlocksFor(int positions) { return (positions + kKvBlockPositions - 1) / kKvBlockPositions; }

 private:
  friend class KvSequence;
  KvCache(const Shape& shape, int num_blocks, size_t block_floats, float* data);

  const Shape shape_;
  const int num_blocks_;
  const size_t block_floats_;
  float* const data_;
  // Free blocks; the one freed last is taken first, it may still be in cache.
  std::vector<float*> free_;
  std::atomic<int> used_{0};
};

// One request's positions in the cache. Steps write beyond the committed length; what is not committed is simply
// written again by the next step, so discarding a step needs no call. Used by the step thread.
class KvSequence {
 public:
  // `cache` must outlive the sequence.
  explicit KvSequence(KvCache& cache) : cache_(&cache) {}
  ~KvSequence() { Clear(); }
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;

  // Positions whose keys and values are final.
  int committed() const { return committed_; }
  // Positions that the blocks held have room for.
  int capacity() const { return static_cast<int>(blocks_.size()) * kKvBlockPositions; }

  // Takes blocks until capacity() >= positions. ResourceExhausted, and nothing changes, when the pool has too few.
  absl::Status Reserve(int positions);
  // The step that wrote the next `positions` positions has ended. REQUIRES: committed() + positions <= capacity().
  void Commit(int positions);
  // Gives every block back and forgets all positions.
  void Clear();

  const KvCache& cache() const { return *cache_; }
  // Block i holds positions [16 i, 16 i + 16); layer l's part begins l * shape().attention.block_floats() floats into
  // it.
  float* const* blocks() const { return blocks_.data(); }

 private:
  KvCache* cache_;
  std::vector<float*> blocks_;
  int committed_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_KV_CACHE_H_
