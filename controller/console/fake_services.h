// A group that is not there: its services, without a controller. Useful for: tests of the console at any size.
#ifndef BALLAST_CONTROLLER_CONSOLE_FAKE_SERVICES_H_
#define BALLAST_CONTROLLER_CONSOLE_FAKE_SERVICES_H_

#include <memory>
#include <string>
#include <vector>

#include "ballast/v1/group_service.grpc.pb.h"
#include "ballast/v1/plan_service.grpc.pb.h"
#include "ballast/v1/telemetry_service.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/server.h"
#include "proto/base/mutex.h"

namespace ballast {

// Group "big" of one shape: every GPU has at least one replica of each layer, of load that has drifted; plan "big-1"
// waits, which gives hot experts one replica more. And two engines: "sgl", planned for five minutes ago, and "trt",
// which has reported nothing. Thread-safe.
class FakeServices {
 public:
  struct Shape {
    int layers = 2;
    int experts = 8;
    int gpus = 4;
  };
  explicit FakeServices(const Shape& shape);

  // A channel to them, as the console has it.
  std::shared_ptr<grpc::Channel> Channel();

  // Where others reach them, "127.0.0.1:PORT".
  const std::string& address() const { return address_; }

  // What was called, oldest first: "ApprovePlan big-1 by ann".
  std::vector<std::string> calls() const;

 private:
  class Groups;
  class Plans;
  class Telemetry;
  struct State;

  std::shared_ptr<State> state_;
  std::shared_ptr<v1::GroupService::Service> groups_;
  std::shared_ptr<v1::PlanService::Service> plans_;
  std::shared_ptr<v1::TelemetryService::Service> telemetry_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CONSOLE_FAKE_SERVICES_H_
