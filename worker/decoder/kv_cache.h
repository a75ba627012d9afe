// The paged KV cache: a bounded pool of blocks, and sequences that own some of them.
#ifndef BALLAST_WORKER_DECODER_KV_CACHE_H_
#define BALLAST_WORKER_DECODER_KV_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ballast {

// A pool of equal blocks, each with the keys and values of kBlockPositions positions for every layer and KV head.
// Owned by the step thread: only it takes and gives back blocks. used_blocks() may be read from any thread.
class KvCache {
 public:
  static constexpr int kBlockPositions = 16;

  struct Shape {
    int num_layers = 0;
    int num_kv_heads = 0;
    int head_dim = 0;
  };

  // InvalidArgument when a size is not positive or the pool's size overflows; ResourceExhausted when the memory cannot
  // be had. The memory is reserved at once but touched block by block.
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
  static int BlocksFor(int positions) { return (positions + kBlockPositions - 1) / kBlockPositions; }

  // Keys of one (block, layer, head): [head_dim][kBlockPositions] f32 - positions are adjacent, so that scores of 16
  // positions are one vector. Values: [kBlockPositions][head_dim] f32.
  float* Keys(int32_t block, int layer, int head) const { return Head(block, layer, head); }
  float* Values(int32_t block, int layer, int head) const {
    return Head(block, layer, head) + static_cast<size_t>(shape_.head_dim) * kBlockPositions;
  }

 private:
  friend class KvSequence;
  KvCache(const Shape& shape, int num_blocks, float* data, size_t bytes);
  float* Head(int32_t block, int layer, int head) const {
    return data_ + block * block_floats_ +
           (static_cast<size_t>(layer) * shape_.num_kv_heads + head) * 2 * shape_.head_dim * kBlockPositions;
  }

  const Shape shape_;
  const int num_blocks_;
  const size_t block_floats_;
  float* const data_;
  const size_t bytes_;
  std::vector<int32_t> free_;
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
  int capacity() const { return static_cast<int>(blocks_.size()) * KvCache::kBlockPositions; }

  // Takes blocks until capacity() >= positions. ResourceExhausted, and nothing changes, when the pool has too few.
  absl::Status Reserve(int positions);
  // The step that wrote the next `positions` positions has ended. REQUIRES: committed() + positions <= capacity().
  void Commit(int positions);
  // Gives every block back and forgets all positions.
  void Clear();

  const KvCache& cache() const { return *cache_; }
  // Block i holds positions [16 i, 16 i + 16).
  const std::vector<int32_t>& blocks() const { return blocks_; }

 private:
  KvCache* cache_;
  std::vector<int32_t> blocks_;
  int committed_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_KV_CACHE_H_
