// Asks a server's grpc.health.v1, as Kubernetes' probes do.
#ifndef BALLAST_PROTO_BASE_HEALTH_CLIENT_H_
#define BALLAST_PROTO_BASE_HEALTH_CLIENT_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"

namespace ballast {

// OK: `service` (empty: the server as a whole) says SERVING.
//   Unavailable       it says something else, or cannot be reached
//   NotFound          the server does not know the service
//   DeadlineExceeded  no answer by `deadline`
absl::Status CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service,
                         absl::Time deadline);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_HEALTH_CLIENT_H_
