// Expert feed-forward networks over the tokens that each replica got, on one GPU.
#ifndef BALLAST_KERNELS_CUDA_EXPERTS_H_
#define BALLAST_KERNELS_CUDA_EXPERTS_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/tokens.h"

namespace ballast {

// Bytes of an expert in its slot, rounded up to 16.
size_t ExpertSlotBytes(ExpertForm form, int hidden_size, int intermediate_size);

// Expert slots in device memory. H = hidden_size, I = intermediate_size, both multiples of 8, in kSwiGluFp8 of 16.
struct ExpertArena {
  // 16-byte aligned. Slot s begins at slots + s * slot_stride bytes, a multiple of 16, in the layout of `form`.
  const void* slots = nullptr;
  size_t slot_stride = 0;
  int num_slots = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  ExpertForm form = ExpertForm::kSwiGlu;
};

// One layer's step. All pointers are device memory, 16-byte aligned but for those to int32_t. `begin` and `order` are
// read by the kernel alone, so that a captured graph serves any routing of at most the workspace's rows.
struct ExpertsStep {
  // [tokens][H] bf16; in kSwiGluFp8 e4m3, with `x_scales`.
  const void* x = nullptr;
  // Row r of the output is expert(x[order[r] / pairs_per_token]).
  const int32_t* order = nullptr;
  int pairs_per_token = 1;
  // Group g, of [0, num_groups), has the rows begin[g] .. begin[g + 1] - 1 and the weights of slot slots[g]. begin[0]
  // is 0, begin ascends, and begin[num_groups] is at most the workspace's max_rows.
  const int32_t* begin = nullptr;
  const int32_t* slots = nullptr;
  int num_groups = 0;
  // About as many rows as the step will have: decides how blocks share the work, not what is right.
  int typical_rows = 0;
  // [max_rows][H] bf16, written up to begin[num_groups]: the expert's output, not weighted. No overlap with x.
  void* out = nullptr;
  // kSwiGluFp8: [tokens][ceil(H/128)], see QuantizeRows. Else unused.
  const float* x_scales = nullptr;
};

// Runs expert networks for slots of one arena on GPUs of compute capability 9.0. Immutable and thread-safe; the calls
// that share a workspace have to be of one stream.
//
// Products of bf16 are summed in float32; activations are rounded to bf16 between the GEMMs. Products of fp8 are summed
// over 128 of k by the tensor cores, then with their scales in float32; activations are rounded to fp8, each 128 of a
// row with a scale of their own, as QuantizeRows does it but for ties (by the scale's inverse); outputs are bf16. Sums
// are in a fixed order for a given `begin` and number of multiprocessors: equal inputs give equal bits, but a row's
// bits depend on what else is in the step.
//
// Roofline: a slot's bytes (6 H I, without gates 4 H I, in fp8 3 H I) for each group with rows, read at most once for
// every 144 rows (48 in steps of few rows a group; in fp8 128 and 64), over read bandwidth; 6 H I (4 H I) flops a row
// over the tensor cores' rate, twice as high in fp8. With fewer than about 190 rows a group (H200) the first is larger.
class CudaExperts {
 public:
  // Errors:
  //   InvalidArgument      a size or an alignment of the arena; the message names field, value and limit
  //   FailedPrecondition   the current device is not of compute capability 9.0
  //   Unavailable          no device or driver
  static absl::StatusOr<CudaExperts> Create(const ExpertArena& arena);

  // Bytes of a workspace for steps of up to max_rows rows and max_groups groups: zeroed once by the owner, then the
  // kernels' own; 256-byte aligned. Its layout follows from both numbers: every Run on it gives these two.
  size_t WorkspaceBytes(int max_rows, int max_groups) const;

  // Enqueues the step on the stream. Neither allocates nor waits; may be captured. The kernel's blocks wait for each
  // other, so it needs the whole device: it is launched cooperatively and begins when every multiprocessor is free.
  // It may read `step.slots` before the kernels in front of it on the stream have ended: a kernel must not write them.
  // Errors: InvalidArgument, as Create; what the launch says.
  absl::Status Run(const ExpertsStep& step, void* workspace, int max_rows, int max_groups, cudaStream_t stream) const;

  // Run, and CombineRows of its output: combine.rows is step.out, combine.top_k step.pairs_per_token, and `order` holds
  // the pairs that have a row in combine.row_of. With one choice a token the rows go to combine.out at once, with the
  // same bits, and step.out is left alone. A step in bf16 of up to 128 tokens, about four rows a group
  // (step.typical_rows) and 128 MB of weights takes two kernels that share nothing between blocks, leave step.out
  // alone, weigh activations before they are rounded and need nothing of the device for themselves; equal inputs give
  // equal bits there, too. These read `begin` and `slots` before the kernel in front of them on the stream has ended,
  // but not before those in front of that.
  absl::Status RunAndCombine(const ExpertsStep& step, const CombineArgs& combine, void* workspace, int max_rows,
                             int max_groups, cudaStream_t stream) const;

 private:
  CudaExperts() = default;

  // Of both kinds of Run.
  absl::Status CheckStep(const ExpertsStep& step, const void* workspace, int max_rows, int max_groups) const;

  // Rows that are combined, or step.out where `combine` is nullptr.
  absl::Status Launch(const ExpertsStep& step, const CombineArgs* combine, void* workspace, int max_rows,
                      int max_groups, cudaStream_t stream) const;

  // Of any launch.
  int MostBlocks() const;

  ExpertArena arena_;
  // Blocks (of a multiprocessor each) of the kernel's forms.
  std::array<int, internal::kExpertsKernelForms> blocks_ = {};
  CUtensorMap gate_up_ = {}, down_ = {};
};

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_H_
