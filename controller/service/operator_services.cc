#include "controller/service/operator_services.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/planner/grouping/reasons.h"
#include "controller/planner/score.h"
#include "controller/rollout/traffic_effect.h"
#include "controller/service/on_behalf.h"
#include "controller/service/pages.h"
#include "controller/service/planning.h"
#include "controller/store/records.pb.h"
#include "proto/base/grpc_status.h"
#include "proto/base/status_macros.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

// Of calls without a deadline of their own; and at most so long in any case.
constexpr absl::Duration kLongestCall = absl::Minutes(2);
// How often a watcher that has nothing to see looks whether its caller is still there.
constexpr absl::Duration kWatchLook = absl::Milliseconds(250);

absl::Time Deadline(const grpc::ServerContext& context, Runtime& runtime) {
  return std::min(absl::FromChrono(context.deadline()), runtime.clock().Now() + kLongestCall);
}

absl::Status CheckGiven(std::string_view field, const std::string& value) {
  return value.empty() ? absl::InvalidArgumentError(absl::StrCat(std::string(field), ": is empty")) : absl::OkStatus();
}

// Who calls, for the histories of plans.
std::string By(const grpc::ServerContext& call) {
  std::string name = CallerName(call);
  return name.empty() ? "an operator" : name;
}

// The group part of a plan's id.
std::string GroupOf(const std::string& plan) { return plan.substr(0, plan.rfind('-')); }

absl::Status NoPlan(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("id: there is no plan '", id, "'"));
}

// Calls on the group of plan `id`.
template <typename T>
absl::StatusOr<T> CallOnPlan(Runtime& runtime, const std::string& id, absl::Time deadline,
                             std::function<absl::StatusOr<T>(Group&, absl::Time, Effects&)> work) {
  BALLAST_RETURN_IF_ERROR(CheckGiven("id", id));
  const std::vector<std::string> groups = runtime.group_names();
  if (std::find(groups.begin(), groups.end(), GroupOf(id)) == groups.end()) return NoPlan(id);
  return runtime.Call<T>(GroupOf(id), deadline, std::move(work));
}

absl::StatusOr<v1::Group> Describe(Runtime& runtime, const std::string& group, absl::Time deadline) {
  BALLAST_RETURN_IF_ERROR(CheckGiven("group", group));
  return runtime.Call<v1::Group>(
      group, deadline,
      [](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<v1::Group> { return g.Describe(now); });
}

absl::StatusOr<v1::Group> SetPaused(Runtime& runtime, const std::string& group, bool paused, absl::Time deadline) {
  BALLAST_RETURN_IF_ERROR(CheckGiven("group", group));
  return runtime.Call<v1::Group>(group, deadline,
                                 [paused](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<v1::Group> {
                                   g.SetPaused(paused, now, effects);
                                   return g.Describe(now);
                                 });
}

absl::StatusOr<v1::Worker> SetDrained(Runtime& runtime, const std::string& group, const std::string& worker,
                                      bool drained, absl::Time deadline) {
  BALLAST_RETURN_IF_ERROR(CheckGiven("group", group));
  BALLAST_RETURN_IF_ERROR(CheckGiven("worker", worker));
  return runtime.Call<v1::Worker>(group, deadline, [=](Group& g, absl::Time now, Effects& effects) {
    return drained ? g.DrainWorker(worker, now, effects) : g.UndrainWorker(worker, now, effects);
  });
}

// Puts a StatusOr's value into `field`.
template <typename T>
grpc::Status Answer(absl::StatusOr<T> value, T* field) {
  if (!value.ok()) return ToGrpc(value.status());
  *field = *std::move(value);
  return grpc::Status::OK;
}

// Puts the reasons for the replicas of `expert` in place of the plan's, by the routes of the window now.
absl::Status Explain(Runtime& runtime, const v1::ExpertRef& expert, absl::Time deadline,
                     v1::GetPlanResponse& response) {
  if (!response.has_placement()) {
    return absl::FailedPreconditionError(
        absl::StrCat("expert: the waves of plan ", response.plan().id(), " are not known"));
  }
  BALLAST_ASSIGN_OR_RETURN(const Placement after, FromProto(response.placement()));
  for (const auto& [field, value, limit] : {std::tuple("layer", expert.layer(), after.num_layers),
                                            std::tuple("expert", expert.expert(), after.num_experts)}) {
    if (value >= 0 && value < limit) continue;
    return absl::InvalidArgumentError(absl::StrCat("expert.", field, ": ", value, " is not in 0 to ", limit - 1));
  }
  BALLAST_ASSIGN_OR_RETURN(const Routes routes, runtime.Call<Routes>(response.plan().group(), deadline,
                                                                     [](Group& g, absl::Time now,
                                                                        Effects& effects) -> absl::StatusOr<Routes> {
                                                                       if (g.placement().epoch.value() == 0)
                                                                         return Routes();
                                                                       return g.SampledRoutes();
                                                                     }));
  if (routes.tasks.empty() || routes.layers != after.num_layers || routes.experts != after.num_experts) {
    return absl::FailedPreconditionError("expert: the load window holds no routes of tokens");
  }
  Topology topology;
  for (const std::string& worker : after.workers) topology.workers.push_back({.name = worker});
  // Whether the plan has brought it there is known of the moves.
  std::set<std::string> moved;
  for (const v1::Move& move : response.moves()) {
    if (move.layer() == expert.layer() && move.expert() == expert.expert()) moved.insert(move.destination());
  }
  response.clear_reasons();
  for (ReplicaReason& reason : ReasonsOf({expert.layer(), expert.expert()}, {}, Onto(after, topology), routes,
                                         static_cast<int32_t>(after.workers.size()))) {
    reason.moved = moved.contains(after.workers[reason.worker]);
    *response.add_reasons() = ToProto(reason, after.workers);
  }
  return absl::OkStatus();
}

// Groups to ask: `group`, or all when it is empty.
absl::StatusOr<std::vector<std::string>> GroupsOf(Runtime& runtime, const std::string& group) {
  std::vector<std::string> names = runtime.group_names();
  if (group.empty()) return names;
  if (std::find(names.begin(), names.end(), group) == names.end()) {
    return absl::NotFoundError(absl::StrCat("group: there is no group '", group, "'"));
  }
  return std::vector<std::string>{group};
}

}  // namespace

grpc::Status GroupServiceImpl::ListGroups(grpc::ServerContext* context, const v1::ListGroupsRequest* request,
                                          v1::ListGroupsResponse* response) {
  for (const std::string& name : runtime_.group_names()) {
    absl::StatusOr<v1::Group> group = Describe(runtime_, name, Deadline(*context, runtime_));
    if (!group.ok()) return ToGrpc(group.status());
    *response->add_groups() = *std::move(group);
  }
  return grpc::Status::OK;
}

grpc::Status GroupServiceImpl::GetGroup(grpc::ServerContext* context, const v1::GetGroupRequest* request,
                                        v1::GetGroupResponse* response) {
  return Answer(Describe(runtime_, request->group(), Deadline(*context, runtime_)), response->mutable_group());
}

grpc::Status GroupServiceImpl::GetPlacement(grpc::ServerContext* context, const v1::GetPlacementRequest* request,
                                            v1::GetPlacementResponse* response) {
  if (absl::Status status = CheckGiven("group", request->group()); !status.ok()) return ToGrpc(status);
  return Answer(
      runtime_.Call<v1::Placement>(request->group(), Deadline(*context, runtime_),
                                   [](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<v1::Placement> {
                                     return ToProto(g.placement());
                                   }),
      response->mutable_placement());
}

grpc::Status GroupServiceImpl::ListWorkers(grpc::ServerContext* context, const v1::ListWorkersRequest* request,
                                           v1::ListWorkersResponse* response) {
  const absl::StatusOr<std::vector<std::string>> groups = GroupsOf(runtime_, request->group());
  if (!groups.ok()) return ToGrpc(groups.status());
  std::vector<v1::Worker> workers;
  std::vector<std::string> keys;
  for (const std::string& group : *groups) {
    const absl::StatusOr<std::vector<v1::Worker>> found = runtime_.Call<std::vector<v1::Worker>>(
        group, Deadline(*context, runtime_),
        [](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<std::vector<v1::Worker>> {
          return g.Workers(now);
        });
    if (!found.ok()) return ToGrpc(found.status());
    for (const v1::Worker& worker : *found) {
      // Workers outside the view come last.
      keys.push_back(absl::StrFormat("%s/%010d/%s", group,
                                     worker.rank() < 0 ? std::numeric_limits<int32_t>::max() : worker.rank(),
                                     worker.name()));
      workers.push_back(worker);
    }
  }
  const absl::StatusOr<Page> page = CutPage(keys, request->page_size(), request->page_token());
  if (!page.ok()) return ToGrpc(page.status());
  for (size_t i = page->begin; i < page->end; ++i) *response->add_workers() = std::move(workers[i]);
  response->set_next_page_token(page->next_token);
  return grpc::Status::OK;
}

grpc::Status GroupServiceImpl::GetLoad(grpc::ServerContext* context, const v1::GetLoadRequest* request,
                                       v1::GetLoadResponse* response) {
  if (absl::Status status = CheckGiven("group", request->group()); !status.ok()) return ToGrpc(status);
  LoadWindow::Selection selection;
  if (request->phase() != v1::PHASE_UNSPECIFIED) {
    if (!v1::Phase_IsValid(request->phase())) {
      return ToGrpc(
          absl::InvalidArgumentError(absl::StrCat("phase: ", static_cast<int>(request->phase()), " is no phase")));
    }
    selection.phase = request->phase();
  }
  if (request->has_task()) selection.task = request->task();
  if (request->has_window()) {
    const absl::Duration window =
        absl::Seconds(request->window().seconds()) + absl::Nanoseconds(request->window().nanos());
    if (window <= absl::ZeroDuration()) {
      return ToGrpc(
          absl::InvalidArgumentError(absl::StrCat("window: ", absl::FormatDuration(window), " is not above 0")));
    }
    selection.last = window;
  }
  return Answer(runtime_.Call<v1::GetLoadResponse>(
                    request->group(), Deadline(*context, runtime_),
                    [selection](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<v1::GetLoadResponse> {
                      return g.Load(selection, now).value_or(v1::GetLoadResponse());
                    }),
                response);
}

grpc::Status GroupServiceImpl::SetMode(grpc::ServerContext* context, const v1::SetModeRequest* request,
                                       v1::SetModeResponse* response) {
  if (absl::Status status = CheckGiven("group", request->group()); !status.ok()) return ToGrpc(status);
  const v1::GroupMode mode = request->mode();
  if (mode == v1::GROUP_MODE_UNSPECIFIED || !v1::GroupMode_IsValid(mode)) {
    return ToGrpc(absl::InvalidArgumentError(
        absl::StrCat("mode: ", static_cast<int>(mode), " is none of OBSERVE, APPROVE, AUTO")));
  }
  return Answer(
      runtime_.Call<v1::Group>(request->group(), Deadline(*context, runtime_),
                               [mode](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<v1::Group> {
                                 g.SetMode(mode, now, effects);
                                 return g.Describe(now);
                               }),
      response->mutable_group());
}

grpc::Status GroupServiceImpl::SetPolicy(grpc::ServerContext* context, const v1::SetPolicyRequest* request,
                                         v1::SetPolicyResponse* response) {
  if (absl::Status status = CheckGiven("group", request->group()); !status.ok()) return ToGrpc(status);
  if (absl::Status status = CheckPolicy(request->policy()); !status.ok()) return ToGrpc(status);
  return Answer(runtime_.Call<v1::Group>(request->group(), Deadline(*context, runtime_),
                                         [policy = request->policy()](Group& g, absl::Time now,
                                                                      Effects& effects) -> absl::StatusOr<v1::Group> {
                                           g.SetPolicy(policy, now, effects);
                                           return g.Describe(now);
                                         }),
                response->mutable_group());
}

grpc::Status GroupServiceImpl::Pause(grpc::ServerContext* context, const v1::PauseRequest* request,
                                     v1::PauseResponse* response) {
  return Answer(SetPaused(runtime_, request->group(), true, Deadline(*context, runtime_)), response->mutable_group());
}

grpc::Status GroupServiceImpl::Resume(grpc::ServerContext* context, const v1::ResumeRequest* request,
                                      v1::ResumeResponse* response) {
  return Answer(SetPaused(runtime_, request->group(), false, Deadline(*context, runtime_)), response->mutable_group());
}

grpc::Status GroupServiceImpl::DrainWorker(grpc::ServerContext* context, const v1::DrainWorkerRequest* request,
                                           v1::DrainWorkerResponse* response) {
  return Answer(SetDrained(runtime_, request->group(), request->worker(), true, Deadline(*context, runtime_)),
                response->mutable_worker());
}

grpc::Status GroupServiceImpl::UndrainWorker(grpc::ServerContext* context, const v1::UndrainWorkerRequest* request,
                                             v1::UndrainWorkerResponse* response) {
  return Answer(SetDrained(runtime_, request->group(), request->worker(), false, Deadline(*context, runtime_)),
                response->mutable_worker());
}

grpc::Status GroupServiceImpl::WatchGroup(grpc::ServerContext* context, const v1::WatchGroupRequest* request,
                                          grpc::ServerWriter<v1::WatchGroupResponse>* writer) {
  if (absl::Status status = CheckGiven("group", request->group()); !status.ok()) return ToGrpc(status);
  uint64_t seen = 0;
  while (!context->IsCancelled()) {
    absl::StatusOr<std::optional<Runtime::Watched>> watched =
        runtime_.Watch(request->group(), seen, runtime_.clock().Now() + kWatchLook);
    if (!watched.ok()) return ToGrpc(watched.status());
    if (!watched->has_value()) continue;
    Runtime::Watched& news = **watched;
    seen = news.version;
    v1::WatchGroupResponse response;
    *response.mutable_group() = std::move(news.group);
    response.mutable_events()->Assign(news.events.begin(), news.events.end());
    if (!writer->Write(response)) break;
  }
  return grpc::Status::CANCELLED;
}

grpc::Status PlanServiceImpl::CreatePlan(grpc::ServerContext* context, const v1::CreatePlanRequest* request,
                                         v1::CreatePlanResponse* response) {
  absl::Status status = CheckGiven("group", request->group());
  if (status.ok() && !request->policy().empty()) status = CheckPolicy(request->policy());
  if (!status.ok()) return ToGrpc(status);
  absl::StatusOr<v1::GetPlanResponse> plan = runtime_.CreatePlan(*request, Deadline(*context, runtime_));
  if (!plan.ok()) return ToGrpc(plan.status());
  *response->mutable_plan() = std::move(*plan->mutable_plan());
  return grpc::Status::OK;
}

grpc::Status PlanServiceImpl::GetPlan(grpc::ServerContext* context, const v1::GetPlanRequest* request,
                                      v1::GetPlanResponse* response) {
  const std::string id = request->id();
  const grpc::Status status =
      Answer(CallOnPlan<v1::GetPlanResponse>(
                 runtime_, id, Deadline(*context, runtime_),
                 [id](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<v1::GetPlanResponse> {
                   std::optional<v1::GetPlanResponse> plan = g.Plan(id);
                   if (!plan.has_value()) return NoPlan(id);
                   return *std::move(plan);
                 }),
             response);
  if (!status.ok()) return status;
  const auto waves = runtime_.store().List(absl::StrCat("wave/", id, "/"));
  if (!waves.ok()) return ToGrpc(waves.status());
  for (const auto& [key, value] : *waves) {
    store::WaveRecord wave;
    if (!wave.ParseFromString(value)) return ToGrpc(absl::DataLossError(absl::StrCat("store: record '", key, "'")));
    response->add_wave_moves(wave.moves_size());
    response->mutable_moves()->MergeFrom(wave.moves());
    *response->mutable_placement() = std::move(*wave.mutable_placement());
    response->mutable_placement()->set_epoch(response->plan().target_epoch());
  }
  if (!request->has_expert()) return grpc::Status::OK;
  return ToGrpc(Explain(runtime_, request->expert(), Deadline(*context, runtime_), *response));
}

grpc::Status PlanServiceImpl::ListPlans(grpc::ServerContext* context, const v1::ListPlansRequest* request,
                                        v1::ListPlansResponse* response) {
  const absl::StatusOr<std::vector<std::string>> groups = GroupsOf(runtime_, request->group());
  if (!groups.ok()) return ToGrpc(groups.status());
  // Newest first: keys ascend as creation times descend.
  std::map<std::string, v1::Plan> plans;
  for (const std::string& group : *groups) {
    const absl::StatusOr<std::vector<v1::Plan>> found = runtime_.Call<std::vector<v1::Plan>>(
        group, Deadline(*context, runtime_),
        [](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<std::vector<v1::Plan>> { return g.Plans(); });
    if (!found.ok()) return ToGrpc(found.status());
    for (size_t i = 0; i < found->size(); ++i) {
      const v1::Plan& plan = (*found)[i];
      const uint64_t at = absl::ToUnixNanos(FromProto(plan.created()));
      // Plans of one moment and group: the id's number decides, which `found` is sorted by.
      const std::string& id = plan.id();
      const uint64_t number = std::strtoull(id.c_str() + id.rfind('-') + 1, nullptr, 10);
      const uint64_t top = std::numeric_limits<uint64_t>::max();
      plans[absl::StrFormat("%020u/%020u/%s", top - at, top - number, group)] = plan;
    }
  }
  std::vector<std::string> keys;
  for (const auto& [key, plan] : plans) keys.push_back(key);
  const absl::StatusOr<Page> page = CutPage(keys, request->page_size(), request->page_token());
  if (!page.ok()) return ToGrpc(page.status());
  for (size_t i = page->begin; i < page->end; ++i) *response->add_plans() = std::move(plans.at(keys[i]));
  response->set_next_page_token(page->next_token);
  return grpc::Status::OK;
}

grpc::Status PlanServiceImpl::ApprovePlan(grpc::ServerContext* context, const v1::ApprovePlanRequest* request,
                                          v1::ApprovePlanResponse* response) {
  return Answer(
      CallOnPlan<v1::Plan>(runtime_, request->id(), Deadline(*context, runtime_),
                           [id = request->id(), by = By(*context)](Group& g, absl::Time now, Effects& effects) {
                             return g.Approve(id, by, now, effects);
                           }),
      response->mutable_plan());
}

grpc::Status PlanServiceImpl::RejectPlan(grpc::ServerContext* context, const v1::RejectPlanRequest* request,
                                         v1::RejectPlanResponse* response) {
  return Answer(CallOnPlan<v1::Plan>(
                    runtime_, request->id(), Deadline(*context, runtime_),
                    [id = request->id(), reason = request->reason(), by = By(*context)](
                        Group& g, absl::Time now, Effects& effects) { return g.Reject(id, reason, by, now, effects); }),
                response->mutable_plan());
}

grpc::Status PlanServiceImpl::Rollback(grpc::ServerContext* context, const v1::RollbackRequest* request,
                                       v1::RollbackResponse* response) {
  if (absl::Status status = CheckGiven("group", request->group()); !status.ok()) return ToGrpc(status);
  return Answer(runtime_.Call<v1::Plan>(
                    request->group(), Deadline(*context, runtime_),
                    [reason = request->reason(), by = By(*context)](Group& g, absl::Time now, Effects& effects) {
                      return g.Rollback(reason, by, now, effects);
                    }),
                response->mutable_plan());
}

namespace {

absl::StatusOr<std::vector<v1::Model>> Models(Runtime& runtime, absl::Time deadline) {
  std::map<std::pair<std::string, std::string>, v1::Model> models;
  for (const std::string& name : runtime.group_names()) {
    BALLAST_ASSIGN_OR_RETURN(const v1::Group group, Describe(runtime, name, deadline));
    if (!group.has_model()) continue;
    v1::Model& model = models[{group.model().name(), group.model().fingerprint()}];
    *model.mutable_identity() = group.model();
    model.add_groups(name);
  }
  std::vector<v1::Model> sorted;
  for (auto& [key, model] : models) sorted.push_back(std::move(model));
  return sorted;
}

}  // namespace

grpc::Status ModelServiceImpl::ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                                          v1::ListModelsResponse* response) {
  const absl::StatusOr<std::vector<v1::Model>> models = Models(runtime_, Deadline(*context, runtime_));
  if (!models.ok()) return ToGrpc(models.status());
  response->mutable_models()->Assign(models->begin(), models->end());
  return grpc::Status::OK;
}

grpc::Status ModelServiceImpl::GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                                        v1::GetModelResponse* response) {
  if (absl::Status status = CheckGiven("name", request->name()); !status.ok()) return ToGrpc(status);
  const absl::StatusOr<std::vector<v1::Model>> models = Models(runtime_, Deadline(*context, runtime_));
  if (!models.ok()) return ToGrpc(models.status());
  for (const v1::Model& model : *models) {
    if (model.identity().name() != request->name()) continue;
    *response->mutable_model() = model;
    return grpc::Status::OK;
  }
  return ToGrpc(absl::NotFoundError(absl::StrCat("name: there is no model '", request->name(), "'")));
}

}  // namespace ballast
