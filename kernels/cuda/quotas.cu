#include "kernels/cuda/launch.h"
#include "kernels/cuda/quota_limits.h"
#include "kernels/cuda/quotas_kernel.h"

namespace ballast::internal {
namespace {

// One block. Its first warp finds the flow to each replica, a rank a lane, while the others write the quotas of experts
// with one replica; then each warp splits the flows of its experts, a source a lane.
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = ~0u;

struct Shared {
  const int32_t* table;
  int64_t* rank_load;  // [32]
  int32_t* load;       // [experts]
  int32_t* flow;       // [replicas]
  int32_t* order;      // [replicas], scratch
};

// floor(a / b) for 0 <= a < 2^53: division towards -infinity does not pass the integer below.
__device__ int64_t FloorDivide(int64_t a, int64_t b) {
  return static_cast<int64_t>(__ddiv_rd(static_cast<double>(a), static_cast<double>(b)));
}

__device__ int64_t CeilDivide(int64_t a, int64_t b) { return FloorDivide(a + b - 1, b); }

__device__ int64_t WarpSum(int64_t v) {
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(kAll, v, distance);
  return v;
}

// Raises the expert's ranks, those with the lowest load over speed first, to one level. `again`: its flow is taken back
// first.
__device__ void FillLevel(const QuotaKernelArgs& args, const Shared& shared, int expert, bool again) {
  const int32_t* begin = shared.table + args.at.begin;
  const int32_t* rank = shared.table + args.at.rank;
  const int32_t* speed = shared.table + args.at.speed;
  const int first = begin[expert], count = begin[expert + 1] - first;
  const int64_t load = shared.load[expert];
  int32_t* flow = shared.flow + first;
  if (again) {
    for (int i = 0; i < count; ++i) shared.rank_load[rank[first + i]] -= flow[i];
  }
  if (count == 2) {
    // The general way, below, in registers.
    const int rank_a = rank[first], rank_b = rank[first + 1];
    const int64_t load_a = shared.rank_load[rank_a], load_b = shared.rank_load[rank_b];
    const int64_t speed_a = speed[rank_a], speed_b = speed[rank_b];
    const bool a_first = load_a * speed_b <= load_b * speed_a;
    const int64_t low = a_first ? load_a : load_b, high = a_first ? load_b : load_a;
    const int64_t low_speed = a_first ? speed_a : speed_b, high_speed = a_first ? speed_b : speed_a;
    int64_t part = load;
    if (high * low_speed < (load + low) * high_speed) {
      const int64_t level = args.unit == 1 ? (load + low + high) / 2
                                           : FloorDivide((load + low + high) * low_speed, low_speed + high_speed);
      part = level - low < 0 ? 0 : level - low > load ? load : level - low;
    }
    flow[0] = static_cast<int32_t>(a_first ? part : load - part);
    flow[1] = static_cast<int32_t>(a_first ? load - part : part);
    shared.rank_load[rank_a] += flow[0];
    shared.rank_load[rank_b] += flow[1];
    return;
  }
  int32_t* order = shared.order + first;
  for (int i = 0; i < count; ++i) {
    const int r = rank[first + i];
    int at = i;
    for (; at > 0; --at) {
      const int before = rank[first + order[at - 1]];
      if (shared.rank_load[before] * speed[r] <= shared.rank_load[r] * speed[before]) break;
      order[at] = order[at - 1];
    }
    order[at] = i;
  }
  int64_t sum = load, speeds = 0;
  int used = 0;
  for (; used < count; ++used) {
    const int r = rank[first + order[used]];
    if (used > 0 && shared.rank_load[r] * speeds >= sum * speed[r]) break;
    sum += shared.rank_load[r];
    speeds += speed[r];
  }
  int64_t left = load;
  for (int i = 0; i < count; ++i) {
    const int r = rank[first + order[i]];
    int64_t part = 0;
    if (i + 1 == used) {
      part = left;
    } else if (i < used) {
      const int64_t level = FloorDivide(sum * speed[r], speeds);
      sum -= level;
      speeds -= speed[r];
      const int64_t room = level - shared.rank_load[r];
      part = room < 0 ? 0 : room > left ? left : room;
    }
    flow[order[i]] = static_cast<int32_t>(part);
    left -= part;
    shared.rank_load[r] += part;
  }
}

// The replicas of shared experts on the lane's rank. Most ranks have few: those are kept in registers.
class Replicas {
 public:
  __device__ Replicas(const QuotaKernelArgs& args, const Shared& shared, int lane)
      : flow_(shared.flow),
        replica_(shared.table + args.at.rank_replica),
        ranks_(shared.table + args.at.replica_ranks) {
    const int32_t* begin = shared.table + args.at.rank_replicas;
    if (lane < args.ranks) {
      next_ = begin[lane];
      end_ = begin[lane + 1];
    }
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const bool valid = next_ + i < end_;
      kept_[i] = valid ? replica_[next_ + i] : 0;
      kept_ranks_[i] = valid ? ranks_[next_ + i] : 0;
    }
    next_ += kKept;
  }

  // The ranks that tokens can move to at once.
  __device__ unsigned Neighbours() const {
    unsigned mask = 0;
#pragma unroll
    for (int i = 0; i < kKept; ++i) mask |= flow_[kept_[i]] > 0 ? kept_ranks_[i] : 0;
    for (int i = next_; i < end_; ++i) mask |= flow_[replica_[i]] > 0 ? ranks_[i] : 0;
    return mask;
  }

 private:
  static constexpr int kKept = 4;
  const int32_t *flow_, *replica_, *ranks_;
  int next_ = 0, end_ = 0;
  int kept_[kKept];
  unsigned kept_ranks_[kKept];
};

// The first edge from rank `from` to rank `to` that has flow to give. There is one.
__device__ int FindEdge(const QuotaKernelArgs& args, const Shared& shared, int from, int to) {
  constexpr int kAtOnce = 4;
  const int32_t* edges = shared.table + args.at.edges;
  const int end = shared.table[args.at.rank_edges + from + 1];
  for (int base = shared.table[args.at.rank_edges + from];; base += kAtOnce) {
    int edge[kAtOnce];
    bool gives[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) edge[i] = edges[min(base + i, end - 1)];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) gives[i] = EdgeOther(edge[i]) == to && shared.flow[EdgeGive(edge[i])] > 0;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (gives[i]) return edge[i];
    }
  }
}

// The first rank of `ranks`, one of which can be reached from d at once, in the order of d's edges.
__device__ int FirstReached(const QuotaKernelArgs& args, const Shared& shared, int d, unsigned ranks, int lane) {
  if ((ranks & (ranks - 1)) == 0) return __ffs(ranks) - 1;
  const int32_t* begin = shared.table + args.at.rank_edges;
  for (int base = begin[d];; base += 32) {
    int edge = 0;
    bool reaches = false;
    if (base + lane < begin[d + 1]) {
      edge = shared.table[args.at.edges + base + lane];
      reaches = (ranks >> EdgeOther(edge) & 1) != 0 && shared.flow[EdgeGive(edge)] > 0;
    }
    const unsigned found = __ballot_sync(kAll, reaches);
    if (found != 0) return EdgeOther(__shfl_sync(kAll, edge, __ffs(found) - 1));
  }
}

// Ranks that are all alike have a unit of 1.
__device__ int64_t CapacityOf(const QuotaKernelArgs& args, int64_t z, int64_t speed) {
  return args.unit == 1 ? z * speed : z * speed / args.unit;
}

// The first stage, by the first warp. Returns the bound.
__device__ int64_t Solve(const QuotaKernelArgs& args, const Shared& shared, int lane) {
  const int32_t* table = shared.table;
  int64_t load = 0, total = 0;
  const bool is_rank = lane < args.ranks;
  const int64_t speed = is_rank ? table[args.at.speed + lane] : 1;
  if (is_rank) {
    const int end = table[args.at.rank_singles + lane + 1];
#pragma unroll 8
    for (int i = table[args.at.rank_singles + lane]; i < end; ++i) {
      load += shared.load[table[args.at.rank_single_expert + i]];
    }
  }
  shared.rank_load[lane] = load;
  for (int i = lane; i < args.num_shared; i += 32) total += shared.load[table[args.at.shared + i]];
  total = WarpSum(total + load);
  int64_t z = !is_rank ? 0 : args.unit == 1 ? load : CeilDivide(load * args.unit, speed);
  for (int distance = 16; distance > 0; distance /= 2) {
    const int64_t other = __shfl_xor_sync(kAll, z, distance);
    z = other > z ? other : z;
  }
  const int64_t mean = CeilDivide(total * args.unit, args.unit == 1 ? args.ranks : WarpSum(is_rank ? speed : 0));
  z = mean > z ? mean : z;
  __syncwarp();
  for (const bool again : {false, true}) {
    for (int level = 0; level < args.num_levels; ++level) {
      const int end = table[args.at.levels + level + 1];
      for (int i = table[args.at.levels + level] + lane; i < end; i += 32) {
        FillLevel(args, shared, table[args.at.shared + i], again);
      }
      __syncwarp();
    }
  }
  load = shared.rank_load[lane];
  const Replicas replicas(args, shared, lane);
  unsigned neighbours = replicas.Neighbours();
  int64_t capacity = CapacityOf(args, z, is_rank ? speed : 0);
  // Newton's method on z. The overloaded ranks are unloaded in ascending order, along a shortest path to a rank with
  // room each time; `queue` holds the ranks reached so far, one a lane.
  for (;;) {
    const unsigned over = __ballot_sync(kAll, load > capacity);
    if (over == 0) return z;
    const int start = __ffs(over) - 1;
    const unsigned has_room = __ballot_sync(kAll, load < capacity);
    unsigned reached = 1u << start;
    int queue = start, parent = start, tail = 1, room = -1;
    for (int head = 0; head < tail; ++head) {
      const int d = __shfl_sync(kAll, queue, head);
      unsigned next = __shfl_sync(kAll, neighbours, d) & ~reached;
      if (next == 0) continue;
      if ((next >> lane & 1) != 0) parent = d;
      if ((next & has_room) != 0) {
        room = FirstReached(args, shared, d, next & has_room, lane);
        break;
      }
      reached |= next;
      while (next != 0) {
        const int other = FirstReached(args, shared, d, next, lane);
        if (lane == tail) queue = other;
        ++tail;
        next &= ~(1u << other);
      }
    }
    if (room < 0) {
      // The load of the ranks reached can go nowhere else: their mean is a lower bound, above z. (Capacities are
      // rounded down, so the mean alone may not move z.)
      const bool in = (reached >> lane & 1) != 0;
      const int64_t held = CeilDivide(WarpSum(in ? load : 0) * args.unit, WarpSum(in ? speed : 0));
      z = held > z + 1 ? held : z + 1;
      capacity = CapacityOf(args, z, is_rank ? speed : 0);
      continue;
    }
    unsigned path = 0;
    for (int d = room; d != start; d = __shfl_sync(kAll, parent, d)) path |= 1u << d;
    const bool on_path = (path >> lane & 1) != 0;
    unsigned amount = kAll;
    int edge = 0;
    if (on_path) {
      edge = FindEdge(args, shared, parent, lane);
      amount = shared.flow[EdgeGive(edge)];
    }
    const int64_t own = lane == start ? load - capacity : lane == room ? capacity - load : kAll;
    amount = __reduce_min_sync(kAll, own < amount ? static_cast<unsigned>(own) : amount);
    if (on_path) {
      shared.flow[EdgeGive(edge)] -= amount;
      shared.flow[EdgeTake(edge)] += amount;
    }
    if (lane == start) load -= amount;
    if (lane == room) load += amount;
    __syncwarp();
    neighbours = replicas.Neighbours();
  }
}

// floor(count * flow / total) for count and flow at most total, total below 2^31.
__device__ int Part(int64_t count, int64_t flow, int64_t total) {
  if (total == 0) return 0;
  return static_cast<int>(total < (int64_t{1} << 26) ? FloorDivide(count * flow, total) : count * flow / total);
}

// The second stage, for one expert with two replicas or more: parts rounded down leave each source a few tokens and
// each replica a few places; the sources are served one after the other from the replicas with the most places left
// (ties: the source's own, then the first).
__device__ void Split(const QuotaKernelArgs& args, const Shared& shared, int expert, int lane) {
  const int32_t* begin = shared.table + args.at.begin;
  const int first = begin[expert], copies = begin[expert + 1] - first;
  const bool is_source = lane < args.sources;
  const int count = is_source ? args.counts[static_cast<size_t>(lane) * args.experts + expert] : 0;
  const int total = shared.load[expert];
  const int own_rank = lane < copies ? shared.table[args.at.rank + first + lane] : -1;
  int32_t* const out = args.quotas + static_cast<size_t>(lane) * args.replicas + first;
  if (copies == 2) {
    // One division: the second part is what is left, and where there is a rest there is one token to place.
    const int64_t flow = shared.flow[first];
    const int part = Part(count, flow, total);
    const bool has_rest = int64_t{part} * total != count * flow;
    unsigned sources = __ballot_sync(kAll, has_rest);
    int left_a = static_cast<int>(flow) - __reduce_add_sync(kAll, part), left_b = __popc(sources) - left_a;
    const int rank_b = __shfl_sync(kAll, own_rank, 1);
    unsigned to_b = 0;
    for (; sources != 0; sources &= sources - 1) {
      const int s = __ffs(sources) - 1;
      const bool b = left_b > left_a || (left_b == left_a && rank_b == s);
      left_a -= !b;
      left_b -= b;
      to_b |= static_cast<unsigned>(b) << s;
    }
    if (is_source) {
      const int a = part + (has_rest && (to_b >> lane & 1) == 0);
      out[0] = a;
      out[1] = count - a;
    }
    return;
  }
  // Lane s: what is left of source s; lane r: the places left of replica r, and the sources that get one, by bits.
  int rest = count, left = 0;
  unsigned served = 0;
  for (int r = 0; r < copies; ++r) {
    const int flow = shared.flow[first + r];
    const int part = Part(count, flow, total);
    rest -= part;
    const int sum = __reduce_add_sync(kAll, part);
    if (lane == r) left = flow - sum;
  }
  for (unsigned sources = __ballot_sync(kAll, rest > 0); sources != 0; sources &= sources - 1) {
    const int s = __ffs(sources) - 1;
    const int wanted = __shfl_sync(kAll, rest, s);
    const int key = lane < copies ? left * 64 + (own_rank == s ? 32 : 0) + 31 - lane : -(1 << 30);
    int better = 0;
#pragma unroll 4
    for (int r = 0; r < copies; ++r) better += __shfl_sync(kAll, key, r) > key;
    if (lane < copies && better < wanted) {
      --left;
      served |= 1u << s;
    }
  }
  for (int r = 0; r < copies; ++r) {
    const unsigned sources_served = __shfl_sync(kAll, served, r);
    if (is_source) out[r] = Part(count, shared.flow[first + r], total) + static_cast<int>(sources_served >> lane & 1);
  }
}

__global__ void __launch_bounds__(kThreads) QuotasKernel(const __grid_constant__ QuotaKernelArgs args) {
  extern __shared__ __align__(8) uint8_t storage[];
  auto* rank_load = reinterpret_cast<int64_t*>(storage);
  auto* table = reinterpret_cast<int32_t*>(rank_load + 32);
  int32_t* const load = table + args.at.words;
  int32_t* const flow = load + args.experts;
  const Shared shared = {table, rank_load, load, flow, flow + args.replicas};
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  for (int i = thread; i < args.at.words; i += kThreads) table[i] = args.table[i];
  for (int i = thread; i < args.experts; i += kThreads) load[i] = 0;
  LetNextKernelStart();
  WaitForPreviousKernel();
  __syncthreads();
  // Several threads an expert.
  const int slices = kThreads / args.experts;
  if (thread < slices * args.experts) {
    const int expert = thread % args.experts;
    int sum = 0;
#pragma unroll 8
    for (int s = thread / args.experts; s < args.sources; s += slices) {
      sum += args.counts[static_cast<size_t>(s) * args.experts + expert];
    }
    atomicAdd(&load[expert], sum);
  }
  __syncthreads();
  if (warp == 0) {
    const int64_t bound = Solve(args, shared, lane);
    if (lane == 0 && args.bound != nullptr) *args.bound = bound;
  } else {
    for (int s = warp - 1; s < args.sources; s += kWarps - 1) {
      for (int i = lane; i < args.num_singles; i += 32) {
        args.quotas[static_cast<size_t>(s) * args.replicas + table[args.at.singles + i]] =
            args.counts[static_cast<size_t>(s) * args.experts + table[args.at.single_expert + i]];
      }
    }
  }
  __syncthreads();
  for (int i = warp; i < args.num_shared; i += kWarps) Split(args, shared, table[args.at.shared + i], lane);
}

}  // namespace

cudaError_t LaunchQuotas(const QuotaKernelArgs& args, cudaStream_t stream) {
  const size_t shared = QuotaSharedBytes(args.at.words, args.experts, args.replicas);
  const cudaError_t allowed = AllowSharedMemory(QuotasKernel, shared);
  if (allowed != cudaSuccess) return allowed;
  return Launch(QuotasKernel, {dim3(1), kThreads, shared}, stream, args);
}

}  // namespace ballast::internal
