#include "proto/base/health_client.h"

#include "absl/strings/str_cat.h"
#include "ballast/v1/model_service.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

TEST(CheckHealth, SaysWhatTheServerSays) {
  grpc::EnableDefaultHealthCheckService(true);
  // Without a service of its own the server would not poll.
  v1::ModelService::Service models;
  grpc::ServerBuilder builder;
  builder.RegisterService(&models);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  server->GetHealthCheckService()->SetServingStatus("up", true);
  server->GetHealthCheckService()->SetServingStatus("down", false);
  const auto channel = grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials());
  const auto check = [&](const std::string& service) {
    return CheckHealth(channel, service, Clock::Real().Now() + absl::Minutes(1));
  };
  EXPECT_EQ(check(""), absl::OkStatus());
  EXPECT_EQ(check("up"), absl::OkStatus());
  EXPECT_EQ(check("down").code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(check("down").message()), HasSubstr("down says NOT_SERVING"));
  EXPECT_EQ(check("nowhere").code(), absl::StatusCode::kNotFound);
  server->Shutdown();
  EXPECT_FALSE(check("").ok());
}

}  // namespace
}  // namespace ballast
