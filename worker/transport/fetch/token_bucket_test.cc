#include "worker/transport/fetch/token_bucket.h"

#include "gtest/gtest.h"

namespace ballast {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

TEST(TokenBucketTest, NoRate_IsNoLimit) {
  TokenBucket bucket(0, 10);
  bucket.Spend(1'000'000, kStart);
  EXPECT_LE(bucket.ReadyAt(), kStart);
}

TEST(TokenBucketTest, FullBucket_LetsABurstGoAtOnce) {
  TokenBucket bucket(100, 50);
  bucket.Spend(50, kStart);
  EXPECT_EQ(bucket.ReadyAt(), kStart);
  bucket.Spend(25, kStart);
  EXPECT_EQ(bucket.ReadyAt(), kStart + absl::Milliseconds(250));
}

TEST(TokenBucketTest, LongRun_KeepsTheRate) {
  TokenBucket bucket(1000, 100);
  absl::Time now = kStart;
  int64_t sent = 0;
  while (now < kStart + absl::Seconds(10)) {
    now = std::max(now, bucket.ReadyAt());
    bucket.Spend(64, now);
    sent += 64;
  }
  EXPECT_NEAR(sent, 10'000, 200);
}

TEST(TokenBucketTest, IdleTime_IsNotSavedBeyondTheBurst) {
  TokenBucket bucket(100, 50);
  bucket.Spend(50, kStart);
  const absl::Time later = kStart + absl::Hours(1);
  bucket.Spend(100, later);
  EXPECT_EQ(bucket.ReadyAt(), later + absl::Milliseconds(500));
}

TEST(TokenBucketTest, ANewRate_HoldsFromTheNextSpend) {
  TokenBucket bucket(100, 0);
  bucket.Spend(100, kStart);
  EXPECT_EQ(bucket.ReadyAt(), kStart + absl::Seconds(1));
  bucket.SetRate(1000, 0);
  bucket.Spend(100, kStart + absl::Seconds(1));
  EXPECT_EQ(bucket.ReadyAt(), kStart + absl::Milliseconds(1100));
  bucket.SetRate(0, 0);
  EXPECT_LE(bucket.ReadyAt(), kStart);
}

TEST(TokenBucketTest, ANewBurst_HoldsFromTheNextSpend) {
  TokenBucket bucket(100, 0);
  bucket.Spend(100, kStart);
  const absl::Time later = kStart + absl::Hours(1);
  bucket.SetRate(100, 50);
  bucket.Spend(100, later);
  EXPECT_EQ(bucket.ReadyAt(), later + absl::Milliseconds(500));
}

TEST(MoveChunkBytes, FollowsTheRate) {
  EXPECT_EQ(MoveChunkBytes(0), size_t{32} << 20);
  EXPECT_EQ(MoveChunkBytes(1), size_t{256} << 10);
  EXPECT_EQ(MoveChunkBytes(10'000'000'000), size_t{1'998'848});
  EXPECT_EQ(MoveChunkBytes(int64_t{1} << 50), size_t{32} << 20);
}

}  // namespace
}  // namespace ballast
