#include <cuda_bf16.h>

#include "kernels/cuda/columns.h"
#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/launch.h"

namespace ballast::internal {
namespace {

// A step of few rows a group in two kernels: gate and up with the activation, in tiles of rows of one group; then down
// for all groups with the weighted sum over a token's choices, a block 16 columns of the output. Nothing is shared
// between blocks, so that neither waits for another.
constexpr int kActivateWarps = 8;
constexpr int kActivateBlocks = 2;  // of a multiprocessor
constexpr int kRows = 16;
constexpr int kMostTiles = 2;
constexpr unsigned kAll = ~0u;

__host__ __device__ int DivideUp(int a, int b) { return (a + b - 1) / b; }

// The groups that have rows, in shared memory.
struct Groups {
  int* firsts;
  int* counts;
  int* slots;
};
__device__ Groups GroupsAt(int* memory, const FewArgs& args) {
  return {memory, memory + args.max_active, memory + 2 * args.max_active};
}
constexpr size_t GroupsBytes(int max_active) { return sizeof(int) * 3 * max_active; }

// Lists them, by one warp; returns how many there are. Loads of kAtOnce are on their way at once.
__device__ int ListGroups(const FewArgs& args, const Groups& groups) {
  constexpr int kAtOnce = 8;
  const int lane = threadIdx.x % 32;
  int active = 0;
  for (int base = 0; base < args.num_groups; base += 32 * kAtOnce) {
    int first[kAtOnce], last[kAtOnce], slot[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int g = base + i * 32 + lane;
      const bool inside = g < args.num_groups;
      first[i] = inside ? args.begin[g] : 0;
      last[i] = inside ? args.begin[g + 1] : 0;
      slot[i] = inside ? args.slots[g] : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool has_rows = last[i] > first[i];
      const unsigned with_rows = __ballot_sync(kAll, has_rows);
      if (has_rows) {
        const int at = active + __popc(with_rows & ((1u << lane) - 1));
        groups.firsts[at] = first[i];
        groups.counts[at] = last[i] - first[i];
        groups.slots[at] = slot[i];
      }
      active += __popc(with_rows);
    }
  }
  return active;
}

// The lane's two rows of a tile; nullptr: zeros.
struct Rows {
  const uint8_t* row;
  const uint8_t* row_8;
};

// 8 gates and their ups, or 16 rows without gates.
__device__ int ActivationsOfTile(const FewArgs& args) { return args.gated ? kRows / 2 : kRows; }
__device__ Rows ActivateRows(const FewArgs& args, int slot, int tile) {
  const auto* matrix = static_cast<const uint8_t*>(args.arena) + slot * args.slot_stride;
  const size_t bytes = size_t{2} * args.hidden_size;
  const int first = tile * ActivationsOfTile(args) + threadIdx.x % 32 / 4;
  const int second = args.gated ? args.intermediate_size + first : first + 8;
  return {matrix + first * bytes, args.gated || second < args.intermediate_size ? matrix + second * bytes : nullptr};
}

struct ActivateShared {
  // Of each warp, each lane's four sums; of two passes in turn.
  float sums[2][kActivateWarps][kMostTiles][4][32];
  int active;
};

// A tile's activations of up to 8 kTiles tokens at a time, times the weights of their choices. `weights` holds the
// first lines; `load_next`(i) is called once for each when it is no longer needed.
template <int kTiles, typename LoadNext>
__device__ __forceinline__ void Activate(ActivateShared& shared, const FewArgs& args, int first_row, int count,
                                         int tile, const Rows& rows, WeightLines& weights, int& turn,
                                         const LoadNext& load_next) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int lines = DivideUp(args.hidden_size, kLineK);
  const int outputs = ActivationsOfTile(args);
  constexpr int kStep = kActivateWarps * kLinesAtOnce;
  // Where the thread's output lies among the sums.
  const int column = thread / outputs, r = thread % outputs;
  const int from = r % 8 * 4 + column % 8 / 2, low = column % 2 + (r >= 8 ? 2 : 0);
  const int activation = tile * outputs + r;
  for (int pass = 0; pass < count; pass += kTiles * kTileColumns) {
    const int at = first_row + pass + column;
    const bool has_output =
        column < kTiles * kTileColumns && pass + column < count && activation < args.intermediate_size;
    const float choice = has_output ? args.weights[args.order[at]] : 0;
    const uint8_t* columns[kTiles];
    float sums[kTiles][4] = {};
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int own = pass + j * kTileColumns + lane / 4;
      columns[j] = nullptr;
      if (own < count) {
        const size_t token = args.order[first_row + own] / args.pairs_per_token;
        columns[j] = static_cast<const uint8_t*>(args.x) + token * args.hidden_size * 2;
      }
    }
    // Those of another pass are the same lines again.
    const bool last_pass = pass + kTiles * kTileColumns >= count;
    for (int line = warp, rest = DivideUp(lines, kStep); rest > 0; line += kStep, --rest) {
      MultiplyAndReload(sums, weights, columns, line, kActivateWarps, lines, args.hidden_size, [&](int i) {
        if (rest == 1 && last_pass) return load_next(i);
        LoadLine<true>(weights, i, rows.row, rows.row_8, (rest == 1 ? warp : line + kStep) + i * kActivateWarps, lines,
                       args.hidden_size);
      });
    }
    auto& buffer = shared.sums[turn++ % 2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) buffer[warp][j][i][lane] = sums[j][i];
    }
    __syncthreads();
    if (!has_output) continue;
    float first = 0, second = 0;
#pragma unroll
    for (int w = 0; w < kActivateWarps; ++w) {
      first += buffer[w][column / kTileColumns][low][from];
      if (args.gated) second += buffer[w][column / kTileColumns][low + 2][from];
    }
    static_cast<__nv_bfloat16*>(args.activations)[static_cast<size_t>(at) * args.intermediate_size + activation] =
        __float2bfloat16((args.gated ? Silu(first) * second : Relu(first)) * choice);
  }
}

// As many blocks as run at once, each with an equal run of all groups' tiles.
__global__ void __launch_bounds__(kActivateWarps * 32, kActivateBlocks)
    ActivateKernel(const __grid_constant__ FewArgs args) {
  static_assert(kMostTiles * kTileColumns * kRows <= kActivateWarps * 32);
  extern __shared__ int memory[];
  __shared__ ActivateShared shared;
  const int warp = threadIdx.x / 32;
  const Groups groups = GroupsAt(memory, args);
  WaitForPreviousKernel();
  // Not before: the next kernel takes it that what the kernels before this one have written is there.
  LetNextKernelStart();
  if (warp == 0) {
    const int active = ListGroups(args, groups);
    if (threadIdx.x == 0) shared.active = active;
  }
  __syncthreads();
  const int group_tiles = DivideUp(args.intermediate_size, ActivationsOfTile(args));
  const int64_t tiles = int64_t{shared.active} * group_tiles;
  int at = static_cast<int>(tiles * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x);
  if (at >= end) return;
  const int lines = DivideUp(args.hidden_size, kLineK);
  WeightLines weights;
  const auto rows_of = [&](int index) {
    return ActivateRows(args, groups.slots[index / group_tiles], index % group_tiles);
  };
  Rows rows = rows_of(at);
  LoadLines<true>(weights, rows.row, rows.row_8, warp, kActivateWarps, lines, args.hidden_size);
  for (int turn = 0; at < end; ++at) {
    const int group = at / group_tiles, count = groups.counts[group];
    const Rows next = at + 1 < end ? rows_of(at + 1) : Rows{};
    const auto load_next = [&](int i) {
      LoadLine<true>(weights, i, next.row, next.row_8, warp + i * kActivateWarps, lines, args.hidden_size);
    };
    if (count <= kTileColumns) {
      Activate<1>(shared, args, groups.firsts[group], count, at % group_tiles, rows, weights, turn, load_next);
    } else {
      Activate<kMostTiles>(shared, args, groups.firsts[group], count, at % group_tiles, rows, weights, turn, load_next);
    }
    rows = next;
  }
}

// The lines [line, end) of one group for this warp's sums of the output. `weights` holds the first ones; `load_next`(i)
// is called once for each when it is no longer needed.
template <int kTiles, typename LoadNext>
__device__ __forceinline__ void AddDown(float* sums, const FewArgs& args, WeightLines& weights, const Rows& rows,
                                        int first_row, int count, int line, int end, const LoadNext& load_next) {
  const int lane = threadIdx.x % 32;
  const size_t bytes = size_t{2} * args.intermediate_size;
  for (int pass = 0; pass < count; pass += kTiles * kTileColumns) {
    const uint8_t* columns[kTiles];
    float tile_sums[kTiles][4] = {};
    int tokens[kTiles][2];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int column = pass + j * kTileColumns + lane / 4;
      columns[j] =
          column < count ? static_cast<const uint8_t*>(args.activations) + (first_row + column) * bytes : nullptr;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int own = pass + j * kTileColumns + lane % 4 * 2 + i;
        tokens[j][i] = own < count ? args.order[first_row + own] / args.pairs_per_token : -1;
      }
    }
    const bool last_pass = pass + kTiles * kTileColumns >= count;
    for (int at = line; at < end; at += kLinesAtOnce) {
      const bool last = at + kLinesAtOnce >= end;
      MultiplyAndReload(tile_sums, weights, columns, at, 1, end, args.intermediate_size, [&](int i) {
        if (last && last_pass) return load_next(i);
        LoadLine<true>(weights, i, rows.row, rows.row_8, (last ? line : at + kLinesAtOnce) + i, end,
                       args.intermediate_size);
      });
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A token has a group once: no two lanes add to the same sum.
        if (tokens[j][i % 2] >= 0) sums[tokens[j][i % 2] * kRows + lane / 4 + i / 2 * 8] += tile_sums[j][i];
      }
    }
  }
}

size_t DownSharedBytes(int warps, int tokens, int max_active) {
  return sizeof(float) * warps * tokens * kRows + GroupsBytes(max_active);
}

// Grid (tiles of 16 columns of the output). The lines of all groups with rows, one after the other, are cut into equal
// runs, one a warp.
template <int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 16 / kWarps) DownKernel(const __grid_constant__ FewArgs args) {
  extern __shared__ float storage[];
  __shared__ int active_groups;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int all_sums = kWarps * args.num_tokens * kRows;
  const Groups groups = GroupsAt(reinterpret_cast<int*>(storage + all_sums), args);
  LetNextKernelStart();
  // The groups and their weights are there before ActivateKernel ends, see there.
  if (warp == 0) {
    const int active = ListGroups(args, groups);
    if (lane == 0) active_groups = active;
  }
  for (int i = thread; i < all_sums; i += kWarps * 32) storage[i] = 0;
  __syncthreads();
  const int lines = DivideUp(args.intermediate_size, kLineK);
  const int64_t all = int64_t{active_groups} * lines;
  int line = static_cast<int>(all * warp / kWarps);
  const int end = static_cast<int>(all * (warp + 1) / kWarps);
  const int first_column = blockIdx.x * kRows, own = first_column + lane / 4;
  const size_t bytes = size_t{2} * args.intermediate_size;
  // Down lies behind gate and up, or up alone.
  const size_t down = (args.gated ? 2 : 1) * bytes * args.hidden_size;
  const auto rows_of = [&](int group) -> Rows {
    const auto* matrix = static_cast<const uint8_t*>(args.arena) + groups.slots[group] * args.slot_stride + down;
    return {own < args.hidden_size ? matrix + own * bytes : nullptr,
            own + 8 < args.hidden_size ? matrix + (own + 8) * bytes : nullptr};
  };
  // The end of the run of lines from `from` that lie in its group.
  const auto stop_of = [&](int from) { return min(lines, from % lines + end - from); };
  WeightLines weights;
  Rows rows = {};
  if (line < end) {
    rows = rows_of(line / lines);
    LoadLines<true>(weights, rows.row, rows.row_8, line % lines, 1, stop_of(line), args.intermediate_size);
  }
  WaitForPreviousKernel();
  float* const sums = storage + static_cast<size_t>(warp) * args.num_tokens * kRows;
  while (line < end) {
    const int group = line / lines, begin = line % lines, stop = stop_of(line), next = line + stop - begin;
    const int first = groups.firsts[group], count = groups.counts[group];
    const Rows next_rows = next < end ? rows_of(next / lines) : Rows{};
    const int next_stop = next < end ? stop_of(next) : 0;
    const auto load_next = [&](int i) {
      LoadLine<true>(weights, i, next_rows.row, next_rows.row_8, next % lines + i, next_stop, args.intermediate_size);
    };
    if (count <= kTileColumns) {
      AddDown<1>(sums, args, weights, rows, first, count, begin, stop, load_next);
    } else {
      AddDown<kMostTiles>(sums, args, weights, rows, first, count, begin, stop, load_next);
    }
    line = next;
    rows = next_rows;
  }
  __syncthreads();
  for (int i = thread; i < args.num_tokens * kRows; i += kWarps * 32) {
    const int token = i / kRows, column = first_column + i % kRows;
    if (column >= args.hidden_size) continue;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += storage[static_cast<size_t>(w) * args.num_tokens * kRows + i];
    static_cast<__nv_bfloat16*>(args.out)[static_cast<size_t>(token) * args.hidden_size + column] =
        __float2bfloat16(sum);
  }
}

template <int kWarps>
cudaError_t LaunchDown(const FewArgs& args, int blocks, cudaStream_t stream) {
  const size_t shared = DownSharedBytes(kWarps, args.num_tokens, args.max_active);
  const cudaError_t allowed = AllowSharedMemory(DownKernel<kWarps>, shared);
  if (allowed != cudaSuccess) return allowed;
  return Launch(DownKernel<kWarps>, {dim3(blocks), kWarps * 32, shared}, stream, args);
}

}  // namespace

bool FewExpertsFit(int num_tokens, int hidden_size, int multiprocessors) {
  // DownKernel needs a block for most multiprocessors, but for steps that are short anyway.
  return num_tokens <= kMaxFewTokens && (num_tokens <= 2 || 4 * DivideUp(hidden_size, kRows) >= 3 * multiprocessors);
}

cudaError_t LaunchFewExperts(const FewArgs& args, int multiprocessors, cudaStream_t stream) {
  const cudaError_t error = Launch(
      ActivateKernel, {dim3(kActivateBlocks * multiprocessors), kActivateWarps * 32, GroupsBytes(args.max_active)},
      stream, args);
  if (error != cudaSuccess) return error;
  // Blocks of fewer warps where there are more than one for each multiprocessor.
  const int blocks = DivideUp(args.hidden_size, kRows);
  return blocks <= multiprocessors ? LaunchDown<16>(args, blocks, stream) : LaunchDown<8>(args, blocks, stream);
}

}  // namespace ballast::internal
