// What the console answers: its pages, compact views to draw from, and the controller's services in JSON.
//
//   GET  /                                 the pages
//   GET  /api/session                      who the caller is and what he may do
//   GET  /api/groups                       ListGroups
//   GET  /api/engines                      EnginesJson
//   GET  /api/overview?group=G             OverviewJson
//   GET  /api/layer?group=G&layer=L        LayerJson
//   GET  /api/history?group=G[&after_ms=T] History::ToJson
//   GET  /api/plan?id=ID                   PlanJson
//   POST /api/call/SERVICE/METHOD          any unary method, request and response as JSON; wants the header
//                                          X-Ballast-Console and Content-Type: application/json
//
// Errors are {error: {code, message}} with the gRPC code's name and an HTTP status to match.
//
// What keeps other sites' pages out: nothing is answered under a host name that is not this server's (DNS rebinding),
// nothing is done without a header that only our own pages may set, or from an origin that is not ours, and no answer
// may be framed, or read across origins. Roles are CheckRole's, method by method.
#ifndef BALLAST_CONTROLLER_CONSOLE_CONSOLE_API_H_
#define BALLAST_CONTROLLER_CONSOLE_CONSOLE_API_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "ballast/v1/group_service.grpc.pb.h"
#include "ballast/v1/plan_service.grpc.pb.h"
#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "controller/console/http_server.h"
#include "controller/console/views.h"
#include "grpcpp/channel.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"

namespace ballast {

// How the console is reached, which decides who a caller is.
enum class ConsoleAccess {
  // HTTPS: the certificate says.
  kTls,
  // Plain, on this machine alone: everybody is an operator, under names of this machine.
  kLoopback,
  // Plain and from anywhere: everybody is a viewer.
  kOpen,
};

// Thread-safe.
class ConsoleApi {
 public:
  // `services`: a channel to the controller's services that checks no roles. Views are at most a second old.
  ConsoleApi(ConsoleAccess access, std::shared_ptr<grpc::Channel> services, Clock& clock);

  HttpResponse Handle(const HttpRequest& request) BALLAST_EXCLUDES(mu_);

  // Takes a sample of every group's history.
  void Sample() BALLAST_EXCLUDES(mu_);

 private:
  absl::StatusOr<std::string> Get(const HttpRequest& request, const Caller& caller) BALLAST_EXCLUDES(mu_);
  absl::StatusOr<std::string> Post(const HttpRequest& request, const Caller& caller);
  absl::StatusOr<std::shared_ptr<const GroupView>> View(const std::string& group) BALLAST_EXCLUDES(mu_);
  absl::StatusOr<std::string> Engines();
  absl::StatusOr<std::string> Session(const Caller& caller);

  const ConsoleAccess access_;
  const std::shared_ptr<grpc::Channel> services_;
  const std::unique_ptr<v1::GroupService::Stub> groups_;
  const std::unique_ptr<v1::PlanService::Stub> plans_;
  const std::unique_ptr<v1::TelemetryService::Stub> telemetry_;
  Clock& clock_;

  Mutex mu_;
  std::map<std::string, std::shared_ptr<const GroupView>> views_ BALLAST_GUARDED_BY(mu_);
  std::map<std::string, History> histories_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CONSOLE_CONSOLE_API_H_
