#include "kernels/cuda/elementwise.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/status.h"

namespace ballast {
namespace {

absl::Status Field(const char* name, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

}  // namespace

absl::Status NormRows(const CudaNormArgs& args, cudaStream_t stream) {
  if (args.hidden_size < 8 || args.hidden_size % 8 != 0 || args.hidden_size > internal::kMaxNormWidth) {
    return Field("hidden_size", args.hidden_size,
                 absl::StrCat("a positive multiple of 8, at most ", internal::kMaxNormWidth));
  }
  if (args.rows < 0) return Field("rows", args.rows, "at least 0");
  if (args.rows == 0) return absl::OkStatus();
  return CudaStatus(internal::LaunchNorm(args, stream), "the norm kernel");
}

absl::Status StoreQkv(const CudaQkvArgs& args, cudaStream_t stream) {
  if (absl::Status status = internal::CheckHeads(args.num_heads, args.num_kv_heads, args.head_dim); !status.ok()) {
    return status;
  }
  if (args.rows < 0) return Field("rows", args.rows, "at least 0");
  if (!(args.clip > 0)) return absl::InvalidArgumentError(absl::StrCat("clip is ", args.clip, ", has to be positive"));
  if (args.rows == 0) return absl::OkStatus();
  return CudaStatus(internal::LaunchQkv(args, stream), "the kernel of queries, keys and values");
}

absl::Status SwiGluRows(const float* gate_up, int rows, int width, void* out, cudaStream_t stream) {
  if (width < 8 || width % 8 != 0) return Field("width", width, "a positive multiple of 8");
  if (rows < 0) return Field("rows", rows, "at least 0");
  if (rows == 0) return absl::OkStatus();
  return CudaStatus(internal::LaunchSwiGlu(gate_up, rows, width, out, stream), "the SwiGLU kernel");
}

}  // namespace ballast
