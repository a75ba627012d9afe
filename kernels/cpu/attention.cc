#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"

namespace ballast {
namespace {

// Queries that share the loads of keys and values.
constexpr int kQueries = 4;

}  // namespace

RotaryTable::RotaryTable(int head_dim, float theta, int max_positions)
    : half_(head_dim / 2),
      cosine_(static_cast<size_t>(max_positions) * half_),
      sine_(static_cast<size_t>(max_positions) * half_) {
  for (int i = 0; i < half_; ++i) {
    const float frequency = 1.0f / std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(head_dim));
    for (int p = 0; p < max_positions; ++p) {
      const float angle = static_cast<float>(p) * frequency;
      cosine_[static_cast<size_t>(p) * half_ + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sine_[static_cast<size_t>(p) * half_ + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

void RotaryTable::Rotate(float* x, int position) const {
  const size_t at = static_cast<size_t>(position) * half_;
  internal::Kernels().rotate(x, cosine_.data() + at, sine_.data() + at, half_);
}

void StoreKeyValue(const AttentionShape& shape, const float* key, const float* value, int position,
                   const KvLayer& layer) {
  float* block = layer.block(position / kKvBlockPositions);
  const int at = position % kKvBlockPositions;
  const size_t half_head = static_cast<size_t>(shape.head_dim) * kKvBlockPositions;
  for (int h = 0; h < shape.num_kv_heads; ++h, key += shape.head_dim, value += shape.head_dim, block += 2 * half_head) {
    for (int d = 0; d < shape.head_dim; ++d) block[d * kKvBlockPositions + at] = key[d];
    std::copy_n(value, shape.head_dim, block + half_head + static_cast<size_t>(at) * shape.head_dim);
  }
}

void AttendRows(const AttentionShape& shape, const float* queries, size_t query_stride, int num_rows,
                int first_position, const KvLayer& layer, float* out, size_t out_stride) {
  thread_local internal::Scratch scratch;
  float* scores = scratch.Get<float>(kQueries * internal::PaddedPositions(first_position + num_rows));
  const internal::IsaKernels& kernels = internal::Kernels();
  const int group = shape.num_heads / shape.num_kv_heads;
  internal::AttentionArgs args = {
      .data = layer.data,
      .stride = layer.stride,
      .blocks = layer.blocks,
      .head_offset = 0,
      .head_dim = shape.head_dim,
      .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
  };
  for (int kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
    args.head_offset = size_t{2} * kv_head * shape.head_dim * kKvBlockPositions;
    // The (row, head) pairs that read this KV head, a few at a time.
    const float* query[kQueries];
    float* result[kQueries];
    int limit[kQueries];
    int count = 0;
    for (int i = 0; i < num_rows * group; ++i) {
      const int row = i / group;
      const size_t head = static_cast<size_t>(kv_head * group + i % group) * shape.head_dim;
      query[count] = queries + row * query_stride + head;
      result[count] = out + row * out_stride + head;
      limit[count] = first_position + row + 1;
      if (++count == kQueries || i + 1 == num_rows * group) {
        kernels.attend(args, query, limit, count, scores, result);
        count = 0;
      }
    }
  }
}

}  // namespace ballast
