#include "worker/decoder/kv_cache.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Shape& shape, int num_blocks) {
  const size_t block_bytes = shape.attention.block_floats() * sizeof(float) * static_cast<size_t>(shape.num_layers);
  return Create(shape, num_blocks, block_bytes, [](size_t bytes) -> absl::StatusOr<Memory> {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a KV cache of ", bytes, " bytes: ", std::strerror(errno)));
    }
    return Memory(static_cast<std::byte*>(data), [bytes](std::byte* p) { munmap(p, bytes); });
  });
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(
    const Shape& shape, int num_blocks, size_t block_bytes,
    const std::function<absl::StatusOr<Memory>(size_t bytes)>& allocate) {
  const AttentionShape& attention = shape.attention;
  for (const auto& [name, value] : {std::pair{"num_layers", shape.num_layers},
                                    {"num_kv_heads", attention.num_kv_heads},
                                    {"head_dim", attention.head_dim},
                                    {"num_blocks", num_blocks}}) {
    if (value < 1) return absl::InvalidArgumentError(absl::StrCat(name, "=", value, " must be at least 1"));
  }
  size_t bytes = 0;
  if (__builtin_mul_overflow(block_bytes, static_cast<size_t>(num_blocks), &bytes) || bytes > (size_t{1} << 46)) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_blocks=", num_blocks, " of ", block_bytes, " bytes each is over 64 TiB"));
  }
  BALLAST_ASSIGN_OR_RETURN(Memory memory, allocate(bytes));
  return std::unique_ptr<KvCache>(new KvCache(shape, num_blocks, block_bytes, std::move(memory)));
}

KvCache::KvCache(const Shape& shape, int num_blocks, size_t block_bytes, Memory memory)
    : shape_(shape), num_blocks_(num_blocks), block_bytes_(block_bytes), memory_(std::move(memory)) {
  free_.reserve(num_blocks);
  for (int32_t i = num_blocks; i-- > 0;) free_.push_back(i);
}

KvCache::~KvCache() {
  BALLAST_CHECK(used_blocks() == 0) << "a sequence outlives its cache, used_blocks=" << used_blocks();
}

absl::Status KvSequence::Reserve(int positions) {
  const int more = KvCache::BlocksFor(positions) - static_cast<int>(blocks_.size());
  if (more <= 0) return absl::OkStatus();
  if (more > cache_->free_blocks()) {
    return absl::ResourceExhaustedError(absl::StrCat("positions=", positions, " need ", more, " more KV blocks, ",
                                                     cache_->free_blocks(), " of ", cache_->num_blocks(), " are free"));
  }
  for (int i = 0; i < more; ++i) {
    blocks_.push_back(cache_->free_.back());
    cache_->free_.pop_back();
  }
  cache_->used_.fetch_add(more, std::memory_order_relaxed);
  return absl::OkStatus();
}

void KvSequence::Commit(int positions) {
  BALLAST_CHECK(positions >= 0 && committed_ + positions <= capacity())
      << "committed=" << committed_ << " positions=" << positions << " capacity=" << capacity();
  committed_ += positions;
}

void KvSequence::Clear() {
  cache_->used_.fetch_sub(static_cast<int>(blocks_.size()), std::memory_order_relaxed);
  cache_->free_.insert(cache_->free_.end(), blocks_.rbegin(), blocks_.rend());
  blocks_.clear();
  committed_ = 0;
}

}  // namespace ballast
