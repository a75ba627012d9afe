// Calls that this process makes of its own services for somebody else: the console for a person in a browser.
#ifndef BALLAST_CONTROLLER_SERVICE_ON_BEHALF_H_
#define BALLAST_CONTROLLER_SERVICE_ON_BEHALF_H_

#include <string>

#include "grpcpp/client_context.h"
#include "grpcpp/server_context.h"
#include "proto/base/tls.h"

namespace ballast {

// "-bin": gRPC ends the process over other metadata with a value that is not ASCII, as names may be.
inline constexpr char kOnBehalf[] = "ballast-on-behalf-bin";

// Empty: nobody in particular.
inline void SetOnBehalf(const std::string& caller, grpc::ClientContext& call) {
  if (!caller.empty()) call.AddMetadata(kOnBehalf, caller);
}

// Who calls, by the certificate or, from within this process, as the console says. Empty: not known.
inline std::string CallerName(const grpc::ServerContext& call) {
  const std::string peer = call.peer();
  // Only calls from within the process come from no address.
  if (peer.starts_with("ipv4:") || peer.starts_with("ipv6:") || peer.starts_with("unix:")) return CallerOf(call).name;
  const auto found = call.client_metadata().find(kOnBehalf);
  return found == call.client_metadata().end() ? "" : std::string(found->second.data(), found->second.size());
}

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_ON_BEHALF_H_
