// Expert feed-forward networks over the tokens that each replica got: a grouped GEMM.
#ifndef BALLAST_KERNELS_EXPERTS_H_
#define BALLAST_KERNELS_EXPERTS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cpu/thread_pool.h"

namespace ballast {

// How gate and up projections meet.
enum class Activation {
  // silu(gate) * up; silu(x) = x / (1 + exp(-x)).
  kSwiGlu,
};

// The tokens of one replica. H = hidden size, I = the expert's intermediate size.
struct ExpertTask {
  // Slot layout, bf16: [gate I x H][up I x H][down H x I]. 2-byte aligned at least; 64 bytes is faster.
  const uint16_t* weights = nullptr;
  // One pointer a row to [H] f32; rows may lie anywhere (receive buffers of several peers).
  std::span<const float* const> rows;
  // [rows.size()][H] f32, written: down(act(gate x, up x)), not weighted. Must not overlap any input.
  float* out = nullptr;
};

// Bytes of one expert in slot layout.
constexpr size_t ExpertWeightBytes(int hidden_size, int intermediate_size) {
  return size_t{3} * sizeof(uint16_t) * static_cast<size_t>(hidden_size) * static_cast<size_t>(intermediate_size);
}

// Runs every task; tasks with no rows are skipped. Does not allocate once each thread has seen its largest size.
//
// Row-invariant: the bits of out[r] depend on the bits of rows[r] and of the weights alone, not on the other rows, the
// task's length, the number of tasks or threads (see cpu/matmul.h for the order of summation). Activations stay in f32,
// weights are widened from bf16 in registers, sums are f32.
//
// Roofline: 6*H*I flops a row against 6*H*I bytes of weights a task, so below about 8 rows a task (on a core with 100
// Gflop/s and 15 to 100 GB/s from L3 or L2) it is bound by reading the weights, above by FMA throughput.
void RunExperts(std::span<const ExpertTask> tasks, int hidden_size, int intermediate_size, Activation activation,
                ThreadPool& pool);

}  // namespace ballast

#endif  // BALLAST_KERNELS_EXPERTS_H_
