// Hopper's warpgroup matrix multiply, and the barriers and copies that feed it, as PTX (ISA 8.0 and later).
#ifndef BALLAST_KERNELS_CUDA_HOPPER_H_
#define BALLAST_KERNELS_CUDA_HOPPER_H_

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/cache_policy.h"

namespace ballast::internal {

__device__ inline uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Barriers in shared memory: a phase ends when `count` arrivals and all announced bytes have come in.
__device__ inline void BarrierInit(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count) : "memory");
}
__device__ inline void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ inline void BarrierArriveExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(bytes)
               : "memory");
}
// At the barrier in the same place of another block of the cluster.
__device__ inline void BarrierArriveAt(uint64_t* barrier, uint32_t block) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(block)
      : "memory");
}
// All threads of the cluster's blocks wait for each other.
__device__ inline void ClusterBarrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
__device__ inline uint32_t ClusterRank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Arrives when the calling thread's cp.async copies so far are in shared memory.
__device__ inline void BarrierArriveOnCopies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ inline void BarrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Whether that phase has ended, for all of a warp alike.
__device__ inline bool BarrierTest(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(SharedAddress(barrier)), "r"(parity)
      : "memory");
  return __all_sync(~0u, done);
}

// 16 bytes from global to shared memory, past L1; zeros where `valid` is false.
__device__ inline void CopyAsync16(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// 4 bytes likewise, by way of L1.
__device__ inline void CopyAsync4(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

// One box of a tensor map to shared memory; its bytes count on `barrier`. Coordinates innermost first. With kBlocks > 1
// the box goes to the same place in that many blocks of the cluster, and counts on the barrier of each.
template <int kBlocks>
__device__ inline void TensorLoad(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2) {
  if constexpr (kBlocks == 1) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(SharedAddress(shared)),
        "l"(map), "r"(SharedAddress(barrier)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%3, "
        "%4, %5}], [%2], %6;" ::"r"(SharedAddress(shared)),
        "l"(map), "r"(SharedAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "h"(static_cast<uint16_t>((1 << kBlocks) - 1))
        : "memory");
  }
}
template <int kBlocks>
__device__ inline void TensorLoad(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2,
                                  int c3, int c4) {
  if constexpr (kBlocks == 1) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
        "[%2];" ::"r"(SharedAddress(shared)),
        "l"(map), "r"(SharedAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%3, "
        "%4, %5, %6, %7}], [%2], %8;" ::"r"(SharedAddress(shared)),
        "l"(map), "r"(SharedAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4),
        "h"(static_cast<uint16_t>((1 << kBlocks) - 1))
        : "memory");
  }
}
// The same for one block, and not to be kept in L2.
__device__ inline void TensorLoadOnce(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, "
      "%5}], [%2], %6;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(kEvictFirst)
      : "memory");
}
__device__ inline void TensorLoadOnce(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2,
                                      int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, "
      "%5, %6, %7}], [%2], %8;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(kEvictFirst)
      : "memory");
}
__device__ inline void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Makes ordinary writes to shared memory that this thread has seen visible to wgmma and the tensor copy engine.
__device__ inline void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The first `threads` arrivals at the named barrier `id` wait for each other.
__device__ inline void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ inline void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ inline uint32_t LoadAcquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
// Adds, and gives what was there.
__device__ inline uint32_t AddAcquireRelease(uint32_t* p, uint32_t v) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(v) : "memory");
  return before;
}
__device__ inline void AddRelease(uint32_t* p, uint32_t v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Two floats and, beside each, a tag that says that it has been written: a reader needs no other flag, because 8 bytes
// are written at once.
__device__ inline void StoreTagged(uint4* p, float a, float b, uint32_t tag) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(p), "r"(__float_as_uint(a)), "r"(tag),
               "r"(__float_as_uint(b))
               : "memory");
}
__device__ inline uint4 LoadTagged(const uint4* p) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

// Four transposed 8x8 matrices of 2-byte elements to shared memory: lane l holds row l/4, columns 2 (l%4) and the next,
// of each matrix, and the address of column l%8 of matrix l/8 (16 bytes).
__device__ inline void StoreTransposed(uint32_t shared, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(m0),
               "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

// Four 8x8 matrices of 2-byte elements as they are: lane l holds the same of each and the address of row l%8 of matrix
// l/8.
__device__ inline void StoreMatrices(uint32_t shared, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(m0), "r"(m1),
               "r"(m2), "r"(m3)
               : "memory");
}

// The descriptor of an operand tile in shared memory: rows of 128 bytes of k, 128-byte swizzle, 1024-byte aligned; 32
// bytes of k further is + 2.
__device__ inline uint64_t OperandDescriptor(const void* shared) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32,
                     kUnused = uint64_t{1} << 16;
  return kSwizzle128 | kEightRows | kUnused | ((SharedAddress(shared) & 0x3ffff) >> 4);
}

__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of the sums across a wait.
template <int kSize>
__device__ inline void PinRegisters(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d += a b for 64 rows of a, N rows of b, 16 of k, all of a warpgroup: lane l of warp w holds rows 16 w + l/4 (d[4j],
// d[4j+1]) and 8 more (d[4j+2], d[4j+3]), columns 8 j + 2 (l%4) and the next. d = a b where `accumulate` is 0.
// The array is the widest tile's, so that one set of registers serves all widths; the first N/2 are used.
template <int N>
struct Wgmma;

// clang-format off
#define BALLAST_REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BALLAST_SUMS_16 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define BALLAST_REGISTERS_32 BALLAST_REGISTERS_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define BALLAST_SUMS_32 BALLAST_SUMS_16, \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define BALLAST_REGISTERS_48 BALLAST_REGISTERS_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define BALLAST_SUMS_48 BALLAST_SUMS_32, \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define BALLAST_REGISTERS_64 BALLAST_REGISTERS_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define BALLAST_SUMS_64 BALLAST_SUMS_48, \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define BALLAST_REGISTERS_80 BALLAST_REGISTERS_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define BALLAST_SUMS_80 BALLAST_SUMS_64, \
  "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define BALLAST_REGISTERS_96 BALLAST_REGISTERS_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define BALLAST_SUMS_96 BALLAST_SUMS_80, \
  "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define BALLAST_REGISTERS_112 BALLAST_REGISTERS_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define BALLAST_SUMS_112 BALLAST_SUMS_96, \
  "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define BALLAST_REGISTERS_128 BALLAST_REGISTERS_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define BALLAST_SUMS_128 BALLAST_SUMS_112, \
  "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define BALLAST_REGISTERS_144 BALLAST_REGISTERS_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define BALLAST_SUMS_144 BALLAST_SUMS_128, \
  "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define BALLAST_REGISTERS_160 BALLAST_REGISTERS_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define BALLAST_SUMS_160 BALLAST_SUMS_144, \
  "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define BALLAST_REGISTERS_176 BALLAST_REGISTERS_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define BALLAST_SUMS_176 BALLAST_SUMS_160, \
  "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define BALLAST_REGISTERS_192 BALLAST_REGISTERS_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define BALLAST_SUMS_192 BALLAST_SUMS_176, \
  "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define BALLAST_REGISTERS_208 BALLAST_REGISTERS_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define BALLAST_SUMS_208 BALLAST_SUMS_192, \
  "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define BALLAST_REGISTERS_224 BALLAST_REGISTERS_208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define BALLAST_SUMS_224 BALLAST_SUMS_208, \
  "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define BALLAST_REGISTERS_240 BALLAST_REGISTERS_224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define BALLAST_SUMS_240 BALLAST_SUMS_224, \
  "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define BALLAST_REGISTERS_256 BALLAST_REGISTERS_240 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define BALLAST_SUMS_256 BALLAST_SUMS_240, \
  "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
// A, B, P: the numbers of the operands after the sums.
#define BALLAST_WGMMA(N, A, B, P) \
  template <> \
  struct Wgmma<N> { \
    template <int kSize> \
    __device__ static void Run(float (&d)[kSize], uint64_t a, uint64_t b, int accumulate) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n" \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" BALLAST_REGISTERS_##N "}, " \
                   "%" #A ", %" #B ", p, 1, 1, 0, 0;\n}\n" \
                   : BALLAST_SUMS_##N \
                   : "l"(a), "l"(b), "r"(accumulate)); \
    } \
  };
// The same of fp8 (e4m3), 32 of k.
template <int N>
struct WgmmaFp8;
template <>
struct WgmmaFp8<128> {
  template <int kSize>
  __device__ static void Run(float (&d)[kSize], uint64_t a, uint64_t b, int accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" BALLAST_REGISTERS_128 "}, "
                 "%64, %65, p, 1, 1;\n}\n"
                 : BALLAST_SUMS_128
                 : "l"(a), "l"(b), "r"(accumulate));
  }
};
BALLAST_WGMMA(16, 8, 9, 10)
BALLAST_WGMMA(32, 16, 17, 18)
BALLAST_WGMMA(48, 24, 25, 26)
BALLAST_WGMMA(64, 32, 33, 34)
BALLAST_WGMMA(80, 40, 41, 42)
BALLAST_WGMMA(96, 48, 49, 50)
BALLAST_WGMMA(112, 56, 57, 58)
BALLAST_WGMMA(128, 64, 65, 66)
BALLAST_WGMMA(144, 72, 73, 74)
BALLAST_WGMMA(160, 80, 81, 82)
BALLAST_WGMMA(176, 88, 89, 90)
BALLAST_WGMMA(192, 96, 97, 98)
BALLAST_WGMMA(256, 128, 129, 130)
#undef BALLAST_WGMMA
#undef BALLAST_REGISTERS_16
#undef BALLAST_SUMS_16
#undef BALLAST_REGISTERS_32
#undef BALLAST_SUMS_32
#undef BALLAST_REGISTERS_48
#undef BALLAST_SUMS_48
#undef BALLAST_REGISTERS_64
#undef BALLAST_SUMS_64
#undef BALLAST_REGISTERS_80
#undef BALLAST_SUMS_80
#undef BALLAST_REGISTERS_96
#undef BALLAST_SUMS_96
#undef BALLAST_REGISTERS_112
#undef BALLAST_SUMS_112
#undef BALLAST_REGISTERS_128
#undef BALLAST_SUMS_128
#undef BALLAST_REGISTERS_144
#undef BALLAST_SUMS_144
#undef BALLAST_REGISTERS_160
#undef BALLAST_SUMS_160
#undef BALLAST_REGISTERS_176
#undef BALLAST_SUMS_176
#undef BALLAST_REGISTERS_192
#undef BALLAST_SUMS_192
#undef BALLAST_REGISTERS_208
#undef BALLAST_SUMS_208
#undef BALLAST_REGISTERS_224
#undef BALLAST_SUMS_224
#undef BALLAST_REGISTERS_240
#undef BALLAST_SUMS_240
#undef BALLAST_REGISTERS_256
#undef BALLAST_SUMS_256
// clang-format on

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_HOPPER_H_
