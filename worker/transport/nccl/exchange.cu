#include <cuda_bf16.h>

#include "worker/transport/nccl/exchange_kernel.h"

namespace ballast::internal {
namespace {

constexpr int kThreads = kExchangeThreads;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerProcessor = 2;
constexpr int kColumns = 8;  // of a thread: 16 bytes
constexpr unsigned kAll = ~0u;

__device__ uint32_t LoadAcquireSystem(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ void AddReleaseSystem(uint32_t* p, uint32_t v) {
  asm volatile("red.release.sys.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ uint32_t LoadVolatile(const uint32_t* p) { return *reinterpret_cast<const volatile uint32_t*>(p); }
__device__ uint64_t Nanoseconds() {
  uint64_t v;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v)::"memory");
  return v;
}

// Until `arrival` has reached `target` (both wrap around), the time is up or the host has given up. The host's word is
// far away: were every block to look at it, they would wait for each other's looks (130 us, measured) while what they
// wait for is there. The first block looks, seldom, and the others see by `failed` what it found; all wait for the
// same.
__device__ bool AwaitArrivals(const uint32_t* arrival, uint32_t target, const ExchangeKernelArgs& args) {
  const auto here = [&] { return static_cast<int32_t>(LoadAcquireSystem(arrival) - target) >= 0; };
  if (here()) return true;
  const uint64_t start = Nanoseconds();
  uint64_t look = 50'000;
  for (;;) {
    for (int i = 0; i < 16; ++i) {
      if (here()) return true;
    }
    const uint64_t waited = Nanoseconds() - start;
    if (waited > args.wait_nanoseconds) return false;
    if (waited > look) {
      if (blockIdx.x == 0 ? LoadVolatile(&args.control->abort) != 0 : LoadVolatile(args.failed) != 0) return false;
      look = waited + 50'000;
    }
  }
}

// All threads of a block: tells every other rank that this block's writes for it are there.
__device__ void Arrive(int wait, const ExchangeKernelArgs& args) {
  if (args.arrivals[wait] == nullptr) return;
  __syncthreads();
  const int r = threadIdx.x;
  // A release after the barrier covers what every thread of the block has written.
  if (r < args.ranks && r != args.rank) AddReleaseSystem(args.arrivals_to[wait][r], 1);
}

// All threads of a block: waits for the blocks of every other rank, in the layer that `step` counts to.
__device__ bool AwaitAll(int wait, uint32_t step, const ExchangeKernelArgs& args) {
  if (args.arrivals[wait] == nullptr) return true;
  const int r = threadIdx.x;
  bool late = false;
  if (r < args.ranks && r != args.rank) {
    late = !AwaitArrivals(args.arrivals[wait] + r, step * args.blocks, args);
    if (late) {
      *reinterpret_cast<volatile uint32_t*>(&args.control->late[r]) = 1 + wait;
      *reinterpret_cast<volatile uint32_t*>(args.failed) = 1;
      __threadfence_system();
    }
  }
  return __syncthreads_or(late) == 0;
}

__device__ uint4* RowVectors(void* rows, size_t row, int hidden) {
  return reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(rows) + row * hidden);
}
__device__ const uint4* RowVectors(const void* rows, size_t row, int hidden) {
  return reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(rows) + row * hidden);
}

// A block takes every blocks-th token; each of its warps works out for itself where the token goes.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    DispatchKernel(const __grid_constant__ ExchangeKernelArgs args) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int vectors = args.hidden_size / kColumns;
  const bool failed = LoadVolatile(args.failed) != 0;
  const int tokens = min(*args.num_tokens, args.capacity);
  for (int t = blockIdx.x; t < args.capacity; t += gridDim.x) {
    // Loads that wait for no other one: choices of tokens that the step does not have are read for nothing.
    int to = -1, group = 0, replica = -1;
    float weight = 0;
    if (lane < args.top_k) {
      const int choice = t * args.top_k + lane;
      replica = args.replicas[choice];
      weight = args.choice_weights[choice];
    }
    if (failed) return;
    if (t < tokens && replica >= 0) {
      to = replica / args.groups_per_rank;
      group = replica - to * args.groups_per_rank;
    }
    const uint32_t mask = __reduce_or_sync(kAll, to >= 0 ? 1u << to : 0u);
    if (mask != 0) {
      const uint4* const from = RowVectors(args.x, t, args.hidden_size);
      for (int c = threadIdx.x; c < vectors; c += 2 * kThreads) {
        const bool two = c + kThreads < vectors;
        const uint4 first = from[c];
        const uint4 second = two ? from[c + kThreads] : first;
        // The rank after this one first, so that not all write to the same one.
        for (int i = 1; i <= args.ranks; ++i) {
          const int r = args.rank + i < args.ranks ? args.rank + i : args.rank + i - args.ranks;
          if ((mask >> r & 1) == 0 || args.rows_to[r] == nullptr) continue;
          uint4* const row = RowVectors(args.rows_to[r], t, args.hidden_size);
          row[c] = first;
          if (two) row[c + kThreads] = second;
        }
      }
    }
    for (int r = warp; r < args.ranks; r += kWarps) {
      if (lane < args.top_k) {
        args.groups_to[r][t * args.top_k + lane] = to == r ? group : args.groups_per_rank;
        args.weights_to[r][t * args.top_k + lane] = weight;
      }
    }
    if (threadIdx.x == 0) args.destinations[t] = mask;
  }
  // A rank that has given up tells nobody that its rows are there.
  if (failed) return;
  if (blockIdx.x == gridDim.x - 1) {
    for (int r = 0; r < args.ranks; ++r) {
      if (threadIdx.x == 0) *args.tokens_to[r] = tokens;
      for (int i = threadIdx.x; i < args.note_words; i += kThreads) args.notes_to[r][i] = args.notes[i];
    }
  }
  Arrive(kRowsWait, args);
  if (blockIdx.x == 0) {
    // This block alone waits, after its own part: no rank's blocks need to run at the same time.
    const uint32_t step = *args.step + 1;
    AwaitAll(kRowsWait, step, args);
    if (threadIdx.x == 0) *args.step = step;
  }
}

// The choices of one received token that have a row here, of one warp.
struct Terms {
  int rows[32];
  float weights[32];
};

// A warp's terms for token `slot` of the region, in the order of choices; returns their number.
__device__ int CollectTerms(const ExchangeKernelArgs& args, size_t slot, Terms& terms) {
  const int lane = threadIdx.x % 32;
  int row = -1;
  float weight = 0;
  if (lane < args.top_k) {
    row = args.row_of[slot * args.top_k + lane];
    weight = args.weights[slot * args.top_k + lane];
  }
  const unsigned valid = __ballot_sync(kAll, row >= 0);
  __syncwarp();
  if (row >= 0) {
    const int at = __popc(valid & ((1u << lane) - 1));
    terms.rows[at] = row;
    terms.weights[at] = weight;
  }
  __syncwarp();
  return __popc(valid);
}

__device__ uint4 Round(const float (&sums)[kColumns]) {
  uint4 out;
  auto* const packed = reinterpret_cast<__nv_bfloat162*>(&out);
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) packed[i] = __floats2bfloat162_rn(sums[2 * i], sums[2 * i + 1]);
  return out;
}

// The weighted sum of the terms' rows in one thread's columns.
__device__ uint4 SumTerms(const ExchangeKernelArgs& args, const Terms& terms, int count, int column) {
  constexpr int kInFlight = 8;
  float sums[kColumns] = {};
  for (int begin = 0; begin < count; begin += kInFlight) {
    uint4 values[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (begin + i < count) {
        values[i] = RowVectors(args.outputs, terms.rows[begin + i], args.hidden_size)[column];
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (begin + i < count) {
        const float weight = terms.weights[begin + i];
        const auto* const pairs = reinterpret_cast<const __nv_bfloat162*>(&values[i]);
#pragma unroll
        for (int j = 0; j < kColumns / 2; ++j) {
          const float2 f = __bfloat1622float2(pairs[j]);
          sums[2 * j] = fmaf(weight, f.x, sums[2 * j]);
          sums[2 * j + 1] = fmaf(weight, f.y, sums[2 * j + 1]);
        }
      }
    }
  }
  return Round(sums);
}

// This rank's sum for token t of rank r, to where r wants it.
__device__ void SumToken(const ExchangeKernelArgs& args, int r, int t, Terms& terms) {
  // Pairs of tokens that the step does not have, have no row.
  const int count = CollectTerms(args, static_cast<size_t>(r) * args.capacity + t, terms);
  if (count == 0) return;
  uint4* const to = RowVectors(args.partials_to[r], t, args.hidden_size);
  for (int c = threadIdx.x; c < args.hidden_size / kColumns; c += kThreads) to[c] = SumTerms(args, terms, count, c);
}

// The ranks' sums for this rank's tokens, added up. `first`: where the block's first token went.
__device__ void AddPartials(const ExchangeKernelArgs& args, int tokens, uint32_t first) {
  for (int t = blockIdx.x; t < tokens; t += gridDim.x) {
    const uint32_t mask = t == static_cast<int>(blockIdx.x) ? first : args.destinations[t];
    uint4* const to = RowVectors(args.out, t, args.hidden_size);
    for (int c = threadIdx.x; c < args.hidden_size / kColumns; c += kThreads) {
      float sums[kColumns] = {};
      for (uint32_t left = mask; left != 0; left &= left - 1) {
        const int r = __ffs(left) - 1;
        const uint4 v = RowVectors(args.partials, static_cast<size_t>(r) * args.capacity + t, args.hidden_size)[c];
        const auto* const pairs = reinterpret_cast<const __nv_bfloat162*>(&v);
#pragma unroll
        for (int i = 0; i < kColumns / 2; ++i) {
          const float2 f = __bfloat1622float2(pairs[i]);
          sums[2 * i] += f.x;
          sums[2 * i + 1] += f.y;
        }
      }
      to[c] = Round(sums);
    }
  }
}

// Sums for other ranks first; this rank's own ones in between, one behind, so that the links and this device's memory
// are busy at the same time and yet nobody waits for what only this rank needs.
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    CombineKernel(const __grid_constant__ ExchangeKernelArgs args, bool push, bool pull) {
  __shared__ Terms all_terms[kWarps];
  Terms& terms = all_terms[threadIdx.x / 32];
  if (LoadVolatile(args.failed) != 0) return;
  const uint32_t step = *args.step;
  const int tokens = args.tokens[args.rank];
  const uint32_t first = static_cast<int>(blockIdx.x) < args.capacity ? args.destinations[blockIdx.x] : 0;
  if (push) {
    int own = blockIdx.x;
    for (int i = blockIdx.x; i < (args.ranks - 1) * args.capacity; i += gridDim.x) {
      const int next = args.rank + 1 + i / args.capacity, t = i % args.capacity;
      const int r = next < args.ranks ? next : next - args.ranks;
      if (i == static_cast<int>(blockIdx.x)) {
        // Without asking first whether there is such a token: it has no rows then.
        SumToken(args, r, t, terms);
        continue;
      }
      if (t < args.tokens[r]) SumToken(args, r, t, terms);
      if (own < tokens) SumToken(args, args.rank, own, terms);
      own += gridDim.x;
    }
    Arrive(kPartialsWait, args);
    for (; own < tokens; own += gridDim.x) SumToken(args, args.rank, own, terms);
  }
  if (pull) {
    // A block adds up the sums of its own tokens that it has made itself.
    if (!AwaitAll(kPartialsWait, step, args)) return;
    __syncthreads();
    AddPartials(args, tokens, first);
  }
}

}  // namespace

cudaError_t MostBlocks(int* blocks) {
  int device, processors, each;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, CombineKernel, kThreads, 0);
  if (error == cudaSuccess) *blocks = processors * each;
  return error;
}

// Neither is launched ahead of the kernel before it (programmatic launch): measured, that costs 2 us a layer.
cudaError_t LaunchDispatch(const ExchangeKernelArgs& args, cudaStream_t stream) {
  DispatchKernel<<<args.blocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchCombineSums(const ExchangeKernelArgs& args, bool push, bool pull, cudaStream_t stream) {
  // Blocks of one rank wait for all blocks of the others: all have to run at once.
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(args.blocks);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, CombineKernel, args, push, pull);
}

}  // namespace ballast::internal
