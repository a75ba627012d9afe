#include "kernels/cuda/experts.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/status.h"

namespace ballast {
namespace {

constexpr size_t kAlignment = 256;

// Rows a group up to which most groups have one narrow tile, from which on most have a wide one for each of a pair, and
// from which on rounding them up to 64 costs less than products with tokens as rows save.
constexpr int kNarrowRows = 32;
constexpr int kPairRows = 192;
constexpr int kTokenRowsRows = 768;
// Tiles of gate and up for each block from which on a queue is faster than equal runs, up to that intermediate size:
// cutting tiles takes longer than drawing them saves.
constexpr int kQueuedTiles = 2;
constexpr int kQueuedIntermediate = 4096;
// In fp8, rows a group up to which most groups have one narrow tile.
constexpr int kFp8NarrowRows = 48;

// Rows a group, and bytes of weights that a step can read, up to which the kernels for few are faster: they wait less,
// but read slower.
constexpr int kFewRows = 4;
constexpr size_t kFewBytes = size_t{128} << 20;

size_t Align(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

size_t ScaleBlocks(int elements) { return (elements + kScaleBlock - 1) / kScaleBlock; }

// Parts of a workspace, in bytes from its start.
struct WorkspaceLayout {
  WorkspaceLayout(int max_rows, int max_groups, const ExpertArena& arena, int blocks) {
    const bool fp8 = arena.form == ExpertForm::kSwiGluFp8;
    // A counter for each block of a pair's tile.
    token_flag_words = max_rows / internal::kNarrowTokens + 2 * max_groups;
    flag_words = token_flag_words + blocks + 1;
    flags = Align(2 * sizeof(uint32_t));
    partials = flags + Align(2 * sizeof(uint32_t) * flag_words);
    activations = partials + size_t{internal::kPartialBytes} * 2 * blocks;
    scales = activations + Align(size_t{fp8 ? 1u : 2u} * max_rows * arena.intermediate_size);
    bytes = scales + (fp8 ? Align(sizeof(float) * max_rows * ScaleBlocks(arena.intermediate_size)) : 0);
  }

  int token_flag_words, flag_words;
  size_t flags, partials, activations, scales, bytes;
};

absl::Status Field(const char* name, int64_t value, const char* limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

bool Aligned(const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

int ElementBytes(ExpertForm form) { return form == ExpertForm::kSwiGluFp8 ? 1 : 2; }

bool Gated(ExpertForm form) { return form != ExpertForm::kRelu; }

// A queue of tiles, where `active` groups have enough of them for the blocks and tiles of down are short.
internal::ExpertsKernelForm NarrowForm(const ExpertArena& arena, int64_t active, int blocks) {
  const int64_t rows = int64_t{Gated(arena.form) ? 2 : 1} * arena.intermediate_size;
  const bool queued = active * rows >= int64_t{kQueuedTiles} * blocks * internal::kTileRows &&
                      arena.intermediate_size <= kQueuedIntermediate;
  return queued ? internal::ExpertsKernelForm::kNarrow : internal::ExpertsKernelForm::kNarrowRuns;
}

size_t MatrixBytes(const ExpertArena& arena) {
  return size_t{1} * ElementBytes(arena.form) * arena.hidden_size * arena.intermediate_size;
}

absl::Status Check(const ExpertArena& arena) {
  // Rows of whole 16 bytes.
  const int unit = 16 / ElementBytes(arena.form);
  const std::string multiple = absl::StrCat("a positive multiple of ", unit);
  if (arena.hidden_size < unit || arena.hidden_size % unit != 0) {
    return Field("hidden_size", arena.hidden_size, multiple.c_str());
  }
  if (arena.intermediate_size < unit || arena.intermediate_size % unit != 0) {
    return Field("intermediate_size", arena.intermediate_size, multiple.c_str());
  }
  if (arena.num_slots < 1) return Field("num_slots", arena.num_slots, "at least 1");
  const size_t expert = ExpertSlotBytes(arena.form, arena.hidden_size, arena.intermediate_size);
  if (arena.slot_stride % 16 != 0 || arena.slot_stride < expert) {
    return Field("slot_stride", arena.slot_stride, absl::StrCat("a multiple of 16 and at least ", expert).c_str());
  }
  if (arena.slots == nullptr || !Aligned(arena.slots, 16)) {
    return Field("slots", reinterpret_cast<int64_t>(arena.slots), "an address on 16 bytes");
  }
  return absl::OkStatus();
}

// Boxes of 128 bytes of k, swizzled.
absl::Status Encode(CUtensorMapDataType type, const void* base, std::initializer_list<cuuint64_t> sizes,
                    std::initializer_list<cuuint64_t> strides, std::initializer_list<cuuint32_t> box,
                    CUtensorMap* map) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return CudaStatus(error, "cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) {
    return absl::UnavailableError("the driver has no cuTensorMapEncodeTiled: CUDA 12.0 or later is needed");
  }
  constexpr cuuint32_t kOne[5] = {1, 1, 1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      map, type, sizes.size(), const_cast<void*>(base), sizes.begin(), strides.begin(), box.begin(), kOne,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return absl::InternalError(absl::StrCat("cuTensorMapEncodeTiled: CUDA error ", result));
  return absl::OkStatus();
}

}  // namespace

size_t ExpertSlotBytes(ExpertForm form, int hidden_size, int intermediate_size) {
  const size_t elements = size_t{1} * hidden_size * intermediate_size * (Gated(form) ? 3 : 2);
  const size_t scales =
      form == ExpertForm::kSwiGluFp8 ? 3 * ScaleBlocks(hidden_size) * ScaleBlocks(intermediate_size) : 0;
  return (elements * ElementBytes(form) + scales * sizeof(float) + 15) / 16 * 16;
}

absl::StatusOr<CudaExperts> CudaExperts::Create(const ExpertArena& arena) {
  if (absl::Status status = Check(arena); !status.ok()) return status;
  int device = 0, major = 0, minor = 0;
  CudaExperts experts;
  experts.arena_ = arena;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return CudaStatus(error, "the device's attributes");
  if (major != 9 || minor != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, " has compute capability ", major, ".", minor, ", has to be 9.0"));
  }
  for (size_t i = 0; i < experts.blocks_.size(); ++i) {
    error = internal::ExpertsBlocks(static_cast<internal::ExpertsKernelForm>(i), &experts.blocks_[i]);
    if (error != cudaSuccess) return CudaStatus(error, "the expert kernel's blocks");
  }
  const cuuint64_t h = arena.hidden_size, i = arena.intermediate_size, slots = arena.num_slots;
  const bool fp8 = arena.form == ExpertForm::kSwiGluFp8;
  const auto type = fp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cuuint64_t bytes = ElementBytes(arena.form);
  const cuuint32_t box_k = fp8 ? kScaleBlock : internal::kTileK;
  // Columns, 8 rows, gate or up, groups of 8 rows, slots: a box holds groups of gates and ups in turn, so that one
  // thread of the kernel gets both sums of an activation. In fp8 a box is of gates or of ups.
  absl::Status status =
      arena.form == ExpertForm::kSwiGlu
          ? Encode(type, arena.slots, {h, 8, 2, i / 8, slots}, {2 * h, 2 * h * i, 16 * h, arena.slot_stride},
                   {box_k, 8, 2, internal::kBoxGroups, 1}, &experts.gate_up_)
          : Encode(type, arena.slots, {h, fp8 ? 2 * i : i, slots}, {bytes * h, arena.slot_stride},
                   {box_k, internal::kBoxRows, 1}, &experts.gate_up_);
  if (status.ok()) {
    status = Encode(type, static_cast<const uint8_t*>(arena.slots) + MatrixBytes(arena) * (Gated(arena.form) ? 2 : 1),
                    {i, h, slots}, {bytes * i, arena.slot_stride}, {box_k, internal::kBoxRows, 1}, &experts.down_);
  }
  if (!status.ok()) return status;
  return experts;
}

int CudaExperts::MostBlocks() const { return *std::max_element(blocks_.begin(), blocks_.end()); }

size_t CudaExperts::WorkspaceBytes(int max_rows, int max_groups) const {
  return WorkspaceLayout(max_rows, max_groups, arena_, MostBlocks()).bytes;
}

absl::Status CudaExperts::CheckStep(const ExpertsStep& step, const void* workspace, int max_rows,
                                    int max_groups) const {
  if (max_groups < 1 || max_groups > kMaxGroups) return Field("max_groups", max_groups, "1 to 1024");
  if (step.num_groups < 1 || step.num_groups > max_groups) {
    return Field("num_groups", step.num_groups, absl::StrCat("1 to max_groups, ", max_groups).c_str());
  }
  if (step.pairs_per_token < 1) return Field("pairs_per_token", step.pairs_per_token, "at least 1");
  if (max_rows < 1) return Field("max_rows", max_rows, "at least 1");
  if (!Aligned(step.x, 16)) return Field("x", reinterpret_cast<int64_t>(step.x), "on 16 bytes");
  if (arena_.form == ExpertForm::kSwiGluFp8 && step.x_scales == nullptr) return Field("x_scales", 0, "an address");
  if (!Aligned(step.out, 16)) return Field("out", reinterpret_cast<int64_t>(step.out), "on 16 bytes");
  if (!Aligned(workspace, kAlignment)) return Field("workspace", reinterpret_cast<int64_t>(workspace), "on 256 bytes");
  return absl::OkStatus();
}

absl::Status CudaExperts::Run(const ExpertsStep& step, void* workspace, int max_rows, int max_groups,
                              cudaStream_t stream) const {
  if (absl::Status status = CheckStep(step, workspace, max_rows, max_groups); !status.ok()) return status;
  return Launch(step, nullptr, workspace, max_rows, max_groups, stream);
}

absl::Status CudaExperts::Launch(const ExpertsStep& step, const CombineArgs* combine, void* workspace, int max_rows,
                                 int max_groups, cudaStream_t stream) const {
  const WorkspaceLayout layout(max_rows, max_groups, arena_, MostBlocks());
  auto* bytes = static_cast<uint8_t*>(workspace);
  internal::ExpertsArgs args = {};
  args.x = step.x;
  args.x_scales = step.x_scales;
  args.order = step.order;
  args.begin = step.begin;
  args.slots = step.slots;
  args.weight_scales = static_cast<const uint8_t*>(arena_.slots) + 3 * MatrixBytes(arena_);
  args.slot_stride = arena_.slot_stride;
  args.out = combine == nullptr ? step.out : combine->out;
  if (combine != nullptr) {
    args.weights = combine->weights;
    args.row_of = combine->row_of;
    args.num_tokens = combine->num_tokens;
  }
  args.activations = bytes + layout.activations;
  args.activation_scales = reinterpret_cast<float*>(bytes + layout.scales);
  args.partials = bytes + layout.partials;
  args.flags = reinterpret_cast<uint32_t*>(bytes + layout.flags);
  args.launch = reinterpret_cast<uint32_t*>(bytes);
  args.num_groups = step.num_groups;
  args.pairs_per_token = step.pairs_per_token;
  args.hidden_size = arena_.hidden_size;
  args.intermediate_size = arena_.intermediate_size;
  args.gated = Gated(arena_.form);
  args.token_flag_words = layout.token_flag_words;
  args.flag_words = layout.flag_words;
  const int64_t groups = step.num_groups;
  const int64_t rows = step.typical_rows;
  const bool fp8 = arena_.form == ExpertForm::kSwiGluFp8;
  const auto form = fp8 && rows <= kFp8NarrowRows * groups ? internal::ExpertsKernelForm::kFp8Narrow
                    : fp8                                  ? internal::ExpertsKernelForm::kFp8Pair
                    : rows <= kNarrowRows * groups         ? NarrowForm(arena_, std::min(rows, groups), blocks_[0])
                    : rows < kPairRows * groups            ? internal::ExpertsKernelForm::kWide
                    : rows < kTokenRowsRows * groups       ? internal::ExpertsKernelForm::kPair
                                                           : internal::ExpertsKernelForm::kTokenRows;
  return CudaStatus(internal::LaunchExperts(gate_up_, down_, args, form, blocks_[static_cast<size_t>(form)], stream),
                    "the expert kernel");
}

absl::Status CudaExperts::RunAndCombine(const ExpertsStep& step, const CombineArgs& combine, void* workspace,
                                        int max_rows, int max_groups, cudaStream_t stream) const {
  if (combine.rows != step.out) return Field("rows", reinterpret_cast<int64_t>(combine.rows), "the step's out");
  if (combine.top_k != step.pairs_per_token) return Field("top_k", combine.top_k, "the step's pairs_per_token");
  if (combine.hidden_size != arena_.hidden_size) return Field("hidden_size", combine.hidden_size, "the arena's");
  if (!Aligned(combine.out, 16)) return Field("out", reinterpret_cast<int64_t>(combine.out), "on 16 bytes");
  if (arena_.form == ExpertForm::kSwiGluFp8 || combine.num_tokens < 1 ||
      !internal::FewExpertsFit(combine.num_tokens, arena_.hidden_size, blocks_[0]) ||
      step.typical_rows > kFewRows * static_cast<int64_t>(step.num_groups) ||
      std::min(step.num_groups, combine.num_tokens * combine.top_k) *
              ExpertSlotBytes(arena_.form, arena_.hidden_size, arena_.intermediate_size) >
          kFewBytes) {
    if (combine.top_k == 1 && combine.num_tokens > 0) {
      // The kernel's own rows go to their tokens.
      const absl::Status status = CheckStep(step, workspace, max_rows, max_groups);
      return status.ok() ? Launch(step, &combine, workspace, max_rows, max_groups, stream) : status;
    }
    const absl::Status status = Run(step, workspace, max_rows, max_groups, stream);
    return status.ok() ? CombineRows(combine, stream) : status;
  }
  if (absl::Status status = CheckStep(step, workspace, max_rows, max_groups); !status.ok()) return status;
  const WorkspaceLayout layout(max_rows, max_groups, arena_, MostBlocks());
  internal::FewArgs args = {};
  args.arena = arena_.slots;
  args.slot_stride = arena_.slot_stride;
  args.x = step.x;
  args.order = step.order;
  args.begin = step.begin;
  args.slots = step.slots;
  args.weights = combine.weights;
  args.activations = static_cast<uint8_t*>(workspace) + layout.activations;
  args.out = combine.out;
  args.num_groups = step.num_groups;
  args.max_active = std::min({step.num_groups, max_rows, combine.num_tokens * combine.top_k});
  args.num_tokens = combine.num_tokens;
  args.pairs_per_token = step.pairs_per_token;
  args.hidden_size = arena_.hidden_size;
  args.intermediate_size = arena_.intermediate_size;
  args.gated = Gated(arena_.form);
  return CudaStatus(internal::LaunchFewExperts(args, blocks_[0], stream), "the expert kernels for few");
}

}  // namespace ballast
