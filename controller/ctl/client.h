// The controller's services, as the verbs call them.
#ifndef BALLAST_CONTROLLER_CTL_CLIENT_H_
#define BALLAST_CONTROLLER_CTL_CLIENT_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "ballast/v1/group_service.grpc.pb.h"
#include "ballast/v1/model_service.grpc.pb.h"
#include "ballast/v1/plan_service.grpc.pb.h"
#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "controller/ctl/context.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/status_macros.h"

namespace ballast {

// Calls have the context's deadline. One thread.
class Client {
 public:
  explicit Client(const CtlContext& context)
      : context_(context),
        channel_(context.security.Connect(context.controller, Arguments(), context.tls_server_name)),
        groups_(v1::GroupService::NewStub(channel_)),
        plans_(v1::PlanService::NewStub(channel_)),
        models_(v1::ModelService::NewStub(channel_)),
        telemetry_(v1::TelemetryService::NewStub(channel_)) {}

  // Calls a unary method; the error says who was asked and what.
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(const std::unique_ptr<Stub>& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    grpc::ClientContext call;
    SetDeadline(call);
    Response response;
    BALLAST_RETURN_IF_ERROR(ToStatus((stub.get()->*method)(&call, request, &response), context_.controller));
    return response;
  }

  void SetDeadline(grpc::ClientContext& call) const {
    call.set_deadline(std::chrono::system_clock::now() +
                      std::chrono::milliseconds(static_cast<int64_t>(context_.timeout_seconds * 1000)));
  }

  static absl::Status ToStatus(const grpc::Status& status, const std::string& asked) {
    if (status.ok()) return absl::OkStatus();
    const bool unreachable = status.error_code() == grpc::StatusCode::UNAVAILABLE;
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        unreachable ? absl::StrCat(asked, ": ", status.error_message()) : status.error_message());
  }

  // The group asked for, or the only one there is.
  absl::StatusOr<std::string> GroupName(const std::string& given) {
    if (!given.empty()) return given;
    BALLAST_ASSIGN_OR_RETURN(auto list, Call(groups_, &v1::GroupService::Stub::ListGroups, v1::ListGroupsRequest()));
    if (list.groups_size() == 1) return list.groups(0).name();
    std::string names;
    for (const auto& g : list.groups()) absl::StrAppend(&names, " ", g.name());
    return absl::InvalidArgumentError(
        absl::StrCat("--group is needed: there are ", list.groups_size(), " groups", names.empty() ? "" : ":", names));
  }

  // All workers of a group, whatever the number of pages.
  absl::StatusOr<v1::ListWorkersResponse> Workers(const std::string& group) {
    v1::ListWorkersRequest request;
    request.set_group(group);
    request.set_page_size(1000);
    v1::ListWorkersResponse all;
    do {
      BALLAST_ASSIGN_OR_RETURN(auto page, Call(groups_, &v1::GroupService::Stub::ListWorkers, request));
      all.mutable_workers()->MergeFrom(page.workers());
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    return all;
  }

  std::unique_ptr<v1::GroupService::Stub>& groups() { return groups_; }
  std::unique_ptr<v1::PlanService::Stub>& plans() { return plans_; }
  std::unique_ptr<v1::ModelService::Stub>& models() { return models_; }
  std::unique_ptr<v1::TelemetryService::Stub>& telemetry() { return telemetry_; }

 private:
  // Verbs that go on and on find a controller that was away soon after it is back: gRPC's own pauses grow to two
  // minutes.
  static grpc::ChannelArguments Arguments() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
    return arguments;
  }

  const CtlContext& context_;
  const std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GroupService::Stub> groups_;
  std::unique_ptr<v1::PlanService::Stub> plans_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::TelemetryService::Stub> telemetry_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_CLIENT_H_
