// Attention of a few queries over the paged keys and values of one KV head. Compiled once for each instruction set.
#include "kernels/cpu/isa_kernels.h"

namespace ballast::internal::BALLAST_ISA {
namespace {

constexpr int kBlock = 16;  // positions

// Block i of the sequence, from the KV head's keys on.
BALLAST_INLINE const float* Block(const AttentionArgs& args, int i) {
  return args.data + static_cast<size_t>(args.blocks[i]) * args.stride + args.head_offset;
}

BALLAST_INLINE F16 Broadcast(const float* at) { return Splat16(*at); }

// scores[q][p] = scale * <query q, key p>, each a chain of multiply-adds over the head's dimensions; B blocks at a
// time.
template <int Q, int B>
BALLAST_INLINE void Scores(const AttentionArgs& args, const float* const* queries, int first_block, float* scores,
                           size_t stride) {
  F16 sum[Q][B];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) sum[q][b] = Splat16(0);
  }
  const float* keys[B];
  for (int b = 0; b < B; ++b) keys[b] = Block(args, first_block + b);
  for (int d = 0; d < args.head_dim; ++d) {
    F16 key[B];
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) key[b] = Load(keys[b] + d * kBlock);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const F16 value = Broadcast(queries[q] + d);
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) sum[q][b] = Fma(value, key[b], sum[q][b]);
    }
  }
  const F16 scale = Splat16(args.scale);
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) Store(sum[q][b] * scale, scores + q * stride + (first_block + b) * kBlock);
  }
}

// outs[q][d, d + 16 V) += scores[q][p] * value p, for p in [from, to) in order.
template <int Q, int V>
BALLAST_INLINE void Values(const AttentionArgs& args, const float* scores, size_t stride, int from, int to, int d,
                           float* const* outs) {
  F16 sum[Q][V];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[q][v] = Load(outs[q] + d + v * 16);
  }
  for (int p = from; p < to;) {
    const int end = (p / kBlock + 1) * kBlock < to ? (p / kBlock + 1) * kBlock : to;
    const float* at = Block(args, p / kBlock) + static_cast<size_t>(args.head_dim) * kBlock +
                      static_cast<size_t>(p % kBlock) * args.head_dim + d;
    for (; p < end; ++p, at += args.head_dim) {
      F16 value[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) value[v] = Load(at + v * 16);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const F16 weight = Broadcast(scores + q * stride + p);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[q][v] = Fma(weight, value[v], sum[q][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) Store(sum[q][v], outs[q] + d + v * 16);
  }
}

// Registers: accumulators of Q x V (or Q x 2) sixteens, plus a value and a weight.
#if defined(__AVX512F__)
constexpr int kValueVectors = 4, kScoreBlocks = 2;
#elif defined(__AVX2__)
constexpr int kValueVectors = 1, kScoreBlocks = 1;
#else
constexpr int kValueVectors = 1, kScoreBlocks = 1;
#endif

template <int Q>
void AllValues(const AttentionArgs& args, const float* scores, size_t stride, int from, int to, float* const* outs) {
  int d = 0;
  for (; d + 16 * kValueVectors <= args.head_dim; d += 16 * kValueVectors) {
    Values<Q, kValueVectors>(args, scores, stride, from, to, d, outs);
  }
  for (; d < args.head_dim; d += 16) Values<Q, 1>(args, scores, stride, from, to, d, outs);
}

template <int Q>
void AttendQueries(const AttentionArgs& args, const float* const* queries, const int* limits, float* scores,
                   float* const* outs) {
  int longest = limits[0], shortest = limits[0];
  for (int q = 1; q < Q; ++q) {
    longest = limits[q] > longest ? limits[q] : longest;
    shortest = limits[q] < shortest ? limits[q] : shortest;
  }
  const size_t stride = PaddedPositions(longest);
  const int blocks = (longest + kBlock - 1) / kBlock;
  int block = 0;
  for (; block + kScoreBlocks <= blocks; block += kScoreBlocks) {
    Scores<Q, kScoreBlocks>(args, queries, block, scores, stride);
  }
  for (; block < blocks; ++block) Scores<Q, 1>(args, queries, block, scores, stride);
  // Rows with another end see the same positions in the same order, so where the common part ends changes no bits.
  float inverse[Q];
  for (int q = 0; q < Q; ++q) {
    float* row = scores + q * stride;
    const int limit = limits[q];
    F16 top = Splat16(-__builtin_inff());
    int at = 0;
    for (; at + 16 <= limit; at += 16) top = MaxIgnoringNan(Load(row + at), top);
    // What lies behind the limit in the last sixteen must not count: other rows' or no keys.
    if (at < limit) {
      const F16 last = LoadFirst(row + at, limit - at, -__builtin_inff());
      Store(last, row + at);
      top = MaxIgnoringNan(last, top);
    }
    alignas(64) float lanes[16];
    Store(top, lanes);
    float largest = lanes[0];
    for (int i = 1; i < 16; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    const F16 shift = Splat16(largest);
    F16 sum = Splat16(0);
    for (at = 0; at < limit; at += 16) {
      const F16 e = Exp(Load(row + at) - shift);
      sum = sum + e;
      Store(e, row + at);
    }
    inverse[q] = 1.0f / Sum(sum);
    for (int d = 0; d < args.head_dim; d += 16) Store(Splat16(0), outs[q] + d);
  }
  AllValues<Q>(args, scores, stride, 0, shortest, outs);
  for (int q = 0; q < Q; ++q) {
    if (limits[q] > shortest) AllValues<1>(args, scores + q * stride, stride, shortest, limits[q], outs + q);
    const F16 scale = Splat16(inverse[q]);
    for (int d = 0; d < args.head_dim; d += 16) Store(Load(outs[q] + d) * scale, outs[q] + d);
  }
}

}  // namespace

void Attend(const AttentionArgs& args, const float* const* queries, const int* limits, int count, float* scores,
            float* const* outs) {
  switch (count) {
    case 1:
      return AttendQueries<1>(args, queries, limits, scores, outs);
    case 2:
      return AttendQueries<2>(args, queries, limits, scores, outs);
    case 3:
      return AttendQueries<3>(args, queries, limits, scores, outs);
    default:
      return AttendQueries<4>(args, queries, limits, scores, outs);
  }
}

}  // namespace ballast::internal::BALLAST_ISA
