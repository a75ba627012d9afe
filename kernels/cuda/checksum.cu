#include "kernels/cuda/checksum_kernel.h"
#include "kernels/cuda/launch.h"

namespace ballast::internal {
namespace {

// XXH3's long form (Collet, xxHash 0.8): eight sums of 64 bits take in stripes of 64 bytes; after a block of 16 stripes
// they are scrambled. What a block adds to the sums does not depend on them: eight warps of a thread block add up the
// blocks of a chunk side by side, from shared memory, to which further chunks are on their way; the scrambling, a
// chain, is left to four other warps, a chunk each in turn. What a chunk's digest adds to the sums of the digests' own
// checksum goes to memory at once, and only that chain is left to the last thread block.
constexpr int kAddWarps = 8, kChainWarps = 4;
constexpr int kAddThreads = kAddWarps * 32;
constexpr int kThreads = kAddThreads + kChainWarps * 32;
constexpr int kStripe = 64;
// Blocks of XXH3 of a warp, and of a part: what comes to shared memory at once, a chunk but for the last, which has
// what is left over, too.
constexpr int kWarpBlocks = 2;
constexpr int kPartBlocks = kAddWarps * kWarpBlocks;
static_assert(kPartBlocks * kDigestBlock == kChecksumChunk);
constexpr int kPartStripes = kPartBlocks * 16;
// Parts in shared memory at once, and thread blocks of a multiprocessor.
constexpr int kStages = 5;
constexpr int kResident = 2;
constexpr unsigned kAll = ~0u;

// The algorithm's primes.
constexpr uint32_t kShort1 = 0x9E3779B1, kShort2 = 0x85EBCA77, kShort3 = 0xC2B2AE3D;
constexpr uint64_t kLong1 = 0x9E3779B185EBCA87, kLong2 = 0xC2B2AE3D27D4EB4F, kLong3 = 0x165667B19E3779F9,
                   kLong4 = 0x85EBCA77C2B2AE63, kLong5 = 0x27D4EB2F165667C5;

// The algorithm's secret of 192 bytes, as words. Words at odd bytes are put together from two.
__constant__ uint64_t kSecret[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb,
    0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c, 0xa32e531b8b65d088,
    0x4ef90da297486471, 0xd8acdea946ef1938, 0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a,
    0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};

__device__ uint64_t SecretAt(int byte) {
  const int word = byte / 8, bits = byte % 8 * 8;
  return bits == 0 ? kSecret[word] : kSecret[word] >> bits | kSecret[word + 1] << (64 - bits);
}

// The secret's two words for quarter `quarter` of a stripe; the last stripe of all has a place of its own in it.
struct Keys {
  uint64_t a, b;
};
__device__ Keys KeysOf(int stripe_of_block, int quarter) {
  return {kSecret[stripe_of_block + quarter * 2], kSecret[stripe_of_block + quarter * 2 + 1]};
}
__device__ Keys KeysOfLast(int quarter) { return {SecretAt(121 + quarter * 16), SecretAt(121 + quarter * 16 + 8)}; }

__device__ uint64_t Mixed(uint64_t v) { return (v & 0xffffffffu) * (v >> 32); }

// What 16 bytes, a quarter of a stripe, add to sums 2 quarter and 2 quarter + 1.
__device__ void Add(uint64_t (&sums)[2], uint64_t a, uint64_t b, const Keys& keys) {
  sums[0] += b + Mixed(a ^ keys.a);
  sums[1] += a + Mixed(b ^ keys.b);
}

__device__ uint64_t Scrambled(uint64_t sum, uint64_t key) { return (sum ^ sum >> 47 ^ key) * kShort1; }

__device__ uint64_t Fold(uint64_t a, uint64_t b) { return a * b ^ __umul64hi(a, b); }

__device__ uint64_t Avalanche(uint64_t v) {
  v ^= v >> 37;
  v *= 0x165667919E3779F9;
  return v ^ v >> 32;
}

__device__ uint64_t StartOf(int sum) {
  constexpr uint64_t kStart[8] = {kShort3, kLong1, kLong2, kLong3, kLong4, kShort2, kLong5, kShort1};
  uint64_t start = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) start = sum == i ? kStart[i] : start;
  return start;
}

// The hash of `bytes` bytes whose sums lanes 0 to 7 of a warp hold: its low half in lanes 0 to 3, the high in 4 to 7.
__device__ uint64_t Finish(uint64_t sum, uint64_t bytes) {
  const int lane = threadIdx.x % 32, part = lane % 4;
  const bool low = lane < 4;
  const uint64_t a = __shfl_sync(kAll, sum, 2 * part), b = __shfl_sync(kAll, sum, 2 * part + 1);
  const int secret = (low ? 11 : 192 - 64 - 11) + 16 * part;
  uint64_t v = Fold(a ^ SecretAt(secret), b ^ SecretAt(secret + 8));
  v += __shfl_xor_sync(kAll, v, 1);
  v += __shfl_xor_sync(kAll, v, 2);
  return Avalanche(v + (low ? bytes * kLong1 : ~(bytes * kLong2)));
}

struct Shared {
  uint4 parts[kStages][kChecksumChunk / sizeof(uint4)];
  // What the blocks of a part add; for each chain warp.
  uint64_t added[kChainWarps][kPartBlocks][8];
};

// Named barriers between the warps that add and one chain warp: sums are there, and have been taken.
__device__ void Arrive(int id) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(kAddThreads + 32) : "memory"); }
__device__ void Wait(int id) { asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kAddThreads + 32) : "memory"); }
constexpr int kReady = 1, kTaken = kReady + kChainWarps;

// The parts of chunks first, first + stride ..., one after the other. The last chunk has up to two.
class Parts {
 public:
  __device__ Parts(const ChecksumArgs& args, int first, int stride) : args_(args), stride_(stride), chunk_(first) {
    Measure();
  }

  __device__ bool valid() const { return chunk_ < args_.chunks; }
  __device__ int chunk() const { return chunk_; }
  // Of the chunk, in all, and before this part.
  __device__ int stripes() const { return stripes_; }
  __device__ int first() const { return first_; }
  __device__ bool last_of_chunk() const { return first_ + kPartStripes >= stripes_; }
  __device__ const uint4* data() const {
    return static_cast<const uint4*>(args_.data) + static_cast<size_t>(chunk_) * (kChecksumChunk / 16) + first_ * 4;
  }
  __device__ void Next() {
    first_ += kPartStripes;
    if (first_ < stripes_) return;
    chunk_ += stride_;
    Measure();
  }

 private:
  __device__ void Measure() {
    const size_t begin = static_cast<size_t>(chunk_) * kChecksumChunk;
    const size_t bytes = chunk_ + 1 < args_.chunks ? kChecksumChunk : args_.bytes - begin;
    first_ = 0;
    stripes_ = valid() ? static_cast<int>(bytes / kStripe) : 0;
  }

  const ChecksumArgs& args_;
  const int stride_;
  int chunk_, first_ = 0, stripes_ = 0;
};

// The lane's 16 bytes of each of a warp's half blocks: a quarter of stripes lane / 4 and 8 more. It copies what it
// reads.
__device__ int LaneOffset(int half_block) {
  return threadIdx.x / 32 * (kWarpBlocks * 64) + half_block * 32 + threadIdx.x % 32;
}

__device__ void LoadPart(uint4* to, const Parts& parts) {
#pragma unroll
  for (int i = 0; i < kWarpBlocks * 2; ++i) {
    const int at = LaneOffset(i);
    if (parts.valid() && parts.first() + at / 4 < parts.stripes()) {
      asm volatile(
          "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to + at))),
          "l"(parts.data() + at)
          : "memory");
    }
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

__device__ void AddParts(Shared& shared, const ChecksumArgs& args) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
  const Keys keys[2] = {KeysOf(lane / 4, quarter), KeysOf(lane / 4 + 8, quarter)};
  Parts parts(args, blockIdx.x, gridDim.x), ahead(args, blockIdx.x, gridDim.x);
  for (int i = 0; i < kStages - 1; ++i, ahead.Next()) LoadPart(shared.parts[i], ahead);
  int stage = 0, chain = 0;
  unsigned used = 0;
  for (; parts.valid(); parts.Next()) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    uint64_t sums[kWarpBlocks][2] = {};
#pragma unroll
    for (int i = 0; i < kWarpBlocks * 2; ++i) {
      const int stripe = parts.first() + LaneOffset(i) / 4;
      if (stripe >= parts.stripes()) continue;
      const uint4 v = shared.parts[stage][LaneOffset(i)];
      const uint64_t a = uint64_t{v.y} << 32 | v.x, b = uint64_t{v.w} << 32 | v.z;
      Add(sums[i / 2], a, b, stripe + 1 == parts.stripes() ? KeysOfLast(quarter) : keys[i % 2]);
    }
    // To the stage that was read before this one.
    LoadPart(shared.parts[stage == 0 ? kStages - 1 : stage - 1], ahead);
    ahead.Next();
    stage = stage + 1 == kStages ? 0 : stage + 1;
#pragma unroll
    for (int i = 0; i < kWarpBlocks; ++i) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        sums[i][0] += __shfl_xor_sync(kAll, sums[i][0], distance);
        sums[i][1] += __shfl_xor_sync(kAll, sums[i][1], distance);
      }
    }
    if ((used >> chain & 1) != 0) Wait(kTaken + chain);
    used |= 1u << chain;
    if (lane < 4) {
#pragma unroll
      for (int i = 0; i < kWarpBlocks; ++i) {
        shared.added[chain][warp * kWarpBlocks + i][lane * 2] = sums[i][0];
        shared.added[chain][warp * kWarpBlocks + i][lane * 2 + 1] = sums[i][1];
      }
    }
    __syncwarp();
    Arrive(kReady + chain);
    if (parts.last_of_chunk()) chain = (chain + 1) % kChainWarps;
  }
}

// Adds what digest `index` of `slots` (16 bytes each, in stripes and blocks as any bytes) adds to its block's sums.
__device__ void AddDigest(const ChecksumArgs& args, int index, int slots, uint64_t low, uint64_t high) {
  const int quarter = index % 4, stripe = index / 4;
  uint64_t sums[2] = {};
  Add(sums, low, high, (stripe + 1) * 4 == slots ? KeysOfLast(quarter) : KeysOf(stripe % 16, quarter));
  auto* to = reinterpret_cast<unsigned long long*>(args.added) + stripe / 16 * 8 + quarter * 2;
  atomicAdd(to, sums[0]);
  atomicAdd(to + 1, sums[1]);
}

// The chunks of chain warp `chain`.
__device__ void ChainParts(const Shared& shared, const ChecksumArgs& args, int chain) {
  const int lane = threadIdx.x % 32, slots = DigestSlots(args.chunks);
  const uint64_t key = kSecret[16 + lane % 8];
  uint64_t sum = 0;
  for (Parts parts(args, blockIdx.x + chain * gridDim.x, kChainWarps * gridDim.x); parts.valid();) {
    const int chunk = parts.chunk(), stripes = parts.stripes(), first = parts.first();
    const bool last = parts.last_of_chunk();
    parts.Next();
    if (first == 0) sum = StartOf(lane);
    Wait(kReady + chain);
    uint64_t v[kPartBlocks];
#pragma unroll
    for (int b = 0; b < kPartBlocks; ++b) v[b] = shared.added[chain][b][lane % 8];
    // Where that is waited for.
    __syncwarp();
    if (parts.valid()) Arrive(kTaken + chain);
    const int left = stripes - first;
#pragma unroll
    for (int b = 0; b < kPartBlocks; ++b) {
      if (b * 16 >= left) break;
      sum += v[b];
      if ((b + 1) * 16 < left) sum = Scrambled(sum, key);
    }
    if (!last) continue;
    const uint64_t digest = Finish(sum, uint64_t{kStripe} * stripes);
    const uint64_t high = __shfl_sync(kAll, digest, 4);
    if (lane == 0) AddDigest(args, chunk, slots, digest, high);
    // Zeros follow the digests.
    if (chunk + 1 == args.chunks && args.chunks + lane < slots) AddDigest(args, args.chunks + lane, slots, 0, 0);
  }
}

// The digests' own checksum, by one warp: their blocks' sums are there.
__device__ void HashDigests(const ChecksumArgs& args) {
  constexpr int kAtOnce = 16;
  const int lane = threadIdx.x % 32, blocks = DigestBlocks(args.chunks);
  const uint64_t key = kSecret[16 + lane % 8];
  uint64_t sum = StartOf(lane);
  for (int first = 0; first < blocks; first += kAtOnce) {
    uint64_t v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      v[i] = lane < 8 && first + i < blocks ? __ldcg(args.added + (first + i) * 8 + lane) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= blocks) break;
      sum += v[i];
      if (first + i + 1 < blocks) sum = Scrambled(sum, key);
      // For the next call.
      if (lane < 8) args.added[(first + i) * 8 + lane] = 0;
    }
  }
  const uint64_t whole = Finish(sum, uint64_t{16} * DigestSlots(args.chunks));
  if (lane == 0) *args.done = 0;
  if (lane == 0 || lane == 4) args.out[lane / 4] = whole;
}

__global__ void __launch_bounds__(kThreads, kResident) ChecksumKernel(const __grid_constant__ ChecksumArgs args) {
  extern __shared__ __align__(16) uint8_t storage[];
  auto& shared = *reinterpret_cast<Shared*>(storage);
  LetNextKernelStart();
  WaitForPreviousKernel();
  if (threadIdx.x < kAddThreads) {
    AddParts(shared, args);
    return;
  }
  ChainParts(shared, args, (threadIdx.x - kAddThreads) / 32);
  __threadfence();
  __syncwarp();
  uint32_t done = 0;
  if (threadIdx.x % 32 == 0) done = atomicAdd(args.done, 1) + 1;
  if (__shfl_sync(kAll, done, 0) != gridDim.x * kChainWarps) return;
  __threadfence();
  HashDigests(args);
}

}  // namespace

cudaError_t LaunchChecksum(const ChecksumArgs& args, int multiprocessors, cudaStream_t stream) {
  const cudaError_t allowed = AllowSharedMemory(ChecksumKernel, sizeof(Shared));
  if (allowed != cudaSuccess) return allowed;
  const int blocks = min(args.chunks, kResident * multiprocessors);
  return Launch(ChecksumKernel, {dim3(blocks), kThreads, sizeof(Shared)}, stream, args);
}

}  // namespace ballast::internal
