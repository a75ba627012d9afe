// The errors of Transport's waits, worded alike by every implementation.
#ifndef BALLAST_WORKER_TRANSPORT_WAIT_ERRORS_H_
#define BALLAST_WORKER_TRANSPORT_WAIT_ERRORS_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "worker/transport/transport.h"

namespace ballast::internal {

enum class RequestKind { kSend, kReceive };

// A request that has not finished.
struct OpenRequest {
  RequestKind kind = RequestKind::kReceive;
  int peer = 0;
  Tag tag = 0;
};

absl::Status InterruptedError();
absl::Status WokenError();
// `lost` is not empty.
absl::Status LostPeersError(std::span<const int> lost);
// Names the peers, each once, and the oldest request of each.
absl::Status LateError(std::span<const OpenRequest> open);
absl::Status OversizeError(int peer, Tag tag, size_t message_bytes, size_t buffer_bytes);

}  // namespace ballast::internal

#endif  // BALLAST_WORKER_TRANSPORT_WAIT_ERRORS_H_
