#include <algorithm>
#include <chrono>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "controller/ctl/client.h"
#include "controller/ctl/context.h"
#include "controller/ctl/sidecar.h"
#include "controller/planner/memory.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct VerbOptions {
  SidecarOptions sidecar;
  std::string format;
  std::string phase = "decode";
  double interval_seconds = 5;
  bool once = false;
  double wait_seconds = 0;
};

class GrpcReporter final : public EngineReporter {
 public:
  explicit GrpcReporter(const CtlContext& context) : client_(context), controller_(context.controller) {}
  absl::StatusOr<v1::RegisterEngineResponse> Register(const v1::RegisterEngineRequest& request) override {
    return client_.Call(client_.telemetry(), &v1::TelemetryService::Stub::RegisterEngine, request);
  }
  absl::StatusOr<v1::ReportLoadResponse> Report(const v1::ReportLoadRequest& request) override {
    return client_.Call(client_.telemetry(), &v1::TelemetryService::Stub::ReportLoad, request);
  }
  absl::StatusOr<v1::GetEnginePlacementResponse> Placement(const v1::GetEnginePlacementRequest& request) override {
    // The wait is the server's; the call takes a little longer.
    grpc::ClientContext call;
    client_.SetDeadline(call);
    call.set_deadline(call.deadline() + std::chrono::seconds(request.wait().seconds()));
    v1::GetEnginePlacementResponse response;
    BALLAST_RETURN_IF_ERROR(
        Client::ToStatus(client_.telemetry()->GetEnginePlacement(&call, request, &response), controller_));
    return response;
  }

 private:
  Client client_;
  const std::string controller_;
};

absl::Status RunSidecar(const VerbOptions& o, CtlContext& context) {
  SidecarOptions options = o.sidecar;
  options.format = EngineFormatOf(o.format);
  BALLAST_RETURN_IF_ERROR(CheckOptions(options.format, options.file));
  options.phase = o.phase == "prefill" ? v1::PHASE_PREFILL : v1::PHASE_DECODE;
  if (options.state_file.empty()) options.state_file = options.folder + "/.ballast-sidecar.json";
  if (options.nodes > options.gpus) {
    return absl::InvalidArgumentError(absl::StrCat("--nodes ", options.nodes, ": there are ", options.gpus, " GPUs"));
  }
  GrpcReporter reporter(context);
  Clock& clock = Clock::Real();
  BALLAST_ASSIGN_OR_RETURN(Sidecar sidecar,
                           Sidecar::Open(options, reporter, static_cast<uint64_t>(absl::ToUnixNanos(clock.Now()))));
  if (!o.once) context.err << "watching " << options.folder << " for dumps of " << options.engine << std::endl;
  std::string last_error;
  // Nobody notifies: it is only for waiting by the clock.
  Mutex mu;
  CondVar never;
  while (true) {
    std::vector<std::string> remarks;
    const absl::Status status = sidecar.Step(o.once, absl::Seconds(o.wait_seconds), clock.Now(), remarks);
    for (const std::string& remark : remarks) context.err << remark << "\n";
    if (o.once) return status;
    // What cannot be mended by waiting ends it.
    if (absl::IsInvalidArgument(status) || absl::IsPermissionDenied(status)) return status;
    const std::string error(status.message());
    if (!status.ok() && error != last_error) context.err << error << "; trying again\n";
    last_error = error;
    context.err.flush();
    const absl::Time next = clock.Now() + absl::Seconds(o.interval_seconds);
    MutexLock lock(mu);
    while (clock.Now() < next) clock.WaitUntil(never, mu, next);
  }
}

}  // namespace

void AddSidecarVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<VerbOptions>();
  CLI::App* verb = app.add_subcommand(
      "sidecar", "Beside another engine: report its dumps to the controller, write the placements that come back");
  verb->footer(
      "Every load file that appears in the folder is reported once (any format that plan reads), also over restarts: "
      "what\n"
      "was done is in --state. The engine takes the placement file at its own time, usually when it starts.\n"
      "Examples:\n"
      "  SGLang with --expert-distribution-recorder-mode stat, 32 GPUs of 9 slots a layer:\n"
      "    ballastctl sidecar --engine deepseek --watch $SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR --gpus 32 --nodes 4 "
      "\\\n"
      "      --slots-per-gpu 9 --experts-per-token 8 --format sglang --placement-out placement.json\n"
      "  Once, from a timer, waiting for the plan:\n"
      "    ballastctl sidecar ... --once --wait 30");
  SidecarOptions& s = o->sidecar;
  verb->add_option("--engine", s.engine, "Its name at the controller, [a-z0-9-]")->type_name("NAME")->required();
  verb->add_option("--watch", s.folder, "Where the engine writes its dumps")->type_name("FOLDER")->required();
  verb->add_option("--gpus", s.gpus, "GPUs of the engine")->type_name("N")->required()->check(CLI::Range(1, 1 << 16));
  verb->add_option("--nodes", s.nodes, "Nodes they are on, in blocks as equal as can be")
      ->type_name("M")
      ->check(CLI::Range(1, 1 << 16));
  verb->add_option("--slots-per-gpu", s.slots_per_gpu, "Slots of each layer on each GPU")
      ->type_name("K")
      ->required()
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--format", o->format, "Of the placement file")
      ->required()
      ->check(CLI::IsMember(EngineFormatNames()));
  verb->add_option("--placement-out", s.placement_file, "The placement file to write")->type_name("FILE")->required();
  verb->add_option("--first-layer", s.file.first_layer, "As for export")->type_name("N")->check(CLI::Range(0, 4096));
  verb->add_option("--experts-per-token", s.experts_per_token, "Experts that a token uses: tells tokens from choices")
      ->type_name("K")
      ->required()
      ->check(CLI::Range(1, 65536));
  verb->add_option("--expert-bytes", s.expert_bytes, "Bytes of one expert's weights, for the cost of moves")
      ->type_name("B")
      ->check(CLI::Range(int64_t{0}, kMaxExpertBytes));
  verb->add_option("--phase", o->phase, "What the dumps are of")
      ->check(CLI::IsMember({"prefill", "decode"}))
      ->capture_default_str();
  verb->add_option("--task", s.task, "Label of the load")->type_name("TASK");
  verb->add_option("--model", s.model, "For operators to read")->type_name("NAME");
  verb->add_option("--reporter", s.reporter, "Another name for each sidecar of one engine")->capture_default_str();
  verb->add_option("--state", s.state_file, "What was done; .ballast-sidecar.json in the folder by default")
      ->type_name("FILE");
  verb->add_flag("--replace", s.replace, "Take this definition in place of another that the controller knows");
  verb->add_option("--interval", o->interval_seconds, "Seconds between two looks at the folder")
      ->check(Between(0.1, 3600.0))
      ->capture_default_str();
  verb->add_flag("--once", o->once, "One look, files as they are, then end");
  verb->add_option("--wait", o->wait_seconds, "Seconds to wait for a new placement at each look")
      ->check(Between(0.0, 60.0))
      ->capture_default_str();
  verb->callback([o, &context] { context.run = [o, &context] { return RunSidecar(*o, context); }; });
}

}  // namespace ballast
