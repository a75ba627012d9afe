// Sixteen floats as the instruction set has them: one, two or four registers. Only for sources that are compiled once
// for each instruction set (BALLAST_ISA names it); nothing here may be shared between those, so everything is in that
// instruction set's own namespace and no inline function of another header is used.
#ifndef BALLAST_KERNELS_CPU_SIMD_H_
#define BALLAST_KERNELS_CPU_SIMD_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef BALLAST_ISA
#define BALLAST_ISA baseline
#endif

#define BALLAST_INLINE inline __attribute__((always_inline))

namespace ballast::internal::BALLAST_ISA {

#if defined(__AVX512F__)
inline constexpr int kPartLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kPartLanes = 8;
#else
inline constexpr int kPartLanes = 4;
#endif
inline constexpr int kParts = 16 / kPartLanes;
inline constexpr int kPartBytes = kPartLanes * 4;

typedef float Part __attribute__((vector_size(kPartBytes)));
typedef int32_t PartI __attribute__((vector_size(kPartBytes)));
typedef uint32_t PartU __attribute__((vector_size(kPartBytes)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float4 __attribute__((vector_size(16)));
// The same, for loads and stores at any address.
typedef float PartAny __attribute__((vector_size(kPartBytes), aligned(4), may_alias));
typedef uint32_t PartUAny __attribute__((vector_size(kPartBytes), aligned(2), may_alias));
typedef float Float4Any __attribute__((vector_size(16), aligned(4), may_alias));

struct F16 {
  Part p[kParts];
};

BALLAST_INLINE Part Splat(float v) { return v - Part{}; }
BALLAST_INLINE F16 Splat16(float v) {
  F16 r;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) r.p[i] = Splat(v);
  return r;
}
BALLAST_INLINE F16 Load(const float* at) {
  F16 r;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) r.p[i] = *reinterpret_cast<const PartAny*>(at + i * kPartLanes);
  return r;
}
BALLAST_INLINE void Store(const F16& v, float* at) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) *reinterpret_cast<PartAny*>(at + i * kPartLanes) = v.p[i];
}
// The first n (0 to 16) of `at`, `fill` behind them.
BALLAST_INLINE F16 LoadFirst(const float* at, int n, float fill) {
  alignas(64) float padded[16];
  for (int i = 0; i < 16; ++i) padded[i] = fill;
  memcpy(padded, at, static_cast<size_t>(n) * sizeof(float));
  return Load(padded);
}
BALLAST_INLINE void StoreFirst(const F16& v, float* at, int n) {
  alignas(64) float padded[16];
  Store(v, padded);
  memcpy(at, padded, static_cast<size_t>(n) * sizeof(float));
}

// a * b + c, rounded once where the instruction set can.
BALLAST_INLINE Part FmaPart(Part a, Part b, Part c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
BALLAST_INLINE F16 Fma(const F16& a, const F16& b, const F16& c) {
  F16 r;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) r.p[i] = FmaPart(a.p[i], b.p[i], c.p[i]);
  return r;
}
#define BALLAST_SIMD_OPERATOR(op)                                                           \
  BALLAST_INLINE F16 operator op(const F16& a, const F16& b) {                              \
    F16 r;                                                                                  \
    _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i) { r.p[i] = a.p[i] op b.p[i]; } \
    return r;                                                                               \
  }
BALLAST_SIMD_OPERATOR(+)
BALLAST_SIMD_OPERATOR(-)
BALLAST_SIMD_OPERATOR(*)
BALLAST_SIMD_OPERATOR(/)
#undef BALLAST_SIMD_OPERATOR

// The larger; b where a is NaN.
BALLAST_INLINE F16 MaxIgnoringNan(const F16& a, const F16& b) {
  F16 r;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) r.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
  return r;
}

// 0 in the lanes that are NaN.
BALLAST_INLINE F16 ZeroForNan(const F16& v) {
  F16 r;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) r.p[i] = v.p[i] == v.p[i] ? v.p[i] : Part{};
  return r;
}

// Lanes 2j (even) and 2j + 1 (odd) of 32 bf16 at `at`, widened to f32.
BALLAST_INLINE void LoadBf16Pairs(const uint16_t* at, F16& even, F16& odd) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const PartU pair = *reinterpret_cast<const PartUAny*>(at + i * kPartLanes * 2);
    even.p[i] = reinterpret_cast<Part>(pair << 16);
    odd.p[i] = reinterpret_cast<Part>(pair & 0xffff0000u);
  }
}

// The first half of the tree: lanes j, j + 8, then j, j + 4.
BALLAST_INLINE Float4 Fold4(const F16& v) {
#if defined(__AVX512F__)
  const Float8 half = __builtin_shufflevector(v.p[0], v.p[0], 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(v.p[0], v.p[0], 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif defined(__AVX2__)
  const Float8 half = v.p[0] + v.p[1];
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#else
  return (v.p[0] + v.p[2]) + (v.p[1] + v.p[3]);
#endif
}
// The sums of the lanes of a, b, c and d: the tree's second half, lanes j, j + 2, then 0, 1, for four at once.
BALLAST_INLINE Float4 Sum4(const F16& a, const F16& b, const F16& c, const F16& d) {
  const Float4 fa = Fold4(a), fb = Fold4(b), fc = Fold4(c), fd = Fold4(d);
  const Float4 ab = __builtin_shufflevector(fa, fb, 0, 4, 1, 5) + __builtin_shufflevector(fa, fb, 2, 6, 3, 7);
  const Float4 cd = __builtin_shufflevector(fc, fd, 0, 4, 1, 5) + __builtin_shufflevector(fc, fd, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
BALLAST_INLINE float Sum(const F16& a) {
  const Float4 f = Fold4(a);
  return (f[0] + f[2]) + (f[1] + f[3]);
}

// a and b, 32 consecutive values, as even ones and odd ones.
BALLAST_INLINE void StoreSplit(const F16& a, const F16& b, float* at) {
#if defined(__AVX512F__)
  *reinterpret_cast<PartAny*>(at) =
      __builtin_shufflevector(a.p[0], b.p[0], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *reinterpret_cast<PartAny*>(at + 16) =
      __builtin_shufflevector(a.p[0], b.p[0], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
  alignas(32) float both[32];
  Store(a, both);
  Store(b, both + 16);
  for (int j = 0; j < 16; ++j) {
    at[j] = both[2 * j];
    at[16 + j] = both[2 * j + 1];
  }
#endif
}

// exp(x) to about 1 ulp: x = n ln 2 + r, a polynomial in r, n put into the exponent (Cephes' expf: S. Moshier, "Methods
// and Programs for Mathematical Functions", 1989). Below -87.3 it is 0, above 88.3 exp(88.3); NaN stays NaN.
BALLAST_INLINE F16 Exp(const F16& x) {
  F16 r;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const Part lowest = Splat(-87.3f), highest = Splat(88.3f);
    Part v = x.p[i];
    const PartI underflow = v < lowest;
    v = underflow ? lowest : v;
    v = v > highest ? highest : v;
    // Adding 1.5 * 2^23 rounds to an integer, which then is the low bits of the sum.
    const Part shifted = FmaPart(v, Splat(1.44269504088896341f), Splat(12582912.0f));
    const Part n = shifted - Splat(12582912.0f);
    Part f = FmaPart(n, Splat(-0.693359375f), v);
    f = FmaPart(n, Splat(2.12194440e-4f), f);
    Part p = Splat(1.9875691500e-4f);
    p = FmaPart(p, f, Splat(1.3981999507e-3f));
    p = FmaPart(p, f, Splat(8.3334519073e-3f));
    p = FmaPart(p, f, Splat(4.1665795894e-2f));
    p = FmaPart(p, f, Splat(1.6666665459e-1f));
    p = FmaPart(p, f, Splat(5.0000001201e-1f));
    p = FmaPart(p * f, f, f) + Splat(1.0f);
    const PartI scale = (reinterpret_cast<PartI>(shifted) << 23) + (127 << 23);
    p = p * reinterpret_cast<Part>(scale);
    r.p[i] = underflow ? Part{} : p;
  }
  return r;
}

}  // namespace ballast::internal::BALLAST_ISA

#endif  // BALLAST_KERNELS_CPU_SIMD_H_
