// The controller's own services, called by name: what gRPC clients reach over the network, here in JSON.
#ifndef BALLAST_CONTROLLER_CONSOLE_SERVICE_CALL_H_
#define BALLAST_CONTROLLER_CONSOLE_SERVICE_CALL_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"

namespace ballast {

// Calls a unary method of GroupService, PlanService, ModelService or TelemetryService; `method` is
// "/ballast.v1.PlanService/GetPlan", `request` its request as JSON (empty: all defaults), the answer its response as
// JSON with the protos' field names. `caller` is for whom: plans keep it. Roles are the caller's business. Thread-safe.
//   NotFound         there is no such unary method.
//   InvalidArgument  the request is no JSON of its message.   others  as the method.
absl::StatusOr<std::string> CallByName(const std::shared_ptr<grpc::Channel>& services, const std::string& method,
                                       const std::string& request, const std::string& caller, absl::Duration timeout);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CONSOLE_SERVICE_CALL_H_
