// Elementwise kernels and short reductions. Compiled once for each instruction set.
#include "kernels/cpu/isa_kernels.h"

#define BALLAST_STRING_(x) #x
#define BALLAST_STRING(x) BALLAST_STRING_(x)

namespace ballast::internal::BALLAST_ISA {
namespace {

// Lanes of x[at, at + 16) that lie below n; `fill` elsewhere.
BALLAST_INLINE F16 LoadUpTo(const float* x, int at, int n, float fill) {
  return at + 16 <= n ? Load(x + at) : LoadFirst(x + at, n - at, fill);
}
BALLAST_INLINE void StoreUpTo(const F16& v, float* x, int at, int n) {
  if (at + 16 <= n) {
    Store(v, x + at);
  } else {
    StoreFirst(v, x + at, n - at);
  }
}

BALLAST_INLINE float SquareRoot(float v) { return __builtin_sqrtf(v); }

BALLAST_INLINE float LargestLane(const F16& v) {
  alignas(64) float lanes[16];
  Store(v, lanes);
  float best = lanes[0];
  for (int i = 1; i < 16; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

// silu(g) * u of 16 lanes.
BALLAST_INLINE F16 SwiGlu16(const F16& g, const F16& u) { return g / (Splat16(1) + Exp(Splat16(0) - g)) * u; }

}  // namespace

void SwiGlu(const float* gate, const float* up, int n, float* out) {
  for (int at = 0; at < n; at += 16) {
    StoreUpTo(SwiGlu16(LoadUpTo(gate, at, n, 0), LoadUpTo(up, at, n, 0)), out, at, n);
  }
}

void SwiGluPacked(const float* gate, const float* up, int num_rows, int width, float* packed) {
  for (int r = 0; r < num_rows; ++r, gate += width, up += width, packed += PackedWidth(width)) {
    int at = 0;
    for (; at + kPackBlock <= width; at += kPackBlock) {
      StoreSplit(SwiGlu16(Load(gate + at), Load(up + at)), SwiGlu16(Load(gate + at + 16), Load(up + at + 16)),
                 packed + at);
    }
    if (at < width) {
      const int first = width - at < 16 ? width - at : 16, second = width - at - first;
      StoreSplit(SwiGlu16(LoadFirst(gate + at, first, 0), LoadFirst(up + at, first, 0)),
                 SwiGlu16(LoadFirst(gate + at + first, second, 0), LoadFirst(up + at + first, second, 0)), packed + at);
    }
  }
}

float Maximum(const float* x, int n) {
  const float lowest = -__builtin_inff();
  F16 best = Splat16(lowest);
  for (int at = 0; at < n; at += 16) best = MaxIgnoringNan(LoadUpTo(x, at, n, lowest), best);
  return LargestLane(best);
}

void Softmax(float* x, int n) {
  const F16 top = Splat16(Maximum(x, n));
  F16 sum = Splat16(0);
  for (int at = 0; at < n; at += 16) {
    const F16 e = Exp(LoadUpTo(x, at, n, -__builtin_inff()) - top);
    sum = sum + e;
    StoreUpTo(e, x, at, n);
  }
  const F16 total = Splat16(Sum(sum));
  for (int at = 0; at < n; at += 16) StoreUpTo(LoadUpTo(x, at, n, 0) / total, x, at, n);
}

float SumExp(const float* x, float shift, int n) {
  const F16 top = Splat16(shift);
  F16 sum = Splat16(0);
  for (int at = 0; at < n; at += 16) sum = sum + Exp(LoadUpTo(x, at, n, -__builtin_inff()) - top);
  return Sum(sum);
}

float ExpRow(const float* x, float shift, float divisor, int n, float* out) {
  const F16 top = Splat16(shift), by = Splat16(divisor);
  F16 sum = Splat16(0);
  for (int at = 0; at < n; at += 16) {
    const F16 e = ZeroForNan(Exp((LoadUpTo(x, at, n, -__builtin_inff()) - top) / by));
    sum = sum + e;
    StoreUpTo(e, out, at, n);
  }
  return Sum(sum);
}

void RmsNorm(const float* x, const float* weight, float epsilon, int n, float* out) {
  F16 sum = Splat16(0);
  for (int at = 0; at < n; at += 16) {
    const F16 v = LoadUpTo(x, at, n, 0);
    sum = Fma(v, v, sum);
  }
  const F16 scale = Splat16(1.0f / SquareRoot(Sum(sum) / static_cast<float>(n) + epsilon));
  for (int at = 0; at < n; at += 16) {
    StoreUpTo(LoadUpTo(x, at, n, 0) * scale * LoadUpTo(weight, at, n, 0), out, at, n);
  }
}

void Rotate(float* x, const float* cosine, const float* sine, int half) {
  for (int at = 0; at < half; at += 16) {
    const F16 c = LoadUpTo(cosine, at, half, 0), s = LoadUpTo(sine, at, half, 0);
    const F16 a = LoadUpTo(x, at, half, 0), b = LoadUpTo(x + half, at, half, 0);
    StoreUpTo(a * c - b * s, x, at, half);
    StoreUpTo(b * c + a * s, x + half, at, half);
  }
}

void MultiplyAdd(float weight, const float* x, int n, float* out) {
  const F16 w = Splat16(weight);
  for (int at = 0; at < n; at += 16) {
    StoreUpTo(Fma(w, LoadUpTo(x, at, n, 0), LoadUpTo(out, at, n, 0)), out, at, n);
  }
}

}  // namespace ballast::internal::BALLAST_ISA

namespace ballast::internal {

extern const IsaKernels BALLAST_ISA_TABLE;
const IsaKernels BALLAST_ISA_TABLE = {
    .name = BALLAST_STRING(BALLAST_ISA),
#if defined(__FMA__)
    .fused_multiply_add = true,
#else
    .fused_multiply_add = false,
#endif
    .pack_rows = BALLAST_ISA::PackRows,
    .matmul = BALLAST_ISA::Matmul,
    .swiglu_packed = BALLAST_ISA::SwiGluPacked,
    .swiglu = BALLAST_ISA::SwiGlu,
    .softmax = BALLAST_ISA::Softmax,
    .sum_exp = BALLAST_ISA::SumExp,
    .exp_row = BALLAST_ISA::ExpRow,
    .rms_norm = BALLAST_ISA::RmsNorm,
    .rotate = BALLAST_ISA::Rotate,
    .multiply_add = BALLAST_ISA::MultiplyAdd,
    .maximum = BALLAST_ISA::Maximum,
    .attend = BALLAST_ISA::Attend,
};

}  // namespace ballast::internal
