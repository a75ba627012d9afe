// Between absl::Status and gRPC's.
#ifndef BALLAST_PROTO_BASE_GRPC_STATUS_H_
#define BALLAST_PROTO_BASE_GRPC_STATUS_H_

#include <string>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace ballast {

// The codes have the same numbers.
inline grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}
inline absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_GRPC_STATUS_H_
