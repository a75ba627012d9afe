#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

using internal::kCachePositions;
using internal::RandomBf16;

struct Shape {
  int heads, kv_heads, dim;
};

// Sequences with all keys and values in a cache whose blocks lie in random order, and what the rows from `known` on are
// to see.
class Case {
 public:
  Case(Shape shape, std::vector<int> known, std::vector<int> rows, uint32_t seed)
      : shape_(shape), known_(std::move(known)), rows_(std::move(rows)) {
    std::mt19937 random(seed);
    int blocks = 0;
    for (size_t s = 0; s < rows_.size(); ++s) {
      sequences_.push_back({total_, rows_[s], known_[s], blocks});
      total_ += rows_[s];
      blocks += (known_[s] + rows_[s] + kCachePositions - 1) / kCachePositions;
    }
    table_.resize(blocks);
    for (int i = 0; i < blocks; ++i) table_[i] = i;
    std::shuffle(table_.begin(), table_.end(), random);
    const size_t stride = Stride();
    // What no position has written must not be seen: NaN.
    cache_.assign(stride * blocks, 0x7fff);
    for (size_t s = 0; s < rows_.size(); ++s) {
      for (int p = 0; p < known_[s] + rows_[s]; ++p) {
        for (int kv = 0; kv < shape.kv_heads; ++kv) {
          for (const bool value : {false, true}) {
            const std::vector<uint16_t> v = RandomBf16(shape.dim, random());
            std::copy(v.begin(), v.end(), cache_.begin() + At(static_cast<int>(s), p, kv, value));
          }
        }
      }
    }
    q_ = RandomBf16(static_cast<size_t>(total_) * shape.heads * shape.dim, seed + 1, 2);
  }

  std::vector<double> Reference() const {
    std::vector<double> out(q_.size());
    const int group = shape_.heads / shape_.kv_heads, dim = shape_.dim;
    for (size_t s = 0; s < rows_.size(); ++s) {
      for (int r = 0; r < rows_[s]; ++r) {
        for (int h = 0; h < shape_.heads; ++h) {
          const size_t row = (static_cast<size_t>(sequences_[s].first_row + r) * shape_.heads + h) * dim;
          const int positions = known_[s] + r + 1;
          std::vector<double> score(positions);
          double most = -1e300, sum = 0;
          for (int p = 0; p < positions; ++p) {
            const size_t key = At(static_cast<int>(s), p, h / group, false);
            for (int d = 0; d < dim; ++d)
              score[p] += static_cast<double>(FromBf16(q_[row + d])) * FromBf16(cache_[key + d]);
            score[p] /= std::sqrt(static_cast<double>(dim));
            most = std::max(most, score[p]);
          }
          for (double& v : score) sum += v = std::exp(v - most);
          for (int p = 0; p < positions; ++p) {
            const size_t value = At(static_cast<int>(s), p, h / group, true);
            for (int d = 0; d < dim; ++d) out[row + d] += score[p] / sum * FromBf16(cache_[value + d]);
          }
        }
      }
    }
    return out;
  }

  // All rows at once, or only the last `last` of each sequence.
  std::vector<uint16_t> Run(int tile_vectors, bool shared, int last = 1 << 30) const {
    const int group = shape_.heads / shape_.kv_heads;
    std::vector<AttentionSequence> sequences;
    std::vector<AttentionTile> tiles;
    std::vector<uint16_t> q;
    int rows = 0, longest = 0;
    const size_t width = static_cast<size_t>(shape_.heads) * shape_.dim;
    for (const AttentionSequence& s : sequences_) {
      const int count = std::min(last, s.num_rows), skipped = s.num_rows - count;
      for (int first = 0; first < count * group; first += tile_vectors) {
        tiles.push_back({static_cast<int32_t>(sequences.size()), first});
      }
      sequences.push_back({rows, count, s.position + skipped, s.first_block});
      const auto from = q_.begin() + (s.first_row + skipped) * width;
      q.insert(q.end(), from, from + count * width);
      rows += count;
      longest = std::max(longest, s.position + s.num_rows);
    }
    const DeviceArray<uint16_t> device_q(q), cache(cache_);
    DeviceArray<uint16_t> out(q.size());
    out.Fill(0xff);
    const DeviceArray<AttentionSequence> device_sequences(sequences);
    const DeviceArray<AttentionTile> device_tiles(tiles);
    const DeviceArray<int32_t> table(table_);
    const size_t bytes = shared ? AttentionWorkspaceBytes(rows, shape_.heads, shape_.dim, longest) : 0;
    DeviceArray<uint8_t> workspace(bytes);
    workspace.Fill(0xff);
    CudaAttentionArgs args;
    args.q = device_q.data();
    args.cache = cache.data();
    args.block_stride = Stride();
    args.sequences = device_sequences.data();
    args.blocks = table.data();
    args.tiles = device_tiles.data();
    args.num_tiles = static_cast<int>(tiles.size());
    args.tile_vectors = tile_vectors;
    args.rows = rows;
    args.max_positions = longest;
    args.num_heads = shape_.heads;
    args.num_kv_heads = shape_.kv_heads;
    args.head_dim = shape_.dim;
    args.out = out.data();
    const absl::Status status = Attend(args, workspace.data(), bytes, nullptr);
    BALLAST_CHECK(status.ok()) << status.message();
    CheckCuda(cudaDeviceSynchronize());
    return out.Read();
  }

  // The elements of the last `last` rows of each sequence.
  std::vector<uint16_t> Last(const std::vector<uint16_t>& all, int last) const {
    std::vector<uint16_t> rows;
    const size_t width = static_cast<size_t>(shape_.heads) * shape_.dim;
    for (const AttentionSequence& s : sequences_) {
      const int count = std::min(last, s.num_rows);
      const auto end = all.begin() + (s.first_row + s.num_rows) * width;
      rows.insert(rows.end(), end - count * width, end);
    }
    return rows;
  }

 private:
  // Another layer's part comes first.
  size_t Stride() const { return 64 + AttentionBlockElements(shape_.kv_heads, shape_.dim); }
  size_t At(int sequence, int position, int kv, bool value) const {
    return table_[sequences_[sequence].first_block + position / kCachePositions] * Stride() +
           ((kv * 2 + value) * kCachePositions + position % kCachePositions) * static_cast<size_t>(shape_.dim);
  }

  const Shape shape_;
  const std::vector<int> known_, rows_;
  int total_ = 0;
  std::vector<AttentionSequence> sequences_;
  std::vector<int32_t> table_;
  std::vector<uint16_t> cache_, q_;
};

TEST(CudaAttentionTest, MatchesTheReferenceAndARowDependsOnItsSequenceAlone) {
  for (const Shape shape : {Shape{3, 3, 64}, {4, 2, 64}, {4, 1, 16}, {6, 2, 32}, {16, 2, 128}, {32, 1, 16}}) {
    SCOPED_TRACE(testing::Message() << shape.heads << " heads on " << shape.kv_heads << " of " << shape.dim);
    // Lengths around blocks, steps of 64 and spans of 256.
    const Case some(shape, {0, 5, 63, 0, 250, 700, 0}, {1, 3, 2, 129, 12, 70, 300}, 1);
    const std::vector<uint16_t> all = some.Run(kManyVectors, false);
    const std::vector<double> wanted = some.Reference();
    RelativeError error;
    double worst = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      error.Add(FromBf16(all[i]), wanted[i]);
      worst = std::max(worst, std::abs(FromBf16(all[i]) - wanted[i]));
    }
    EXPECT_LT(error.value(), 4e-3);
    EXPECT_LT(worst, 0.02);
    EXPECT_EQ(some.Run(kFewVectors, false), all);
    EXPECT_EQ(some.Run(kManyVectors, true), all);
    EXPECT_EQ(some.Run(kFewVectors, true), all);
    for (const int last : {1, 2, 7}) {
      for (const int vectors : {kFewVectors, kManyVectors}) {
        for (const bool shared : {false, true}) {
          ASSERT_EQ(some.Run(vectors, shared, last), some.Last(all, last))
              << "last " << last << " rows, tiles of " << vectors << (shared ? ", spans shared out" : "");
        }
      }
    }
  }
}

TEST(CudaAttentionTest, ErrorsNameFieldValueAndLimit) {
  CudaAttentionArgs args;
  args.num_kv_heads = 4;
  args.num_heads = 6;
  EXPECT_EQ(Attend(args, nullptr, 0, nullptr).message(),
            "num_heads is 6, has to be a positive multiple of num_kv_heads, 4");
  args.num_heads = 8;
  args.head_dim = 80;
  EXPECT_EQ(Attend(args, nullptr, 0, nullptr).message(), "head_dim is 80, has to be 16, 32, 64 or 128");
  args.head_dim = 64;
  args.tile_vectors = 17;
  EXPECT_EQ(Attend(args, nullptr, 0, nullptr).message(), "tile_vectors is 17, has to be 16 or 64");
}

}  // namespace
}  // namespace ballast
