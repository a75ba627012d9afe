#include "kernels/cuda/checksum_kernel.h"
#include "kernels/cuda/launch.h"

namespace ballast::internal {
namespace {

// XXH3's long form (Collet, xxHash 0.8): eight sums of 64 bits take in stripes of 64 bytes; after a block of 16 stripes
// they are scrambled. What a block adds to the sums does not depend on them, so that the warps of a thread block add up
// blocks side by side, and only the scrambling is a chain.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStripe = 64;
// Blocks of XXH3 that a thread block adds up at once, two a warp: a chunk.
constexpr int kWarpBlocks = 2;
constexpr int kRound = kWarps * kWarpBlocks;
// Thread blocks of a multiprocessor; each has the next chunk on its way while it adds up one.
constexpr int kResident = 3;
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

__device__ uint64_t Mixed(uint64_t v) { return (v & 0xffffffffu) * (v >> 32); }

// What 16 bytes, lanes 2 pair and 2 pair + 1 of a stripe, add to those two sums.
__device__ void Add(uint64_t (&sums)[2], uint64_t a, uint64_t b, uint64_t key_a, uint64_t key_b) {
  sums[0] += b + Mixed(a ^ key_a);
  sums[1] += a + Mixed(b ^ key_b);
}

__device__ uint64_t Fold(uint64_t a, uint64_t b) { return a * b ^ __umul64hi(a, b); }

__device__ uint64_t Avalanche(uint64_t v) {
  v ^= v >> 37;
  v *= 0x165667919E3779F9;
  return v ^ v >> 32;
}

struct Shared {
  // Of two rounds in turn.
  uint64_t added[2][kRound][8];
  uint64_t sums[8];
  bool last;
};

// Pieces of `piece_bytes` bytes each, but for the last, which has what is left over, too: their hashes are independent.
struct Pieces {
  const void* data;
  size_t bytes, piece_bytes;
  int count;
  // Two words a piece.
  uint64_t* out;
  // Whether other blocks of this kernel have written the bytes.
  bool fresh;
};

// One round of one piece: what a lane has of its warp's blocks.
struct Words {
  uint4 v[kWarpBlocks][2];
};

__device__ size_t StripesOf(const Pieces& pieces, int piece) {
  return (piece + 1 < pieces.count ? pieces.piece_bytes : pieces.bytes - piece * pieces.piece_bytes) / kStripe;
}

// A lane has one quarter of a stripe, in stripes lane / 4 and 8 more of each block.
__device__ size_t StripeOf(size_t round, int block, int half) {
  return ((round * kWarps + threadIdx.x / 32) * kWarpBlocks + block) * 16 + threadIdx.x % 32 / 4 + half * 8;
}

__device__ void LoadRound(Words& words, const Pieces& pieces, int piece, size_t round) {
  const auto* data = reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(pieces.data) +
                                                    static_cast<size_t>(piece) * pieces.piece_bytes);
  const size_t stripes = StripesOf(pieces, piece);
#pragma unroll
  for (int i = 0; i < kWarpBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const size_t stripe = StripeOf(round, i, j);
      const uint4* p = data + stripe * 4 + threadIdx.x % 4;
      words.v[i][j] = stripe >= stripes ? uint4{} : pieces.fresh ? __ldcg(p) : __ldcs(p);
    }
  }
}

__device__ uint64_t StartOf(int sum) {
  constexpr uint64_t kStart[8] = {kShort3, kLong1, kLong2, kLong3, kLong4, kShort2, kLong5, kShort1};
  uint64_t start = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) start = sum == i ? kStart[i] : start;
  return start;
}

// XXH3-128 of pieces first, first + step, ..., by the whole block. A piece has a multiple of 64 and at least 256 bytes.
__device__ void HashPieces(Shared& shared, const Pieces& pieces, int first, int step) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int quarter = lane % 4;
  uint64_t keys[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) keys[i][j] = kSecret[lane / 4 + i * 8 + quarter * 2 + j];
  }
  uint64_t sum = 0;  // of thread < 8
  int piece = first, turn = 0;
  size_t round = 0;
  Words words;
  if (piece < pieces.count) LoadRound(words, pieces, piece, round);
  while (piece < pieces.count) {
    const size_t stripes = StripesOf(pieces, piece), blocks = (stripes + 15) / 16;
    const bool ends = (round + 1) * kRound >= blocks;
    const int next_piece = ends ? piece + step : piece;
    const size_t next_round = ends ? 0 : round + 1;
    Words next;
    if (next_piece < pieces.count) LoadRound(next, pieces, next_piece, next_round);
    auto& added = shared.added[turn++ % 2];
#pragma unroll
    for (int i = 0; i < kWarpBlocks; ++i) {
      uint64_t sums[2] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const size_t stripe = StripeOf(round, i, j);
        if (stripe >= stripes) continue;
        const uint4& v = words.v[i][j];
        const uint64_t x = uint64_t{v.y} << 32 | v.x, y = uint64_t{v.w} << 32 | v.z;
        // The last stripe has a place of its own in the secret.
        const bool last = stripe + 1 == stripes;
        Add(sums, x, y, last ? SecretAt(121 + quarter * 16) : keys[j][0],
            last ? SecretAt(121 + quarter * 16 + 8) : keys[j][1]);
      }
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        sums[0] += __shfl_xor_sync(kAll, sums[0], distance);
        sums[1] += __shfl_xor_sync(kAll, sums[1], distance);
      }
      if (lane < 4) {
        added[warp * kWarpBlocks + i][lane * 2] = sums[0];
        added[warp * kWarpBlocks + i][lane * 2 + 1] = sums[1];
      }
    }
    __syncthreads();
    // The first warp goes through the chain while the others add up the next round.
    if (warp == 0) {
      if (lane < 8) {
        const uint64_t key = kSecret[16 + lane];
        if (round == 0) sum = StartOf(lane);
        const int end = static_cast<int>(min(blocks - round * kRound, static_cast<size_t>(kRound)));
#pragma unroll 8
        for (int b = 0; b < end; ++b) {
          sum += added[b][lane];
          if (round * kRound + b + 1 < blocks) sum = (sum ^ sum >> 47 ^ key) * kShort1;
        }
        shared.sums[lane] = sum;
      }
      __syncwarp();
      if (ends && lane < 2) {
        const uint64_t bytes = stripes * kStripe;
        uint64_t v = lane == 0 ? bytes * kLong1 : ~(bytes * kLong2);
        const int secret = lane == 0 ? 11 : 192 - 64 - 11;
        for (int i = 0; i < 4; ++i) {
          v += Fold(shared.sums[2 * i] ^ SecretAt(secret + 16 * i),
                    shared.sums[2 * i + 1] ^ SecretAt(secret + 16 * i + 8));
        }
        pieces.out[size_t{2} * piece + lane] = Avalanche(v);
      }
      __syncwarp();
    }
    words = next;
    piece = next_piece;
    round = next_round;
  }
}

// Chunks; the last block to end goes on with their digests.
__global__ void __launch_bounds__(kThreads, kResident) ChecksumKernel(const ChecksumArgs args, int chunks) {
  __shared__ Shared shared;
  LetNextKernelStart();
  WaitForPreviousKernel();
  HashPieces(shared, {args.data, args.bytes, kChecksumChunk, chunks, args.digests, false}, blockIdx.x, gridDim.x);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.last = atomicAdd(args.done, 1) + 1 == gridDim.x;
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  if (threadIdx.x == 0) *args.done = 0;
  // The owner's zeros follow the digests.
  const size_t digests = (size_t{16} * chunks + kDigestAlign - 1) / kDigestAlign * kDigestAlign;
  HashPieces(shared, {args.digests, digests, digests, 1, args.out, true}, 0, 1);
}

}  // namespace

cudaError_t LaunchChecksum(const ChecksumArgs& args, int chunks, int multiprocessors, cudaStream_t stream) {
  const int blocks = chunks < kResident * multiprocessors ? chunks : kResident * multiprocessors;
  return Launch(ChecksumKernel, {dim3(blocks), kThreads}, stream, args, chunks);
}

}  // namespace ballast::internal
