#include "worker/transport/ucx.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"

namespace ballast {
namespace {

constexpr int kProgressLimit = 1000;

// UCX complains of settings of transports that UCX_TLS leaves out.
bool MayUseSharedMemory() {
  const char* tls = std::getenv("UCX_TLS");
  if (tls == nullptr) return true;
  for (const char* name : {"shm", "sm", "mm", "posix", "sysv", "all", "^"}) {
    if (std::strstr(tls, name) != nullptr) return true;
  }
  return false;
}

// The oldest release whose CUDA support was run.
bool Since122() {
  unsigned major = 0, minor = 0, patch = 0;
  ucp_get_version(&major, &minor, &patch);
  return major > 1 || (major == 1 && minor >= 22);
}

void Set(ucp_config_t* config, const char* name, const char* value) {
  // The environment's word is last.
  if (std::getenv(absl::StrCat("UCX_", name).c_str()) != nullptr) return;
  const ucs_status_t status = ucp_config_modify(config, name, value);
  BALLAST_CHECK(status == UCS_OK) << name << ": " << ucs_status_string(status);
}

}  // namespace

absl::Status UcxError(std::string_view what, ucs_status_t status) {
  const std::string text = absl::StrCat(absl::string_view(what.data(), what.size()), ": ", ucs_status_string(status));
  switch (status) {
    case UCS_OK:
      return absl::OkStatus();
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_REJECTED:
      return absl::UnavailableError(text);
    default:
      return absl::InternalError(text);
  }
}

void SetMemory(UcxMemory memory, ucp_request_param_t& param) {
  param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.memory_type = memory == UcxMemory::kCuda ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
}

absl::StatusOr<std::shared_ptr<UcxContext>> UcxContext::Create(std::function<void()> enter_thread) {
  if (enter_thread) enter_thread();
  ucp_config_t* config = nullptr;
  if (const ucs_status_t status = ucp_config_read(nullptr, nullptr, &config); status != UCS_OK) {
    return UcxError("UCX configuration", status);
  }
  // The bootstrap's sockets tell of a dead peer; UCX's own probes would wake idle workers.
  Set(config, "KEEPALIVE_INTERVAL", "inf");
  // UCX 1.13 aborts the process when a TCP peer closes its end while it sends from the caller's memory.
  if (!Since122()) Set(config, "ZCOPY_THRESH", "inf");
  // A step's messages are at most this long. Announcing them first, as UCX would from a few KB on, costs two more
  // wake-ups each: with two processes a core that doubles the processor time of an exchange.
  Set(config, "RNDV_THRESH", "256k");
  // Off, UCX leaves shared memory out for endpoints that survive their peer, and takes TCP within a host.
  if (MayUseSharedMemory()) Set(config, "MM_ERROR_HANDLING", "y");
  // Two workers that have announced the same bytes share their registration. UCX 1.22 ends an announcement of the first
  // only when the second's has ended too, and then writes to the first worker, which may be gone by then.
  if (Since122()) Set(config, "RCACHE_ENABLE", "n");
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;
  ucp_context_h handle = nullptr;
  const ucs_status_t status = ucp_init(&params, config, &handle);
  ucp_config_release(config);
  if (status != UCS_OK) return UcxError("UCX start", status);
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  const bool has_cuda = Since122() && enter_thread && ucp_context_query(handle, &attributes) == UCS_OK &&
                        (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0;
  return std::shared_ptr<UcxContext>(new UcxContext(handle, has_cuda, std::move(enter_thread)));
}

UcxContext::~UcxContext() { ucp_cleanup(handle_); }

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(std::shared_ptr<UcxContext> context) {
  context->EnterThread();
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.events = UCP_WAKEUP_TAG_SEND | UCP_WAKEUP_TAG_RECV;
  ucp_worker_h handle = nullptr;
  if (const ucs_status_t status = ucp_worker_create(context->handle(), &params, &handle); status != UCS_OK) {
    return UcxError("UCX worker", status);
  }
  std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(context), handle));
  if (const ucs_status_t status = ucp_worker_get_efd(handle, &worker->event_fd_); status != UCS_OK) {
    return UcxError("UCX event descriptor", status);
  }
  ucp_address_t* address = nullptr;
  size_t length = 0;
  if (const ucs_status_t status = ucp_worker_get_address(handle, &address, &length); status != UCS_OK) {
    return UcxError("UCX worker address", status);
  }
  worker->address_.assign(reinterpret_cast<const char*>(address), length);
  ucp_worker_release_address(handle, address);
  return worker;
}

UcxWorker::~UcxWorker() { ucp_worker_destroy(handle_); }

bool UcxWorker::Progress() {
  // Operations with a dead peer can be tried again for ever.
  int done = 0;
  while (done < kProgressLimit && ucp_worker_progress(handle_) != 0) ++done;
  return done > 0;
}

bool UcxWorker::Arm() {
  const ucs_status_t status = ucp_worker_arm(handle_);
  BALLAST_CHECK(status == UCS_OK || status == UCS_ERR_BUSY) << ucs_status_string(status);
  return status == UCS_OK;
}

absl::StatusOr<std::unique_ptr<UcxEndpoint>> UcxEndpoint::Create(UcxWorker& worker, const std::string& address,
                                                                 std::function<void(ucs_status_t)> on_error) {
  std::unique_ptr<UcxEndpoint> endpoint(new UcxEndpoint(worker, std::move(on_error)));
  ucp_ep_params_t params{};
  params.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  // Without it a dead peer ends the process, and an endpoint cannot be closed by force.
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = [](void* self, ucp_ep_h, ucs_status_t status) {
    static_cast<UcxEndpoint*>(self)->on_error_(status);
  };
  params.err_handler.arg = endpoint.get();
  if (const ucs_status_t status = ucp_ep_create(worker.handle(), &params, &endpoint->handle_); status != UCS_OK) {
    endpoint->handle_ = nullptr;
    return UcxError("UCX endpoint", status);
  }
  return endpoint;
}

UcxEndpoint::~UcxEndpoint() {
  if (handle_ == nullptr) return;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  // Done at once for an endpoint made from a worker's address; were it not, the worker's end would finish it.
  const ucs_status_ptr_t close = ucp_ep_close_nbx(handle_, &param);
  if (UCS_PTR_IS_PTR(close)) ucp_request_free(close);
}

}  // namespace ballast
