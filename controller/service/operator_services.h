// What operators call: thin gRPC services over the runtime. They check, convert and call.
#ifndef BALLAST_CONTROLLER_SERVICE_OPERATOR_SERVICES_H_
#define BALLAST_CONTROLLER_SERVICE_OPERATOR_SERVICES_H_

#include "ballast/v1/group_service.grpc.pb.h"
#include "ballast/v1/model_service.grpc.pb.h"
#include "ballast/v1/plan_service.grpc.pb.h"
#include "controller/service/runtime.h"

namespace ballast {

// All thread-safe; `runtime` must outlive them. Errors as the protos say.
class GroupServiceImpl final : public v1::GroupService::Service {
 public:
  explicit GroupServiceImpl(Runtime& runtime) : runtime_(runtime) {}
  grpc::Status ListGroups(grpc::ServerContext* context, const v1::ListGroupsRequest* request,
                          v1::ListGroupsResponse* response) override;
  grpc::Status GetGroup(grpc::ServerContext* context, const v1::GetGroupRequest* request,
                        v1::GetGroupResponse* response) override;
  grpc::Status GetPlacement(grpc::ServerContext* context, const v1::GetPlacementRequest* request,
                            v1::GetPlacementResponse* response) override;
  grpc::Status ListWorkers(grpc::ServerContext* context, const v1::ListWorkersRequest* request,
                           v1::ListWorkersResponse* response) override;
  grpc::Status GetLoad(grpc::ServerContext* context, const v1::GetLoadRequest* request,
                       v1::GetLoadResponse* response) override;
  grpc::Status SetMode(grpc::ServerContext* context, const v1::SetModeRequest* request,
                       v1::SetModeResponse* response) override;
  grpc::Status SetPolicy(grpc::ServerContext* context, const v1::SetPolicyRequest* request,
                         v1::SetPolicyResponse* response) override;
  grpc::Status Pause(grpc::ServerContext* context, const v1::PauseRequest* request,
                     v1::PauseResponse* response) override;
  grpc::Status Resume(grpc::ServerContext* context, const v1::ResumeRequest* request,
                      v1::ResumeResponse* response) override;
  grpc::Status DrainWorker(grpc::ServerContext* context, const v1::DrainWorkerRequest* request,
                           v1::DrainWorkerResponse* response) override;
  grpc::Status UndrainWorker(grpc::ServerContext* context, const v1::UndrainWorkerRequest* request,
                             v1::UndrainWorkerResponse* response) override;
  grpc::Status WatchGroup(grpc::ServerContext* context, const v1::WatchGroupRequest* request,
                          grpc::ServerWriter<v1::WatchGroupResponse>* writer) override;

 private:
  Runtime& runtime_;
};

class PlanServiceImpl final : public v1::PlanService::Service {
 public:
  explicit PlanServiceImpl(Runtime& runtime) : runtime_(runtime) {}
  grpc::Status CreatePlan(grpc::ServerContext* context, const v1::CreatePlanRequest* request,
                          v1::CreatePlanResponse* response) override;
  grpc::Status GetPlan(grpc::ServerContext* context, const v1::GetPlanRequest* request,
                       v1::GetPlanResponse* response) override;
  grpc::Status ListPlans(grpc::ServerContext* context, const v1::ListPlansRequest* request,
                         v1::ListPlansResponse* response) override;
  grpc::Status ApprovePlan(grpc::ServerContext* context, const v1::ApprovePlanRequest* request,
                           v1::ApprovePlanResponse* response) override;
  grpc::Status RejectPlan(grpc::ServerContext* context, const v1::RejectPlanRequest* request,
                          v1::RejectPlanResponse* response) override;
  grpc::Status Rollback(grpc::ServerContext* context, const v1::RollbackRequest* request,
                        v1::RollbackResponse* response) override;

 private:
  Runtime& runtime_;
};

class ModelServiceImpl final : public v1::ModelService::Service {
 public:
  explicit ModelServiceImpl(Runtime& runtime) : runtime_(runtime) {}
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                        v1::GetModelResponse* response) override;

 private:
  Runtime& runtime_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_OPERATOR_SERVICES_H_
