#include "controller/console/service_call.h"

#include <chrono>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ballast/v1/group_service.pb.h"
#include "ballast/v1/model_service.pb.h"
#include "ballast/v1/plan_service.pb.h"
#include "ballast/v1/telemetry_service.pb.h"
#include "controller/ctl/output.h"
#include "controller/service/on_behalf.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/util/json_util.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/grpc_status.h"

namespace ballast {
namespace {

const google::protobuf::MethodDescriptor* FindMethod(std::string_view path) {
  for (const google::protobuf::FileDescriptor* file :
       {v1::ListGroupsRequest::descriptor()->file(), v1::ListPlansRequest::descriptor()->file(),
        v1::ListModelsRequest::descriptor()->file(), v1::ListEnginesRequest::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        const google::protobuf::MethodDescriptor* method = file->service(s)->method(m);
        if (path != absl::StrCat("/", file->service(s)->full_name(), "/", method->name())) continue;
        return method->client_streaming() || method->server_streaming() ? nullptr : method;
      }
    }
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::string> CallByName(const std::shared_ptr<grpc::Channel>& services, const std::string& method,
                                       const std::string& request, const std::string& caller, absl::Duration timeout) {
  const google::protobuf::MethodDescriptor* descriptor = FindMethod(method);
  if (descriptor == nullptr) return absl::NotFoundError(absl::StrCat(method, ": there is no such unary method"));
  google::protobuf::MessageFactory* factory = google::protobuf::MessageFactory::generated_factory();
  const std::unique_ptr<google::protobuf::Message> message(factory->GetPrototype(descriptor->input_type())->New());
  if (!request.empty()) {
    const auto parsed = google::protobuf::util::JsonStringToMessage(request, message.get());
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(descriptor->input_type()->name(), ": ", parsed.message().ToString()));
    }
  }

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  SetOnBehalf(caller, context);
  grpc::GenericStub stub(services);
  grpc::CompletionQueue queue;
  const grpc::Slice bytes(message->SerializeAsString());
  const std::unique_ptr<grpc::GenericClientAsyncResponseReader> call =
      stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(&bytes, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, &queue);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return FromGrpc(status);

  std::vector<grpc::Slice> slices;
  std::string text;
  if (!answer.Dump(&slices).ok()) return absl::InternalError(absl::StrCat(method, ": no answer"));
  for (const grpc::Slice& slice : slices) text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  const std::unique_ptr<google::protobuf::Message> response(factory->GetPrototype(descriptor->output_type())->New());
  if (!response->ParseFromString(text)) return absl::InternalError(absl::StrCat(method, ": a malformed answer"));
  return ToJson(*response).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace ballast
