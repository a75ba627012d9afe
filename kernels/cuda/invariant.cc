#include "kernels/cuda/invariant.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/invariant_kernel.h"
#include "kernels/cuda/status.h"

namespace ballast {
namespace {

absl::Status Field(const char* name, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

constexpr int Tiles(int rows) { return (rows + internal::kInvariantTile - 1) / internal::kInvariantTile; }

}  // namespace

absl::Status InvariantProduct(const void* x, const void* weights, int rows, int inputs, int outputs, float* out,
                              cudaStream_t stream) {
  if (rows < 0) return Field("rows", rows, "at least 0");
  if (inputs < 8 || inputs % 8 != 0) return Field("inputs", inputs, "a positive multiple of 8");
  if (outputs < 1) return Field("outputs", outputs, "at least 1");
  if (rows == 0) return absl::OkStatus();
  internal::InvariantArgs args = {};
  args.x = x;
  args.pairs_per_token = 1;
  args.num_groups = 1;
  args.rows = rows;
  args.weights = weights;
  args.inputs = inputs;
  args.outputs = outputs;
  args.out = out;
  args.out_f32 = true;
  return CudaStatus(internal::LaunchInvariant(args, Tiles(rows), stream), "the row-invariant product");
}

absl::Status InvariantExperts(const ExpertArena& arena, const ExpertsStep& step, void* activations, int max_rows,
                              cudaStream_t stream) {
  if (arena.form != ExpertForm::kSwiGlu) return Field("form", static_cast<int>(arena.form), "kSwiGlu");
  for (const auto& [name, size] :
       {std::pair{"hidden_size", arena.hidden_size}, {"intermediate_size", arena.intermediate_size}}) {
    if (size < 8 || size % 8 != 0) return Field(name, size, "a positive multiple of 8");
  }
  if (step.num_groups < 1 || step.num_groups > kMaxGroups) {
    return Field("num_groups", step.num_groups, absl::StrCat("1 to ", kMaxGroups));
  }
  if (step.pairs_per_token < 1) return Field("pairs_per_token", step.pairs_per_token, "at least 1");
  if (max_rows < 1) return Field("max_rows", max_rows, "at least 1");
  internal::InvariantArgs args = {};
  args.x = step.x;
  args.order = step.order;
  args.pairs_per_token = step.pairs_per_token;
  args.begin = step.begin;
  args.slots = step.slots;
  args.num_groups = step.num_groups;
  args.weights = arena.slots;
  args.stride = arena.slot_stride;
  args.inputs = arena.hidden_size;
  args.outputs = arena.intermediate_size;
  args.gated = true;
  args.out = activations;
  // Each group may have a tile that is not full.
  const int tiles = max_rows / internal::kInvariantTile + step.num_groups;
  absl::Status status = CudaStatus(internal::LaunchInvariant(args, tiles, stream), "the row-invariant gates");
  if (!status.ok()) return status;
  args.x = activations;
  args.order = nullptr;
  args.weights = static_cast<const uint8_t*>(arena.slots) +
                 size_t{4} * static_cast<size_t>(arena.hidden_size) * static_cast<size_t>(arena.intermediate_size);
  args.inputs = arena.intermediate_size;
  args.outputs = arena.hidden_size;
  args.gated = false;
  args.out = step.out;
  return CudaStatus(internal::LaunchInvariant(args, tiles, stream), "the row-invariant experts");
}

}  // namespace ballast
