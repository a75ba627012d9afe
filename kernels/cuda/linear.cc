#include "kernels/cuda/linear.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/memory.h"

namespace ballast {
namespace {

constexpr char kName[] = "libcublasLt.so.13";
// What NVIDIA's documentation advises for Hopper.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr uint32_t kAlignment = 16;

// The library's functions under their own names, without the prefix.
struct Library {
  decltype(&cublasLtCreate) Create = nullptr;
  decltype(&cublasLtDestroy) Destroy = nullptr;
  decltype(&cublasLtGetVersion) GetVersion = nullptr;
  decltype(&cublasLtGetStatusString) GetStatusString = nullptr;
  decltype(&cublasLtMatmul) Matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate = nullptr;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) PreferenceCreate = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) PreferenceDestroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) PreferenceSetAttribute = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) GetHeuristic = nullptr;

  absl::Status Check(cublasStatus_t status, const char* what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    const std::string message = absl::StrCat(what, ": ", GetStatusString(status));
    switch (status) {
      case CUBLAS_STATUS_ALLOC_FAILED:
        return absl::ResourceExhaustedError(message);
      case CUBLAS_STATUS_INVALID_VALUE:
        return absl::InvalidArgumentError(message);
      case CUBLAS_STATUS_NOT_SUPPORTED:
      case CUBLAS_STATUS_ARCH_MISMATCH:
        return absl::UnimplementedError(message);
      default:
        return absl::InternalError(message);
    }
  }
};

template <typename Function>
bool Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

absl::StatusOr<Library> Open() {
  void* const opened = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) return absl::NotFoundError(absl::StrCat("cannot open ", kName, ": ", dlerror()));
  Library l;
  if (!Find(opened, "cublasLtCreate", l.Create) || !Find(opened, "cublasLtDestroy", l.Destroy) ||
      !Find(opened, "cublasLtGetVersion", l.GetVersion) ||
      !Find(opened, "cublasLtGetStatusString", l.GetStatusString) || !Find(opened, "cublasLtMatmul", l.Matmul) ||
      !Find(opened, "cublasLtMatmulDescCreate", l.MatmulDescCreate) ||
      !Find(opened, "cublasLtMatmulDescDestroy", l.MatmulDescDestroy) ||
      !Find(opened, "cublasLtMatmulDescSetAttribute", l.MatmulDescSetAttribute) ||
      !Find(opened, "cublasLtMatrixLayoutCreate", l.MatrixLayoutCreate) ||
      !Find(opened, "cublasLtMatrixLayoutDestroy", l.MatrixLayoutDestroy) ||
      !Find(opened, "cublasLtMatmulPreferenceCreate", l.PreferenceCreate) ||
      !Find(opened, "cublasLtMatmulPreferenceDestroy", l.PreferenceDestroy) ||
      !Find(opened, "cublasLtMatmulPreferenceSetAttribute", l.PreferenceSetAttribute) ||
      !Find(opened, "cublasLtMatmulAlgoGetHeuristic", l.GetHeuristic)) {
    return absl::NotFoundError(absl::StrCat(kName, " lacks a function: ", dlerror()));
  }
  return l;
}

absl::Status Field(const char* name, int64_t value, const char* limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

}  // namespace

struct CudaLinear::Impl {
  // A product of one shape. The library sees columns where we have rows: out^T = (W^T)^T x^T.
  struct Shape {
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t weights = nullptr, x = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
  };

  explicit Impl(const Library& library) : library(library) {}
  ~Impl() {
    for (auto& [key, shape] : shapes) Destroy(shape);
    if (handle != nullptr) library.Destroy(handle);
  }

  void Destroy(const Shape& shape) const {
    if (shape.product != nullptr) library.MatmulDescDestroy(shape.product);
    for (cublasLtMatrixLayout_t layout : {shape.weights, shape.x, shape.out}) {
      if (layout != nullptr) library.MatrixLayoutDestroy(layout);
    }
  }

  absl::Status Describe(int rows, int inputs, int outputs, Shape& shape) const;
  absl::Status Choose(Shape& shape) const;

  const Library& library;
  cublasLtHandle_t handle = nullptr;
  DeviceMemory workspace;
  std::map<std::tuple<int, int, int>, Shape> shapes;
};

absl::Status CudaLinear::Impl::Describe(int rows, int inputs, int outputs, Shape& shape) const {
  absl::Status status = library.Check(library.MatmulDescCreate(&shape.product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                                      "cublasLtMatmulDescCreate");
  const cublasOperation_t transposed = CUBLAS_OP_T;
  if (status.ok()) {
    status = library.Check(
        library.MatmulDescSetAttribute(shape.product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
        "cublasLtMatmulDescSetAttribute");
  }
  const auto layout = [&](cublasLtMatrixLayout_t& to, cudaDataType_t type, int height, int width) {
    if (!status.ok()) return;
    status = library.Check(library.MatrixLayoutCreate(&to, type, height, width, height), "cublasLtMatrixLayoutCreate");
  };
  layout(shape.weights, CUDA_R_16BF, inputs, outputs);
  layout(shape.x, CUDA_R_16BF, inputs, rows);
  layout(shape.out, CUDA_R_32F, outputs, rows);
  return status;
}

absl::Status CudaLinear::Impl::Choose(Shape& shape) const {
  cublasLtMatmulPreference_t preference = nullptr;
  absl::Status status = library.Check(library.PreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  if (!status.ok()) return status;
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    if (!status.ok()) return;
    status = library.Check(library.PreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
                           "cublasLtMatmulPreferenceSetAttribute");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kAlignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kAlignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kAlignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kAlignment);
  cublasLtMatmulHeuristicResult_t best = {};
  int found = 0;
  if (status.ok()) {
    status = library.Check(library.GetHeuristic(handle, shape.product, shape.weights, shape.x, shape.out, shape.out,
                                                preference, 1, &best, &found),
                           "cublasLtMatmulAlgoGetHeuristic");
  }
  library.PreferenceDestroy(preference);
  if (status.ok() && found == 0) status = absl::UnimplementedError("cuBLASLt has no kernel for this product");
  shape.algorithm = best.algo;
  return status;
}

CudaLinear::CudaLinear(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaLinear::~CudaLinear() = default;

absl::StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::Create() {
  static const auto* const library = new absl::StatusOr<Library>(Open());
  if (!library->ok()) return library->status();
  auto impl = std::make_unique<Impl>(**library);
  if (absl::Status status = (*library)->Check((*library)->Create(&impl->handle), "cublasLtCreate"); !status.ok()) {
    return status;
  }
  absl::StatusOr<DeviceMemory> workspace = AllocateDevice(kWorkspaceBytes, "cuBLASLt's workspace");
  if (!workspace.ok()) return workspace.status();
  impl->workspace = *std::move(workspace);
  return std::unique_ptr<CudaLinear>(new CudaLinear(std::move(impl)));
}

size_t CudaLinear::version() const { return impl_->library.GetVersion(); }

absl::Status CudaLinear::Product(const void* x, const void* weights, int rows, int inputs, int outputs, float* out,
                                 cudaStream_t stream) {
  if (rows < 0) return Field("rows", rows, "at least 0");
  if (inputs < 8 || inputs % 8 != 0) return Field("inputs", inputs, "a positive multiple of 8");
  if (outputs < 1) return Field("outputs", outputs, "at least 1");
  if (rows == 0) return absl::OkStatus();
  const auto key = std::tuple(rows, inputs, outputs);
  auto at = impl_->shapes.find(key);
  if (at == impl_->shapes.end()) {
    Impl::Shape shape;
    absl::Status status = impl_->Describe(rows, inputs, outputs, shape);
    if (status.ok()) status = impl_->Choose(shape);
    if (!status.ok()) {
      impl_->Destroy(shape);
      return status;
    }
    at = impl_->shapes.emplace(key, shape).first;
  }
  const Impl::Shape& shape = at->second;
  const float one = 1, zero = 0;
  return impl_->library.Check(impl_->library.Matmul(impl_->handle, shape.product, &one, weights, shape.weights, x,
                                                    shape.x, &zero, out, shape.out, out, shape.out, &shape.algorithm,
                                                    impl_->workspace.get(), kWorkspaceBytes, stream),
                              "cublasLtMatmul");
}

}  // namespace ballast
