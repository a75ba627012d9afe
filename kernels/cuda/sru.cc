#include "kernels/cuda/sru.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"

namespace ballast {
namespace {

absl::Status Field(const char* name, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

}  // namespace

absl::Status RunSru(const SruArgs& args, cudaStream_t stream) {
  if (args.steps < 0) return Field("steps", args.steps, "at least 0");
  if (args.batch < 0) return Field("batch", args.batch, "at least 0");
  if (args.width < 2 || args.width % 2 != 0) return Field("width", args.width, "a positive multiple of 2");
  if (args.gate_blocks != 3 && args.gate_blocks != 4) return Field("gate_blocks", args.gate_blocks, "3 or 4");
  if (args.gate_blocks == 4 && args.x != nullptr) return Field("gate_blocks", args.gate_blocks, "3 where x is given");
  if (args.out_stride < static_cast<size_t>(args.width) || args.out_stride % 2 != 0) {
    return Field("out_stride", static_cast<int64_t>(args.out_stride),
                 absl::StrCat("even, at least width, ", args.width));
  }
  if (args.steps == 0 || args.batch == 0) return absl::OkStatus();
  return CudaStatus(internal::LaunchSru(args, stream), "the SRU kernel");
}

}  // namespace ballast
