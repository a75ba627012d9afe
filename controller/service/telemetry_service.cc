#include "controller/service/telemetry_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/group/group.h"
#include "controller/service/pages.h"
#include "proto/base/grpc_status.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr absl::Duration kLongestWait = absl::Minutes(1);
constexpr absl::Duration kLeastInterval = absl::Milliseconds(100);
constexpr absl::Duration kMostInterval = absl::Hours(1);
constexpr absl::Duration kUsualInterval = absl::Seconds(10);
// How often one that waits looks whether its caller is still there.
constexpr absl::Duration kLook = absl::Milliseconds(250);
// Of a look at a group's counts.
constexpr absl::Duration kLongestCall = absl::Seconds(30);

absl::Duration Span(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

template <typename T>
grpc::Status Answer(absl::StatusOr<T> value, T* out) {
  if (!value.ok()) return ToGrpc(value.status());
  *out = *std::move(value);
  return grpc::Status::OK;
}

// `before` is empty or as long as `now`.
void AddPhase(v1::Phase phase, const EngineRuntime::Counts& shape, const std::vector<double>& before,
              const std::vector<double>& now, v1::WatchLoadResponse& response) {
  v1::PhaseTokens tokens;
  tokens.set_phase(phase);
  bool any = false;
  for (int32_t l = 0; l < shape.layers; ++l) {
    v1::LayerTokens& layer = *tokens.add_layers();
    for (int32_t e = 0; e < shape.experts; ++e) {
      const size_t i = static_cast<size_t>(l) * shape.experts + e;
      const double more = now[i] - (before.empty() ? 0 : before[i]);
      any = any || more > 0;
      layer.add_tokens(more);
    }
  }
  if (any) *response.add_phases() = std::move(tokens);
}

}  // namespace

v1::WatchLoadResponse LoadBetween(const EngineRuntime::Counts& before, const EngineRuntime::Counts& now) {
  v1::WatchLoadResponse response;
  response.set_num_layers(now.layers);
  response.set_num_experts(now.experts);
  const EngineRuntime::Counts nothing;
  const EngineRuntime::Counts& from = before.generation == now.generation ? before : nothing;
  AddPhase(v1::PHASE_PREFILL, now, from.prefill, now.prefill, response);
  AddPhase(v1::PHASE_DECODE, now, from.decode, now.decode, response);
  return response;
}

grpc::Status TelemetryServiceImpl::RegisterEngine(grpc::ServerContext* context,
                                                  const v1::RegisterEngineRequest* request,
                                                  v1::RegisterEngineResponse* response) {
  return Answer(engines_.Register(*request), response);
}

grpc::Status TelemetryServiceImpl::ReportLoad(grpc::ServerContext* context, const v1::ReportLoadRequest* request,
                                              v1::ReportLoadResponse* response) {
  return Answer(engines_.Report(*request), response);
}

grpc::Status TelemetryServiceImpl::GetEnginePlacement(grpc::ServerContext* context,
                                                      const v1::GetEnginePlacementRequest* request,
                                                      v1::GetEnginePlacementResponse* response) {
  const absl::Duration wait = Span(request->wait());
  if (wait < absl::ZeroDuration() || wait > kLongestWait) {
    return ToGrpc(absl::InvalidArgumentError(
        absl::StrCat("wait: ", absl::FormatDuration(wait), " is not in 0 to ", absl::FormatDuration(kLongestWait))));
  }
  const absl::Time until = std::min(groups_.clock().Now() + wait, absl::FromChrono(context->deadline()));
  while (true) {
    const absl::Time now = groups_.clock().Now();
    absl::StatusOr<v1::GetEnginePlacementResponse> found =
        engines_.Placement(request->engine(), request->after_epoch(), std::min(until, now + kLook));
    if (!found.ok()) return ToGrpc(found.status());
    if (found->has_placement() || now >= until) return Answer(std::move(found), response);
    if (context->IsCancelled()) return grpc::Status::CANCELLED;
  }
}

grpc::Status TelemetryServiceImpl::GetEngine(grpc::ServerContext* context, const v1::GetEngineRequest* request,
                                             v1::GetEngineResponse* response) {
  return Answer(engines_.Describe(request->engine()), response->mutable_status());
}

grpc::Status TelemetryServiceImpl::ListEngines(grpc::ServerContext* context, const v1::ListEnginesRequest* request,
                                               v1::ListEnginesResponse* response) {
  const std::vector<std::string> names = engines_.names();
  const absl::StatusOr<Page> page = CutPage(names, request->page_size(), request->page_token());
  if (!page.ok()) return ToGrpc(page.status());
  for (size_t i = page->begin; i < page->end; ++i) {
    absl::StatusOr<v1::EngineStatus> engine = engines_.Describe(names[i]);
    // Removed in between.
    if (absl::IsNotFound(engine.status())) continue;
    if (!engine.ok()) return ToGrpc(engine.status());
    *response->add_engines() = *std::move(engine);
  }
  response->set_next_page_token(page->next_token);
  return grpc::Status::OK;
}

grpc::Status TelemetryServiceImpl::RemoveEngine(grpc::ServerContext* context, const v1::RemoveEngineRequest* request,
                                                v1::RemoveEngineResponse* response) {
  return ToGrpc(engines_.Remove(request->engine()));
}

absl::StatusOr<EngineRuntime::Counts> TelemetryServiceImpl::Counted(const std::string& group) {
  const std::vector<std::string> names = groups_.group_names();
  if (std::find(names.begin(), names.end(), group) == names.end()) {
    absl::StatusOr<EngineRuntime::Counts> counts = engines_.Counted(group);
    if (!absl::IsNotFound(counts.status())) return counts;
    return absl::NotFoundError(absl::StrCat("group: there is neither a group nor an engine '", group, "'"));
  }
  return groups_.Call<EngineRuntime::Counts>(
      group, groups_.clock().Now() + kLongestCall,
      [](Group& g, absl::Time now, Effects& effects) -> absl::StatusOr<EngineRuntime::Counts> {
        return EngineRuntime::Counts{.generation = g.counted_generation(),
                                     .layers = g.placement().num_layers,
                                     .experts = g.placement().num_experts,
                                     .prefill = g.counted(v1::PHASE_PREFILL),
                                     .decode = g.counted(v1::PHASE_DECODE)};
      });
}

grpc::Status TelemetryServiceImpl::WatchLoad(grpc::ServerContext* context, const v1::WatchLoadRequest* request,
                                             grpc::ServerWriter<v1::WatchLoadResponse>* writer) {
  if (request->group().empty()) return ToGrpc(absl::InvalidArgumentError("group: is empty"));
  const absl::Duration interval = request->has_interval() ? Span(request->interval()) : kUsualInterval;
  if (interval < kLeastInterval || interval > kMostInterval) {
    return ToGrpc(absl::InvalidArgumentError(absl::StrCat("interval: ", absl::FormatDuration(interval), " is not in ",
                                                          absl::FormatDuration(kLeastInterval), " to ",
                                                          absl::FormatDuration(kMostInterval))));
  }
  Clock& clock = groups_.clock();
  absl::Time start = clock.Now();
  absl::StatusOr<EngineRuntime::Counts> before = Counted(request->group());
  if (!before.ok()) return ToGrpc(before.status());
  // Nobody notifies: it is only for waiting by the clock.
  Mutex mu;
  CondVar never;
  while (true) {
    while (clock.Now() < start + interval) {
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
      MutexLock lock(mu);
      clock.WaitUntil(never, mu, std::min(start + interval, clock.Now() + kLook));
    }
    const absl::Time end = clock.Now();
    absl::StatusOr<EngineRuntime::Counts> now = Counted(request->group());
    if (!now.ok()) return ToGrpc(now.status());
    v1::WatchLoadResponse response = LoadBetween(*before, *now);
    *response.mutable_start() = ToProto(start);
    *response.mutable_end() = ToProto(end);
    if (!writer->Write(response)) return grpc::Status::CANCELLED;
    before = std::move(now);
    start = end;
  }
}

}  // namespace ballast
