// libnccl.so.2, opened when it is first needed: a worker without GPUs starts without it.
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_NCCL_LIBRARY_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_NCCL_LIBRARY_H_

#include <nccl.h>

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ballast {

// The functions of the library that are used. Immutable.
struct NcclLibrary {
  decltype(&::ncclGetVersion) GetVersion;
  decltype(&::ncclGetUniqueId) GetUniqueId;
  decltype(&::ncclGetErrorString) GetErrorString;
  decltype(&::ncclGetLastError) GetLastError;
  decltype(&::ncclCommInitRankConfig) CommInitRankConfig;
  decltype(&::ncclCommGetAsyncError) CommGetAsyncError;
  decltype(&::ncclCommAbort) CommAbort;
  decltype(&::ncclMemAlloc) MemAlloc;
  decltype(&::ncclMemFree) MemFree;
  decltype(&::ncclCommWindowRegister) CommWindowRegister;
  decltype(&::ncclCommWindowDeregister) CommWindowDeregister;
  decltype(&::ncclGroupStart) GroupStart;
  decltype(&::ncclGroupEnd) GroupEnd;
  decltype(&::ncclSend) Send;
  decltype(&::ncclRecv) Recv;

  // The process's library, for ever; any thread. Turns NVLink multicast off (NCCL_NVLS_ENABLE=0 in the environment):
  // call it before other threads that read the environment. Errors, the same ones each time:
  //   NotFound             no libnccl.so.2 where the dynamic linker looks, or a function is missing in it
  //   FailedPrecondition   of another version than the headers: windows and device code belong to one version
  static absl::StatusOr<const NcclLibrary*> Get();

  // OK for success and for work in progress; else Unavailable for a lost peer and Internal otherwise, with `what`,
  // NCCL's name of the error and its last message.
  absl::Status Check(ncclResult_t result, std::string_view what) const;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_NCCL_LIBRARY_H_
