#include "worker/transport/nccl/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr char kName[] = "libnccl.so.2";

template <typename Function>
absl::Status Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function != nullptr) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(kName, " has no ", name));
}

absl::StatusOr<const NcclLibrary*> Open() {
  // A program that uses multicast can put a host's GPUs out of service; nothing here needs it.
  setenv("NCCL_NVLS_ENABLE", "0", 1);
  // Never closed: NCCL leaves threads behind.
  void* const library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::NotFoundError(absl::StrCat("cannot open ", kName, ": ", dlerror()));
  static NcclLibrary nccl;
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclGetVersion", nccl.GetVersion));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclGetUniqueId", nccl.GetUniqueId));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclGetErrorString", nccl.GetErrorString));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclGetLastError", nccl.GetLastError));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclCommInitRankConfig", nccl.CommInitRankConfig));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclCommGetAsyncError", nccl.CommGetAsyncError));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclCommAbort", nccl.CommAbort));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclMemAlloc", nccl.MemAlloc));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclMemFree", nccl.MemFree));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclCommWindowRegister", nccl.CommWindowRegister));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclCommWindowDeregister", nccl.CommWindowDeregister));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclGroupStart", nccl.GroupStart));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclGroupEnd", nccl.GroupEnd));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclSend", nccl.Send));
  BALLAST_RETURN_IF_ERROR(Find(library, "ncclRecv", nccl.Recv));
  int version = 0;
  BALLAST_RETURN_IF_ERROR(nccl.Check(nccl.GetVersion(&version), "ncclGetVersion"));
  if (version != NCCL_VERSION_CODE) {
    return absl::FailedPreconditionError(
        absl::StrCat(kName, " has version ", version, ", this program needs ", NCCL_VERSION_CODE));
  }
  return &nccl;
}

}  // namespace

absl::StatusOr<const NcclLibrary*> NcclLibrary::Get() {
  static const auto* const opened = new absl::StatusOr<const NcclLibrary*>(Open());
  return *opened;
}

absl::Status NcclLibrary::Check(ncclResult_t result, std::string_view what) const {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const std::string message = absl::StrCat(absl::string_view(what.data(), what.size()), ": ", GetErrorString(result),
                                           ": ", GetLastError(nullptr));
  return result == ncclRemoteError ? absl::UnavailableError(message) : absl::InternalError(message);
}

}  // namespace ballast
