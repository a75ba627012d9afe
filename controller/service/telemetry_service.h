// TelemetryService: a thin gRPC service over the engines and, for WatchLoad, the groups. It checks, converts and calls.
#ifndef BALLAST_CONTROLLER_SERVICE_TELEMETRY_SERVICE_H_
#define BALLAST_CONTROLLER_SERVICE_TELEMETRY_SERVICE_H_

#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "controller/service/engine_runtime.h"
#include "controller/service/runtime.h"

namespace ballast {

// What `now` counts beyond `before`, counts of one group or engine: layers, experts and phases. All of `now` where its
// generation is another.
v1::WatchLoadResponse LoadBetween(const EngineRuntime::Counts& before, const EngineRuntime::Counts& now);

// Thread-safe; what it is given must outlive it. Errors as the proto says.
class TelemetryServiceImpl final : public v1::TelemetryService::Service {
 public:
  TelemetryServiceImpl(Runtime& groups, EngineRuntime& engines) : groups_(groups), engines_(engines) {}
  grpc::Status RegisterEngine(grpc::ServerContext* context, const v1::RegisterEngineRequest* request,
                              v1::RegisterEngineResponse* response) override;
  grpc::Status ReportLoad(grpc::ServerContext* context, const v1::ReportLoadRequest* request,
                          v1::ReportLoadResponse* response) override;
  grpc::Status GetEnginePlacement(grpc::ServerContext* context, const v1::GetEnginePlacementRequest* request,
                                  v1::GetEnginePlacementResponse* response) override;
  grpc::Status GetEngine(grpc::ServerContext* context, const v1::GetEngineRequest* request,
                         v1::GetEngineResponse* response) override;
  grpc::Status ListEngines(grpc::ServerContext* context, const v1::ListEnginesRequest* request,
                           v1::ListEnginesResponse* response) override;
  grpc::Status RemoveEngine(grpc::ServerContext* context, const v1::RemoveEngineRequest* request,
                            v1::RemoveEngineResponse* response) override;
  grpc::Status WatchLoad(grpc::ServerContext* context, const v1::WatchLoadRequest* request,
                         grpc::ServerWriter<v1::WatchLoadResponse>* writer) override;

 private:
  // Of a group or an engine.
  absl::StatusOr<EngineRuntime::Counts> Counted(const std::string& group);

  Runtime& groups_;
  EngineRuntime& engines_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_TELEMETRY_SERVICE_H_
