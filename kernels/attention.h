// Rotary positions and causal grouped-query attention over paged keys and values.
#ifndef BALLAST_KERNELS_ATTENTION_H_
#define BALLAST_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ballast {

// Positions of one block of keys and values.
inline constexpr int kKvBlockPositions = 16;

struct AttentionShape {
  int num_heads = 0;
  // Divides num_heads; query head h reads KV head h / (num_heads / num_kv_heads).
  int num_kv_heads = 0;
  // A multiple of 16.
  int head_dim = 0;

  // One layer's part of a block, in floats. Layout: for each KV head, the keys [head_dim][16 positions], then the
  // values [16 positions][head_dim]; positions of keys are adjacent so that 16 scores are one vector.
  constexpr size_t block_floats() const {
    return size_t{2} * static_cast<size_t>(num_kv_heads) * static_cast<size_t>(head_dim) * kKvBlockPositions;
  }
};

// Cosines and sines of rotary embeddings in Hugging Face's "rotate half" form (Su et al., "RoFormer", 2021): pair
// (i, i + head_dim / 2) turns by position * theta^(-2 i / head_dim), both factors and product in f32 as the models were
// trained.
class RotaryTable {
 public:
  RotaryTable(int head_dim, float theta, int max_positions);
  // Rotates one head's vector [head_dim] for `position`, in place. REQUIRES: 0 <= position < max_positions.
  void Rotate(float* x, int position) const;

  // [max_positions][head_dim / 2]
  std::span<const float> cosines() const { return cosine_; }
  std::span<const float> sines() const { return sine_; }

 private:
  int half_;
  std::vector<float> cosine_, sine_;  // [max_positions][half]
};

// One layer's keys and values of one sequence.
struct KvLayer {
  // The layer's part of block b begins at data + b * stride, in floats.
  float* data = nullptr;
  size_t stride = 0;
  // blocks[i] has positions [16 i, 16 i + 16).
  const int32_t* blocks = nullptr;

  float* block(int i) const { return data + static_cast<size_t>(blocks[i]) * stride; }
};

// Writes one position's key and value, both [num_kv_heads][head_dim], to their places.
void StoreKeyValue(const AttentionShape& shape, const float* key, const float* value, int position,
                   const KvLayer& layer);

// Attention of `num_rows` rows of one sequence at consecutive positions, row r seeing positions [0, first_position +
// r]: out = softmax(q k / sqrt(head_dim)) v. Rows of queries and out are [num_heads][head_dim], `query_stride` and
// `out_stride` floats apart.
//
// A row's bits depend on its query and on the keys and values up to its position alone: scores are chains over
// head_dim, the softmax sums 16 lanes (position mod 16) and a tree, values are added in the order of positions,
// whatever the number of rows. Roofline: 4 * head_dim flops a (row, head, position) on 8 * head_dim bytes a (KV head,
// position) shared by up to four queries: bound by L1/L2 loads for one query, by FMA throughput for four.
void AttendRows(const AttentionShape& shape, const float* queries, size_t query_stride, int num_rows,
                int first_position, const KvLayer& layer, float* out, size_t out_stride);

}  // namespace ballast

#endif  // BALLAST_KERNELS_ATTENTION_H_
