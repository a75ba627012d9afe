// The inner loops of the CPU kernels, one table for each instruction set. Internal to kernels/ and to its tests; the
// headers in kernels/ are what others include.
//
// Invariance. Every function's result for a row (or element) is a fixed expression of that row's inputs: the order of
// additions does not depend on the number of rows, their place or the instruction set. Sums over K run in 16 lanes,
//   lane[j] = fma over b = 0, 1, ... of x[32b + 2j] * w[32b + 2j], then x[32b + 2j + 1] * w[32b + 2j + 1]
// (K padded with zeros to a multiple of 32), and the lanes are added as a tree: halves, halves, halves, halves. AVX-512
// and AVX2+FMA compute the same bits; the baseline multiplies and adds with two roundings, so its bits are others.
#ifndef BALLAST_KERNELS_CPU_ISA_H_
#define BALLAST_KERNELS_CPU_ISA_H_

#include <stddef.h>
#include <stdint.h>

namespace ballast::internal {

inline constexpr int kLanes = 16;
// Packed rows hold K in blocks of 32: the 16 even elements, then the 16 odd ones, so that 32 bf16 weights widen with
// one shift and one mask.
inline constexpr int kPackBlock = 32;
constexpr size_t PackedWidth(int k) { return (static_cast<size_t>(k) + kPackBlock - 1) / kPackBlock * kPackBlock; }

// One group of queries of AttendRows: see kernels/attention.h.
struct AttentionArgs {
  const float* data;  // block blocks[i] begins at blocks[i] * stride floats
  size_t stride;
  const int32_t* blocks;
  size_t head_offset;  // of the KV head's keys in a block, in floats; its values follow
  int head_dim;
  float scale;
};

struct IsaKernels {
  const char* name;
  bool fused_multiply_add;

  // packed[r][PackedWidth(k)] from rows[r][k].
  void (*pack_rows)(const float* const* rows, int num_rows, int k, float* packed);
  // out[r * out_stride + n] = sum over k of x[r][k] * weights[n][k]; x packed, weights [outputs][k] bf16.
  void (*matmul)(const float* packed, int num_rows, int k, const uint16_t* weights, int outputs, float* out,
                 size_t out_stride);
  // packed[r][PackedWidth(width)] from silu(gate) * up, both [num_rows][width].
  void (*swiglu_packed)(const float* gate, const float* up, int num_rows, int width, float* packed);
  // out[i] = silu(gate[i]) * up[i].
  void (*swiglu)(const float* gate, const float* up, int n, float* out);
  // x[i] = exp(x[i] - max) / sum, in place.
  void (*softmax)(float* x, int n);
  // The sum of exp(x[i] - shift).
  float (*sum_exp)(const float* x, float shift, int n);
  // out[i] = exp((x[i] - shift) / divisor), 0 where that is NaN; the sum. out may be x.
  float (*exp_row)(const float* x, float shift, float divisor, int n, float* out);
  // out = x / sqrt(mean(x^2) + epsilon) * weight. out may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int n, float* out);
  // Rotates the pairs (x[i], x[i + half]) by the angles of cosine/sine [half], in place.
  void (*rotate)(float* x, const float* cosine, const float* sine, int half);
  // out[i] = fma(weight, x[i], out[i]).
  void (*multiply_add)(float weight, const float* x, int n, float* out);
  // The largest value that is not NaN; -inf when there is none.
  float (*maximum)(const float* x, int n);
  // Attention of `count` (1 to 4) queries over one KV head, see attention.cc. limits[i] positions are seen by query i.
  // scores: scratch of count * PaddedPositions(max limit) floats.
  void (*attend)(const AttentionArgs& args, const float* const* queries, const int* limits, int count, float* scores,
                 float* const* outs);
};

// Positions rounded up to what `attend` computes at a time.
constexpr size_t PaddedPositions(int positions) { return (static_cast<size_t>(positions) + 31) / 32 * 32; }

extern const IsaKernels kBaselineKernels;
extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;

enum class Isa { kBaseline, kAvx2, kAvx512 };
// Null when this machine cannot run it.
const IsaKernels* KernelsFor(Isa isa);
// The best that this machine runs; chosen once.
const IsaKernels& Kernels();

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CPU_ISA_H_
