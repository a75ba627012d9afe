// UCX objects with owners. A UcxContext is made once in a process and shared; a UcxWorker belongs to one thread at a
// time.
//
// Environment: UCX_TLS, UCX_NET_DEVICES and every other variable of UCX hold. Without them UCX picks: shared memory on
// one host, else TCP or what the machine has. What differs from UCX's defaults (keep-alive probes, the rendezvous
// threshold, copying, error handling of shared memory, shared registrations) stands in ucx.cc.
//
// The library is the one that the dynamic linker finds, 1.13 or later: Debian's, or one with CUDA (docs/toolchain.md).
#ifndef BALLAST_WORKER_TRANSPORT_UCX_H_
#define BALLAST_WORKER_TRANSPORT_UCX_H_

#include <ucp/api/ucp.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ballast {

// UCX's status as ours; Unavailable for a lost peer, else Internal. `what` says what was tried.
absl::Status UcxError(std::string_view what, ucs_status_t status);

// Where the bytes of a message lie.
enum class UcxMemory { kHost, kCuda };

// For an operation of UCX, which else looks addresses up.
void SetMemory(UcxMemory memory, ucp_request_param_t& param);

class UcxContext {
 public:
  // `enter_thread`, unless empty, makes the worker's GPU current in the calling thread; CUDA memory needs it.
  // Internal: UCX cannot start, e.g. UCX_TLS names nothing that this machine has.
  static absl::StatusOr<std::shared_ptr<UcxContext>> Create(std::function<void()> enter_thread = {});
  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;
  ucp_context_h handle() const { return handle_; }
  // Whether messages may lie in CUDA memory.
  bool has_cuda() const { return has_cuda_; }
  // Called by a thread before it makes a worker.
  void EnterThread() const {
    if (enter_thread_) enter_thread_();
  }

 private:
  UcxContext(ucp_context_h handle, bool has_cuda, std::function<void()> enter_thread)
      : handle_(handle), has_cuda_(has_cuda), enter_thread_(std::move(enter_thread)) {}
  const ucp_context_h handle_;
  const bool has_cuda_;
  const std::function<void()> enter_thread_;
};

class UcxEndpoint;

class UcxWorker {
 public:
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(std::shared_ptr<UcxContext> context);
  // Every endpoint is gone.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  ucp_worker_h handle() const { return handle_; }
  const std::string& address() const { return address_; }
  // Readable when there is something to progress, once Arm returned true.
  int event_fd() const { return event_fd_; }

  // Does what there is to do, callbacks included; bounded, so Arm may say that there is more. False: there was nothing.
  bool Progress();
  // True: the event descriptor tells of anything that happens from now on. False: progress first, but leave the core to
  // others if that does nothing: operations wait for room at a peer, of which no event tells.
  bool Arm();

 private:
  UcxWorker(std::shared_ptr<UcxContext> context, ucp_worker_h handle) : context_(std::move(context)), handle_(handle) {}

  const std::shared_ptr<UcxContext> context_;
  const ucp_worker_h handle_;
  std::string address_;
  int event_fd_ = -1;
};

// A connection to another worker. Messages through it and through its peer's end go by tag.
class UcxEndpoint {
 public:
  // `on_error` is called from UcxWorker::Progress, at most once, when UCX finds that the peer is gone; operations fail
  // from then on.
  static absl::StatusOr<std::unique_ptr<UcxEndpoint>> Create(UcxWorker& worker, const std::string& address,
                                                             std::function<void(ucs_status_t)> on_error);
  // Closes without the peer's help: what is under way is cancelled, its callbacks are called by the worker's progress.
  ~UcxEndpoint();
  UcxEndpoint(const UcxEndpoint&) = delete;
  UcxEndpoint& operator=(const UcxEndpoint&) = delete;
  ucp_ep_h handle() const { return handle_; }

 private:
  UcxEndpoint(UcxWorker& worker, std::function<void(ucs_status_t)> on_error)
      : worker_(worker), on_error_(std::move(on_error)) {}

  UcxWorker& worker_;
  const std::function<void(ucs_status_t)> on_error_;
  ucp_ep_h handle_ = nullptr;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_UCX_H_
