#include "controller/console/console_api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "controller/console/assets.h"
#include "controller/console/service_call.h"
#include "controller/ctl/output.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/grpc_status.h"
#include "proto/base/loopback.h"
#include "proto/base/status_macros.h"
#include "proto/base/version.h"

namespace ballast {
namespace {

using json = nlohmann::ordered_json;

constexpr absl::Duration kFresh = absl::Seconds(1);
constexpr absl::Duration kTimeout = absl::Seconds(30);
// The most that ListWorkers and ListEngines give at once.
constexpr int kPage = 1000;

// On every answer. Scripts, styles and pictures are our own files; nothing is sent or shown elsewhere.
constexpr std::pair<const char*, const char*> kHeaders[] = {
    {"Content-Security-Policy",
     "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
     "form-action 'none'; frame-ancestors 'none'"},
    {"X-Content-Type-Options", "nosniff"},
    {"Referrer-Policy", "no-referrer"},
    {"Cross-Origin-Opener-Policy", "same-origin"},
    {"Cross-Origin-Resource-Policy", "same-origin"},
    {"Cache-Control", "no-store"},
};

struct CodeOfHttp {
  absl::StatusCode code;
  const char* name;
  int status;
};
constexpr CodeOfHttp kCodes[] = {
    {absl::StatusCode::kInvalidArgument, "INVALID_ARGUMENT", 400},
    {absl::StatusCode::kPermissionDenied, "PERMISSION_DENIED", 403},
    {absl::StatusCode::kNotFound, "NOT_FOUND", 404},
    {absl::StatusCode::kUnimplemented, "UNIMPLEMENTED", 405},
    {absl::StatusCode::kAlreadyExists, "ALREADY_EXISTS", 409},
    {absl::StatusCode::kAborted, "ABORTED", 409},
    {absl::StatusCode::kFailedPrecondition, "FAILED_PRECONDITION", 409},
    {absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED", 429},
    {absl::StatusCode::kUnavailable, "UNAVAILABLE", 503},
    {absl::StatusCode::kDeadlineExceeded, "DEADLINE_EXCEEDED", 504},
};

HttpResponse Answer(int status, const std::string& type, std::string body) {
  HttpResponse response{.status = status, .headers = {}, .body = std::move(body)};
  response.headers.emplace_back("Content-Type", type);
  response.headers.insert(response.headers.end(), std::begin(kHeaders), std::end(kHeaders));
  return response;
}

std::string Dump(const json& document) { return document.dump(-1, ' ', false, json::error_handler_t::replace); }

HttpResponse JsonAnswer(const absl::StatusOr<std::string>& body) {
  if (body.ok()) return Answer(200, "application/json", *body);
  const auto* const known = std::find_if(std::begin(kCodes), std::end(kCodes),
                                         [&](const CodeOfHttp& c) { return c.code == body.status().code(); });
  const bool found = known != std::end(kCodes);
  return Answer(
      found ? known->status : 500, "application/json",
      Dump({{"error",
             {{"code", found ? known->name : "INTERNAL"}, {"message", std::string(body.status().message())}}}}));
}

std::string TypeOf(std::string_view name) {
  if (name.ends_with(".html")) return "text/html; charset=utf-8";
  if (name.ends_with(".css")) return "text/css; charset=utf-8";
  if (name.ends_with(".svg")) return "image/svg+xml";
  return "text/javascript; charset=utf-8";
}

// The name in a Host header, without its port.
std::string HostName(const std::string& host) {
  const size_t colon = host.rfind(':');
  return colon == std::string::npos || host.ends_with("]") ? host : host.substr(0, colon);
}

absl::Status Refused(const std::string& why) { return absl::PermissionDeniedError(why); }

absl::Status CheckHost(const HttpRequest& request, ConsoleAccess access) {
  const std::string host = request.Header("host");
  if (access != ConsoleAccess::kLoopback || IsLoopback(HostName(host))) return absl::OkStatus();
  return Refused(absl::StrCat("Host: '", host, "' is no name of this machine; open the console as localhost"));
}

// Whether our own page has asked for it.
absl::Status CheckOwnPage(const HttpRequest& request, ConsoleAccess access) {
  if (request.Header("x-ballast-console").empty()) return Refused("X-Ballast-Console: the header is missing");
  if (!absl::StartsWith(request.Header("content-type"), "application/json")) {
    return Refused("Content-Type: want application/json");
  }
  const std::string origin = request.Header("origin"), site = request.Header("sec-fetch-site");
  const std::string own = absl::StrCat(access == ConsoleAccess::kTls ? "https://" : "http://", request.Header("host"));
  if (!origin.empty() && origin != own) {
    return Refused(absl::StrCat("Origin: '", origin, "' is not this console, ", own));
  }
  if (!site.empty() && site != "same-origin" && site != "none") {
    return Refused(absl::StrCat("Sec-Fetch-Site: '", site, "' is not this console"));
  }
  return absl::OkStatus();
}

Caller EffectiveCaller(const HttpRequest& request, ConsoleAccess access) {
  switch (access) {
    case ConsoleAccess::kTls:
      return request.caller;
    case ConsoleAccess::kLoopback:
      return {.name = "", .roles = Role::kOperator};
    case ConsoleAccess::kOpen:
      return {.name = "", .roles = Role::kViewer};
  }
  return {};
}

absl::StatusOr<std::string> Wanted(const HttpRequest& request, const std::string& name) {
  const auto found = request.query.find(name);
  if (found == request.query.end() || found->second.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": is missing"));
  }
  return found->second;
}

absl::StatusOr<int64_t> WantedNumber(const HttpRequest& request, const std::string& name, int64_t absent) {
  const auto found = request.query.find(name);
  int64_t value = absent;
  if (found != request.query.end() && (!absl::SimpleAtoi(found->second, &value) || value < 0)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": '", found->second, "' is no number of at least 0"));
  }
  return value;
}

// Calls a method of a stub.
template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Call(const std::unique_ptr<Stub>& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                              const Request& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kTimeout));
  Response response;
  const grpc::Status status = (stub.get()->*method)(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

absl::Status MayRead(const Caller& caller) { return CheckRole(caller, "/ballast.v1.GroupService/GetLoad"); }

}  // namespace

ConsoleApi::ConsoleApi(ConsoleAccess access, std::shared_ptr<grpc::Channel> services, Clock& clock)
    : access_(access),
      services_(std::move(services)),
      groups_(v1::GroupService::NewStub(services_)),
      plans_(v1::PlanService::NewStub(services_)),
      telemetry_(v1::TelemetryService::NewStub(services_)),
      clock_(clock) {}

HttpResponse ConsoleApi::Handle(const HttpRequest& request) {
  if (absl::Status status = CheckHost(request, access_); !status.ok()) return JsonAnswer(status);
  const Caller caller = EffectiveCaller(request, access_);
  if (request.method == "POST") {
    if (absl::Status status = CheckOwnPage(request, access_); !status.ok()) return JsonAnswer(status);
    return JsonAnswer(Post(request, caller));
  }
  if (request.method != "GET" && request.method != "HEAD") {
    return JsonAnswer(absl::UnimplementedError(absl::StrCat(request.method, ": want GET, HEAD or POST")));
  }
  if (absl::StartsWith(request.path, "/api/")) return JsonAnswer(Get(request, caller));
  const std::string name = request.path == "/" ? "index.html" : request.path.substr(1);
  for (const Asset& asset : ConsoleAssets()) {
    if (asset.name == name) return Answer(200, TypeOf(name), std::string(asset.bytes));
  }
  return JsonAnswer(absl::NotFoundError(absl::StrCat(request.path, ": there is no such page")));
}

absl::StatusOr<std::string> ConsoleApi::Session(const Caller& caller) {
  const bool operates = CheckRole(caller, "/ballast.v1.PlanService/ApprovePlan").ok();
  std::string note;
  if (access_ == ConsoleAccess::kOpen) {
    note =
        "Nothing can be changed here: without TLS nobody is known. Open it on the controller's own machine, or give "
        "the controller certificates.";
  } else if (!operates) {
    note = absl::StrCat("Nothing can be changed here: your certificate's role is ", caller.roles.ToString(),
                        ", and operators change things.");
  }
  return Dump({{"name", caller.name},
               {"role", caller.roles.ToString()},
               {"operates", operates},
               {"note", note},
               {"version", kVersion}});
}

absl::StatusOr<std::string> ConsoleApi::Get(const HttpRequest& request, const Caller& caller) {
  if (request.path == "/api/session") return Session(caller);
  BALLAST_RETURN_IF_ERROR(MayRead(caller));
  if (request.path == "/api/groups") {
    return CallByName(services_, "/ballast.v1.GroupService/ListGroups", "", caller.name, kTimeout);
  }
  if (request.path == "/api/engines") return Engines();
  if (request.path == "/api/plan") {
    v1::GetPlanRequest wanted;
    BALLAST_ASSIGN_OR_RETURN(*wanted.mutable_id(), Wanted(request, "id"));
    BALLAST_ASSIGN_OR_RETURN(const v1::GetPlanResponse plan, Call(plans_, &v1::PlanService::Stub::GetPlan, wanted));
    BALLAST_ASSIGN_OR_RETURN(const std::shared_ptr<const GroupView> view, View(plan.plan().group()));
    return Dump(PlanJson(plan, *view));
  }
  if (request.path != "/api/overview" && request.path != "/api/layer" && request.path != "/api/history") {
    return absl::NotFoundError(absl::StrCat(request.path, ": there is no such view"));
  }
  BALLAST_ASSIGN_OR_RETURN(const std::string group, Wanted(request, "group"));
  if (request.path == "/api/history") {
    BALLAST_ASSIGN_OR_RETURN(const int64_t after, WantedNumber(request, "after_ms", 0));
    MutexLock lock(mu_);
    const auto found = histories_.find(group);
    if (found == histories_.end()) return absl::NotFoundError(absl::StrCat("group: there is no group '", group, "'"));
    return Dump(found->second.ToJson(absl::FromUnixMillis(after)));
  }
  BALLAST_ASSIGN_OR_RETURN(const std::shared_ptr<const GroupView> view, View(group));
  if (request.path == "/api/overview") return Dump(OverviewJson(*view));
  BALLAST_ASSIGN_OR_RETURN(const int64_t layer, WantedNumber(request, "layer", 0));
  BALLAST_ASSIGN_OR_RETURN(
      const json found,
      LayerJson(*view, static_cast<int32_t>(std::min<int64_t>(layer, std::numeric_limits<int32_t>::max()))));
  return Dump(found);
}

absl::StatusOr<std::string> ConsoleApi::Engines() {
  v1::ListEnginesRequest request;
  request.set_page_size(kPage);
  std::vector<v1::EngineStatus> engines;
  do {
    BALLAST_ASSIGN_OR_RETURN(v1::ListEnginesResponse page,
                             Call(telemetry_, &v1::TelemetryService::Stub::ListEngines, request));
    for (v1::EngineStatus& engine : *page.mutable_engines()) engines.push_back(std::move(engine));
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return Dump(EnginesJson(engines, clock_.Now()));
}

absl::StatusOr<std::string> ConsoleApi::Post(const HttpRequest& request, const Caller& caller) {
  absl::string_view method = request.path;
  if (!absl::ConsumePrefix(&method, "/api/call")) {
    return absl::NotFoundError(absl::StrCat(request.path, ": there is nothing to call"));
  }
  BALLAST_RETURN_IF_ERROR(CheckRole(caller, {method.data(), method.size()}));
  return CallByName(services_, std::string(method), request.body, caller.name, kTimeout);
}

absl::StatusOr<std::shared_ptr<const GroupView>> ConsoleApi::View(const std::string& group) {
  std::shared_ptr<const GroupView> before;
  {
    MutexLock lock(mu_);
    if (const auto found = views_.find(group); found != views_.end()) before = found->second;
  }
  const absl::Time now = clock_.Now();
  if (before != nullptr && now < before->at + kFresh) return before;

  auto view = std::make_shared<GroupView>();
  view->at = now;
  v1::GetGroupRequest group_request;
  group_request.set_group(group);
  BALLAST_ASSIGN_OR_RETURN(v1::GetGroupResponse found, Call(groups_, &v1::GroupService::Stub::GetGroup, group_request));
  view->group = std::move(*found.mutable_group());
  if (before != nullptr && before->placement->epoch() == view->group.epoch() &&
      before->placement->shares_version() == view->group.shares_version()) {
    view->placement = before->placement;
  } else {
    v1::GetPlacementRequest placement_request;
    placement_request.set_group(group);
    BALLAST_ASSIGN_OR_RETURN(v1::GetPlacementResponse placement,
                             Call(groups_, &v1::GroupService::Stub::GetPlacement, placement_request));
    view->placement = std::make_shared<v1::Placement>(std::move(*placement.mutable_placement()));
  }
  v1::GetLoadRequest load_request;
  load_request.set_group(group);
  BALLAST_ASSIGN_OR_RETURN(view->load, Call(groups_, &v1::GroupService::Stub::GetLoad, load_request));
  v1::ListWorkersRequest workers_request;
  workers_request.set_group(group);
  workers_request.set_page_size(kPage);
  do {
    BALLAST_ASSIGN_OR_RETURN(v1::ListWorkersResponse page,
                             Call(groups_, &v1::GroupService::Stub::ListWorkers, workers_request));
    for (v1::Worker& worker : *page.mutable_workers()) view->workers.push_back(std::move(worker));
    workers_request.set_page_token(page.next_page_token());
  } while (!workers_request.page_token().empty());

  MutexLock lock(mu_);
  views_[group] = view;
  return view;
}

void ConsoleApi::Sample() {
  const absl::StatusOr<v1::ListGroupsResponse> groups =
      Call(groups_, &v1::GroupService::Stub::ListGroups, v1::ListGroupsRequest());
  // While the store cannot be written the history has a gap.
  if (!groups.ok()) return;
  MutexLock lock(mu_);
  for (const v1::Group& group : groups->groups()) histories_[group.name()].Add(clock_.Now(), group);
}

}  // namespace ballast
