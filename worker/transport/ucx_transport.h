// The transport between processes: a full mesh of one view over UCX.
//
// Liveness: the TCP link that each pair of ranks opened to find each other (mesh_listener.h) stays open. When a process
// dies the system closes it, and the peer's waits fail at once, whatever UCX's own transports notice; a machine that
// vanishes is found by the link's keep-alive probes.
//
// Views: every view has a UCX worker of its own, so a late message of an older view has nowhere to arrive; the tags on
// the wire carry the view's low bits besides, as {view 8, sender's rank 12, tag 44}.
//
// Waiting: progress, look, and after at most `spin` of yielding sleep on epoll over the UCX worker's event descriptor,
// the links and a wake-up descriptor.
#ifndef BALLAST_WORKER_TRANSPORT_UCX_TRANSPORT_H_
#define BALLAST_WORKER_TRANSPORT_UCX_TRANSPORT_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/transport/mesh_listener.h"
#include "worker/transport/transport.h"
#include "worker/transport/ucx.h"

namespace ballast {

struct UcxTransportOptions {
  // How long a wait yields the core, again and again, before it sleeps. Short: with more processes than cores whoever
  // waits should leave the core to whoever computes.
  absl::Duration spin = absl::Microseconds(20);
};

// Joins `view` through `listener` (see MeshListener::Join for blocking, retries and errors; Internal is UCX's) and
// returns this rank's end. Any thread may call it; the result then belongs to the step thread. Destroying the result
// takes bounded time whether peers live or not, and is this rank's death for the others. `missing` is Join's, or gets
// the rank whose UCX address cannot be used.
absl::StatusOr<std::unique_ptr<Transport>> ConnectUcx(std::shared_ptr<UcxContext> context, MeshListener& listener,
                                                      const MeshView& view, absl::Time deadline,
                                                      UcxTransportOptions options = {},
                                                      std::vector<int>* missing = nullptr);

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_UCX_TRANSPORT_H_
