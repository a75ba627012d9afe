#include "worker/decoder/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <cstddef>
#include <set>
#include <vector>

namespace ballast {
namespace {

constexpr KvCache::Shape kShape = {.num_layers = 2, .attention = {.num_heads = 4, .num_kv_heads = 2, .head_dim = 16}};

TEST(KvCacheTest, SequencesTakeAndGiveBackBlocks) {
  auto cache = KvCache::Create(kShape, 4);
  ASSERT_TRUE(cache.ok());
  EXPECT_EQ((*cache)->block_bytes(), 2u * 2 * 2 * 16 * 16 * 4);
  {
    KvSequence a(**cache), b(**cache);
    EXPECT_TRUE(a.Reserve(0).ok());
    EXPECT_TRUE(a.Reserve(16).ok());
    EXPECT_EQ(a.capacity(), 16);
    EXPECT_TRUE(a.Reserve(17).ok());
    EXPECT_TRUE(b.Reserve(30).ok());
    EXPECT_EQ((*cache)->free_blocks(), 0);
    const std::set<int32_t> distinct = {a.blocks()[0], a.blocks()[1], b.blocks()[0], b.blocks()[1]};
    EXPECT_EQ(distinct.size(), 4u);
    a.Clear();
    EXPECT_EQ((*cache)->free_blocks(), 2);
    EXPECT_EQ(a.capacity(), 0);
  }
  EXPECT_EQ((*cache)->used_blocks(), 0);
}

TEST(KvCacheTest, ReserveBeyondThePoolNamesTheLimitAndChangesNothing) {
  auto cache = KvCache::Create(kShape, 2);
  ASSERT_TRUE(cache.ok());
  KvSequence a(**cache);
  ASSERT_TRUE(a.Reserve(10).ok());
  const absl::Status status = a.Reserve(33);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "positions=33 need 2 more KV blocks, 1 of 2 are free");
  EXPECT_EQ(a.capacity(), 16);
  EXPECT_EQ((*cache)->used_blocks(), 1);
}

TEST(KvCacheTest, CommitGrowsAndClearForgets) {
  auto cache = KvCache::Create(kShape, 2);
  ASSERT_TRUE(cache.ok());
  KvSequence a(**cache);
  ASSERT_TRUE(a.Reserve(20).ok());
  a.Commit(16);
  a.Commit(4);
  EXPECT_EQ(a.committed(), 20);
  a.Clear();
  EXPECT_EQ(a.committed(), 0);
}

TEST(KvCacheDeathTest, CommitBeyondCapacityDies) {
  auto cache = KvCache::Create(kShape, 1);
  ASSERT_TRUE(cache.ok());
  KvSequence a(**cache);
  ASSERT_TRUE(a.Reserve(1).ok());
  EXPECT_DEATH(a.Commit(17), "committed=0 positions=17 capacity=16");
}

TEST(KvCacheTest, RefusesSizesThatCannotBe) {
  EXPECT_EQ(KvCache::Create(kShape, 0).status().message(), "num_blocks=0 must be at least 1");
  KvCache::Shape shape = kShape;
  shape.num_layers = 0;
  EXPECT_EQ(KvCache::Create(shape, 1).status().message(), "num_layers=0 must be at least 1");
  shape = {.num_layers = 1 << 20, .attention = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 1 << 10}};
  EXPECT_EQ(KvCache::Create(shape, INT_MAX).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(KvCacheTest, MemoryOfAnotherKindIsAskedForOnceAndGivenBack) {
  std::vector<std::byte> memory(3 * 40);
  int freed = 0;
  {
    const auto cache = KvCache::Create(kShape, 3, 40, [&](size_t bytes) -> absl::StatusOr<KvCache::Memory> {
      EXPECT_EQ(bytes, memory.size());
      return KvCache::Memory(memory.data(), [&](std::byte*) { ++freed; });
    });
    ASSERT_TRUE(cache.ok()) << cache.status();
    EXPECT_EQ((*cache)->data(), memory.data());
    EXPECT_EQ((*cache)->block_bytes(), 40u);
    KvSequence sequence(**cache);
    ASSERT_TRUE(sequence.Reserve(48).ok());
    EXPECT_EQ(std::set<int32_t>(sequence.blocks(), sequence.blocks() + 3), (std::set<int32_t>{0, 1, 2}));
  }
  EXPECT_EQ(freed, 1);
  EXPECT_EQ(KvCache::Create(kShape, 3, 40, [](size_t) { return absl::ResourceExhaustedError("full"); }).status(),
            absl::ResourceExhaustedError("full"));
}

}  // namespace
}  // namespace ballast
