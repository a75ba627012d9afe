#include "kernels/experts.h"

#include <algorithm>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/work.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// Rows of a task that are taken together: enough to reuse each weight from registers and cache, few enough that packed
// rows stay in L2 and that items balance over threads.
constexpr int kChunkRows = 64;
// Outputs of a slice when a few rows' work is split inside of the expert; a multiple of every tile's outputs.
constexpr int kSliceOutputs = 64;

struct Sizes {
  int hidden;
  int intermediate;
  size_t packed_hidden() const { return internal::PackedWidth(hidden); }
  size_t packed_intermediate() const { return internal::PackedWidth(intermediate); }
  const uint16_t* gate(const ExpertTask& task) const { return task.weights; }
  const uint16_t* up(const ExpertTask& task) const { return task.weights + static_cast<size_t>(hidden) * intermediate; }
  const uint16_t* down(const ExpertTask& task) const {
    return task.weights + 2 * static_cast<size_t>(hidden) * intermediate;
  }
};

// Rows [first, first + rows) of a task, from rows to outputs.
void RunChunk(const ExpertTask& task, const Sizes& sizes, int first, int rows) {
  const internal::IsaKernels& kernels = internal::Kernels();
  thread_local internal::Scratch scratch;
  const size_t packed_floats = rows * sizes.packed_hidden();
  const size_t inner_floats = static_cast<size_t>(rows) * sizes.intermediate;
  float* packed = scratch.Get<float>(packed_floats + 2 * inner_floats + rows * sizes.packed_intermediate());
  float* gate = packed + packed_floats;
  float* up = gate + inner_floats;
  float* inner = up + inner_floats;
  kernels.pack_rows(task.rows.data() + first, rows, sizes.hidden, packed);
  kernels.matmul(packed, rows, sizes.hidden, sizes.gate(task), sizes.intermediate, gate, sizes.intermediate);
  kernels.matmul(packed, rows, sizes.hidden, sizes.up(task), sizes.intermediate, up, sizes.intermediate);
  kernels.swiglu_packed(gate, up, rows, sizes.intermediate, inner);
  kernels.matmul(inner, rows, sizes.intermediate, sizes.down(task), sizes.hidden,
                 task.out + static_cast<size_t>(first) * sizes.hidden, sizes.hidden);
}

// One chunk with its outputs split over the pool, for large experts with few rows.
void RunChunkSplit(const ExpertTask& task, const Sizes& sizes, int first, int rows, ThreadPool& pool) {
  const internal::IsaKernels& kernels = internal::Kernels();
  thread_local internal::Scratch scratch;
  const size_t packed_floats = rows * sizes.packed_hidden();
  const size_t inner_floats = static_cast<size_t>(rows) * sizes.intermediate;
  float* packed = scratch.Get<float>(packed_floats + 2 * inner_floats + rows * sizes.packed_intermediate());
  float* gate = packed + packed_floats;
  float* up = gate + inner_floats;
  float* inner = up + inner_floats;
  kernels.pack_rows(task.rows.data() + first, rows, sizes.hidden, packed);
  const auto slices = [](int outputs) { return (outputs + kSliceOutputs - 1) / kSliceOutputs; };
  const int inner_slices = slices(sizes.intermediate);
  pool.ParallelFor(2 * inner_slices, [&](int i) {
    const bool is_gate = i < inner_slices;
    const int at = (is_gate ? i : i - inner_slices) * kSliceOutputs;
    kernels.matmul(packed, rows, sizes.hidden,
                   (is_gate ? sizes.gate(task) : sizes.up(task)) + static_cast<size_t>(at) * sizes.hidden,
                   std::min(kSliceOutputs, sizes.intermediate - at), (is_gate ? gate : up) + at, sizes.intermediate);
  });
  kernels.swiglu_packed(gate, up, rows, sizes.intermediate, inner);
  float* out = task.out + static_cast<size_t>(first) * sizes.hidden;
  pool.ParallelFor(slices(sizes.hidden), [&](int i) {
    const int at = i * kSliceOutputs;
    kernels.matmul(inner, rows, sizes.intermediate, sizes.down(task) + static_cast<size_t>(at) * sizes.intermediate,
                   std::min(kSliceOutputs, sizes.hidden - at), out + at, sizes.hidden);
  });
}

}  // namespace

void RunExperts(std::span<const ExpertTask> tasks, int hidden_size, int intermediate_size, Activation activation,
                ThreadPool& pool) {
  BALLAST_CHECK(activation == Activation::kSwiGlu) << "activation=" << static_cast<int>(activation);
  const Sizes sizes = {hidden_size, intermediate_size};
  struct Chunk {
    const ExpertTask* task;
    int first;
    int rows;
  };
  size_t chunks = 0;
  size_t rows = 0;
  for (const ExpertTask& task : tasks) {
    chunks += (task.rows.size() + kChunkRows - 1) / kChunkRows;
    rows += task.rows.size();
  }
  thread_local internal::Scratch scratch;
  Chunk* list = scratch.Get<Chunk>(chunks);
  size_t n = 0;
  for (const ExpertTask& task : tasks) {
    const int task_rows = static_cast<int>(task.rows.size());
    for (int first = 0; first < task_rows; first += kChunkRows) {
      list[n++] = {&task, first, std::min(kChunkRows, task_rows - first)};
    }
  }
  const double weights = 3.0 * hidden_size * intermediate_size;
  const auto worth_waking = [&](double of_rows, double of_chunks) {
    return internal::WorthWaking(pool, 2.0 * weights * of_rows, 2.0 * weights * of_chunks);
  };
  if (!worth_waking(rows, chunks)) {
    for (size_t i = 0; i < chunks; ++i) RunChunk(*list[i].task, sizes, list[i].first, list[i].rows);
  } else if (chunks >= 2 * static_cast<size_t>(pool.threads()) || !worth_waking(0.25 * rows / chunks, 0.25)) {
    // The longest first: what is left at the end is short.
    std::sort(list, list + chunks,
              [](const Chunk& a, const Chunk& b) { return a.rows != b.rows ? a.rows > b.rows : a.task < b.task; });
    pool.ParallelFor(static_cast<int>(chunks),
                     [&](int i) { RunChunk(*list[i].task, sizes, list[i].first, list[i].rows); });
  } else {
    for (size_t i = 0; i < chunks; ++i) RunChunkSplit(*list[i].task, sizes, list[i].first, list[i].rows, pool);
  }
}

}  // namespace ballast
