// The paged KV cache: a bounded pool of blocks, and sequences that own some of them.
#ifndef BALLAST_WORKER_DECODER_KV_CACHE_H_
#define BALLAST_WORKER_DECODER_KV_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace ballast {

// A pool of equal blocks, each with the keys and values of kKvBlockPositions positions for every layer. Owned by the
// step thread: only it takes and gives back blocks. used_blocks() may be read from any thread.
class KvCache {
 public:
  struct Shape {
    int num_layers = 0;
    AttentionShape attention;
  };
  // Memory of any processor; the deleter gives it back.
  using Memory = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

  // For the CPU: block b begins at data() + b * block_bytes(), a layer's part of it is as kernels/attention.h says. The
  // memory is reserved at once and touched block by block. InvalidArgument: a size that is not positive, or a pool
  // larger than memory can be. ResourceExhausted: no memory.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const Shape& shape, int num_blocks);
  // The same with blocks of another size in memory from `allocate`, which is given the number of bytes.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(
      const Shape& shape, int num_blocks, size_t block_bytes,
      const std::function<absl::StatusOr<Memory>(size_t bytes)>& allocate);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const Shape& shape() const { return shape_; }
  int num_blocks() const { return num_blocks_; }
  int used_blocks() const { return used_.load(std::memory_order_relaxed); }
  int free_blocks() const { return num_blocks_ - used_blocks(); }
  size_t block_bytes() const { return block_bytes_; }
  // Addresses that only the memory's own processor need be able to use.
  std::byte* data() const { return memory_.get(); }
  // Blocks that `positions` positions need.
  static int BlocksFor(int positions) { return (positions + kKvBlockPositions - 1) / kKvBlockPositions; }

 private:
  friend class KvSequence;
  KvCache(const Shape& shape, int num_blocks, size_t block_bytes, Memory memory);

  const Shape shape_;
  const int num_blocks_;
  const size_t block_bytes_;
  const Memory memory_;
  // Free blocks; the one freed last is taken first, it may still be in cache.
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
  int capacity() const { return static_cast<int>(blocks_.size()) * kKvBlockPositions; }

  // Takes blocks until capacity() >= positions. ResourceExhausted, and nothing changes, when the pool has too few.
  absl::Status Reserve(int positions);
  // The step that wrote the next `positions` positions has ended. REQUIRES: committed() + positions <= capacity().
  void Commit(int positions);
  // Gives every block back and forgets all positions.
  void Clear();

  const KvCache& cache() const { return *cache_; }
  // Block blocks()[i] of the cache holds positions [16 i, 16 i + 16).
  const int32_t* blocks() const { return blocks_.data(); }

 private:
  KvCache* cache_;
  std::vector<int32_t> blocks_;
  int committed_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_KV_CACHE_H_
