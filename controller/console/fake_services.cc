#include "controller/console/fake_services.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "controller/service/on_behalf.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace ballast {
namespace {

constexpr char kGroup[] = "big";
constexpr char kPlan[] = "big-1";
constexpr int64_t kBytes = 44'040'192;

// Even enough, and the same on every machine; in [0, 1).
double Dither(int layer, int expert) {
  const uint32_t mixed = (static_cast<uint32_t>(layer) * 2654435761u) ^ (static_cast<uint32_t>(expert) * 2246822519u);
  return static_cast<double>((mixed ^ (mixed >> 15)) % 1000) / 1000;
}

// Replicas of an expert: one, and a share of the GPUs beyond one for each expert, more for the first ones.
int Copies(int expert, const FakeServices::Shape& shape) {
  const int spare = std::max(shape.gpus - shape.experts, 0);
  int copies = 1;
  for (int i = 0; i < spare; ++i) copies += (i % shape.experts) * (i % shape.experts) / shape.experts == expert;
  return copies;
}

// A replica's worth each, as they were when the placement was made, give or take a quarter: the load has drifted.
double Tokens(int layer, int expert, const FakeServices::Shape& shape) {
  return 1e4 * Copies(expert, shape) * (0.75 + 0.5 * Dither(layer, expert));
}

v1::Placement MakePlacement(const FakeServices::Shape& shape, bool spread) {
  v1::Placement placement;
  placement.set_epoch(spread ? 4 : 3);
  placement.set_num_layers(shape.layers);
  placement.set_num_experts(shape.experts);
  for (int g = 0; g < shape.gpus; ++g) placement.add_workers(absl::StrFormat("gpu-%04d", g));
  for (int l = 0; l < shape.layers; ++l) {
    int next = l;
    for (int e = 0; e < shape.experts; ++e) {
      // What has come to be hot gets one more.
      const int copies = Copies(e, shape), more = spread && Dither(l, e) > 0.8 ? 1 : 0;
      for (int c = 0; c < copies + more; ++c) {
        v1::Replica& replica = *placement.add_replicas();
        replica.set_layer(l);
        replica.set_expert(e);
        replica.set_worker((c < copies ? next++ : next + shape.gpus / 2) % shape.gpus);
        replica.set_slot(2 * l + (c < copies ? 0 : 1));
        replica.set_weight(1);
      }
    }
  }
  return placement;
}

v1::GetLoadResponse MakeLoad(const FakeServices::Shape& shape, const v1::Placement& placement) {
  v1::GetLoadResponse load;
  for (int l = 0; l < shape.layers; ++l) {
    v1::LayerLoad& layer = *load.add_layers();
    layer.set_layer(l);
    for (int e = 0; e < shape.experts; ++e) layer.add_tokens(Tokens(l, e, shape));
    layer.mutable_worker_tokens()->Resize(shape.gpus, 0);
  }
  for (const v1::Replica& replica : placement.replicas()) {
    const int l = replica.layer(), e = replica.expert();
    double& tokens = *load.mutable_layers(l)->mutable_worker_tokens()->Mutable(replica.worker());
    tokens += Tokens(l, e, shape) / Copies(e, shape);
  }
  for (v1::LayerLoad& layer : *load.mutable_layers()) {
    const auto& gpus = layer.worker_tokens();
    double total = 0;
    for (const double tokens : gpus) total += tokens;
    layer.set_balancedness(total / shape.gpus / *std::max_element(gpus.begin(), gpus.end()));
  }
  return load;
}

}  // namespace

struct FakeServices::State {
  Shape shape;
  v1::Placement placement;
  v1::GetLoadResponse load;
  Mutex mu;
  v1::Group group BALLAST_GUARDED_BY(mu);
  v1::GetPlanResponse plan BALLAST_GUARDED_BY(mu);
  std::vector<std::string> calls BALLAST_GUARDED_BY(mu);

  void Note(const std::string& what, const grpc::ServerContext& context) BALLAST_REQUIRES(mu) {
    const std::string by = CallerName(context);
    calls.push_back(by.empty() ? what : absl::StrCat(what, " by ", by));
  }
};

class FakeServices::Groups final : public v1::GroupService::Service {
 public:
  explicit Groups(std::shared_ptr<State> state) : state_(std::move(state)) {}

  grpc::Status ListGroups(grpc::ServerContext*, const v1::ListGroupsRequest*, v1::ListGroupsResponse* out) override {
    MutexLock lock(state_->mu);
    *out->add_groups() = state_->group;
    return grpc::Status::OK;
  }
  grpc::Status GetGroup(grpc::ServerContext*, const v1::GetGroupRequest* in, v1::GetGroupResponse* out) override {
    if (in->group() != kGroup) return {grpc::StatusCode::NOT_FOUND, "group: there is no such group"};
    MutexLock lock(state_->mu);
    *out->mutable_group() = state_->group;
    return grpc::Status::OK;
  }
  grpc::Status GetPlacement(grpc::ServerContext*, const v1::GetPlacementRequest*,
                            v1::GetPlacementResponse* out) override {
    *out->mutable_placement() = state_->placement;
    return grpc::Status::OK;
  }
  grpc::Status GetLoad(grpc::ServerContext*, const v1::GetLoadRequest*, v1::GetLoadResponse* out) override {
    *out = state_->load;
    return grpc::Status::OK;
  }
  grpc::Status ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest* in,
                           v1::ListWorkersResponse* out) override {
    const int begin = in->page_token().empty() ? 0 : std::stoi(in->page_token());
    const int end = std::min(begin + in->page_size(), state_->shape.gpus);
    for (int g = begin; g < end; ++g) {
      v1::Worker& worker = *out->add_workers();
      worker.set_name(state_->placement.workers(g));
      worker.set_group(kGroup);
      worker.set_state(v1::WORKER_STATE_SERVING);
      worker.set_rank(g);
      worker.set_node(absl::StrFormat("node-%03d", g / 8));
      worker.set_slots(state_->shape.layers + 2);
      worker.set_slots_used(state_->shape.layers);
    }
    if (end < state_->shape.gpus) out->set_next_page_token(absl::StrCat(end));
    return grpc::Status::OK;
  }
  grpc::Status Pause(grpc::ServerContext* context, const v1::PauseRequest*, v1::PauseResponse* out) override {
    MutexLock lock(state_->mu);
    state_->Note("Pause", *context);
    state_->group.set_paused(true);
    *out->mutable_group() = state_->group;
    return grpc::Status::OK;
  }

 private:
  const std::shared_ptr<State> state_;
};

class FakeServices::Plans final : public v1::PlanService::Service {
 public:
  explicit Plans(std::shared_ptr<State> state) : state_(std::move(state)) {}

  grpc::Status ListPlans(grpc::ServerContext*, const v1::ListPlansRequest*, v1::ListPlansResponse* out) override {
    MutexLock lock(state_->mu);
    *out->add_plans() = state_->plan.plan();
    return grpc::Status::OK;
  }
  grpc::Status GetPlan(grpc::ServerContext*, const v1::GetPlanRequest* in, v1::GetPlanResponse* out) override {
    if (in->id() != kPlan) return {grpc::StatusCode::NOT_FOUND, "id: there is no such plan"};
    MutexLock lock(state_->mu);
    *out = state_->plan;
    return grpc::Status::OK;
  }
  grpc::Status ApprovePlan(grpc::ServerContext* context, const v1::ApprovePlanRequest* in,
                           v1::ApprovePlanResponse* out) override {
    MutexLock lock(state_->mu);
    state_->Note(absl::StrCat("ApprovePlan ", in->id()), *context);
    if (state_->plan.plan().state() != v1::PLAN_STATE_PROPOSED) {
      return {grpc::StatusCode::FAILED_PRECONDITION, "plan big-1 is PREPARING, not PROPOSED"};
    }
    state_->plan.mutable_plan()->set_state(v1::PLAN_STATE_PREPARING);
    *out->mutable_plan() = state_->plan.plan();
    return grpc::Status::OK;
  }

 private:
  const std::shared_ptr<State> state_;
};

class FakeServices::Telemetry final : public v1::TelemetryService::Service {
 public:
  // A page each.
  grpc::Status ListEngines(grpc::ServerContext*, const v1::ListEnginesRequest* in,
                           v1::ListEnginesResponse* out) override {
    v1::EngineStatus& status = *out->add_engines();
    v1::Engine& engine = *status.mutable_engine();
    engine.set_num_layers(58);
    engine.set_num_experts(256);
    engine.set_slots_per_layer(9);
    for (int g = 0; g < 32; ++g) engine.add_workers()->set_node(absl::StrCat("node-", g / 8));
    if (!in->page_token().empty()) {
      engine.set_name("trt");
      return grpc::Status::OK;
    }
    engine.set_name("sgl");
    engine.set_model("deepseek-v3");
    status.set_epoch(2);
    status.set_policy("cost-aware");
    status.set_reason("load has drifted");
    status.mutable_planned()->set_seconds(absl::ToUnixSeconds(start_ - absl::Minutes(5)));
    status.mutable_last_report()->set_seconds(absl::ToUnixSeconds(start_));
    status.set_predicted_balancedness(0.968);
    status.set_balancedness(0.912);
    status.set_window_tokens(12'345'678);
    out->set_next_page_token("trt");
    return grpc::Status::OK;
  }

 private:
  const absl::Time start_ = absl::Now();
};

FakeServices::FakeServices(const Shape& shape) : state_(std::make_shared<State>()) {
  state_->shape = shape;
  state_->placement = MakePlacement(shape, false);
  state_->load = MakeLoad(shape, state_->placement);
  double level = 0;
  for (const v1::LayerLoad& layer : state_->load.layers()) level += layer.balancedness() / shape.layers;
  {
    MutexLock lock(state_->mu);
    v1::Group& group = state_->group;
    group.set_name(kGroup);
    group.set_role(v1::GROUP_ROLE_MIXED);
    group.set_mode(v1::GROUP_MODE_APPROVE);
    group.set_state(v1::GROUP_STATE_SERVING);
    group.set_policy("cost-aware");
    group.set_size(shape.gpus);
    group.set_epoch(3);
    group.set_balancedness(level);
    group.set_window_tokens(48'000'000);
    group.set_plan(kPlan);
    group.mutable_model()->set_name("deepseek-v3");
    for (int g = 0; g < shape.gpus; ++g) group.mutable_view()->add_members()->set_rank(g);

    v1::GetPlanResponse& plan = state_->plan;
    plan.mutable_plan()->set_id(kPlan);
    plan.mutable_plan()->set_group(kGroup);
    plan.mutable_plan()->set_state(v1::PLAN_STATE_PROPOSED);
    plan.mutable_plan()->set_policy("cost-aware");
    plan.mutable_plan()->set_reason("load has drifted");
    plan.mutable_plan()->set_balancedness_before(level);
    plan.mutable_plan()->set_balancedness_after(0.97);
    plan.mutable_plan()->set_balancedness_bound(0.99);
    plan.mutable_plan()->mutable_effect()->set_gain_ratio(0.18);
    plan.mutable_plan()->mutable_effect()->set_busiest_tokens_before(4.1e7);
    plan.mutable_plan()->mutable_effect()->set_busiest_tokens_after(3.36e7);
    plan.mutable_plan()->mutable_effect()->set_busiest_tokens_bound(3.3e7);
    plan.mutable_plan()->mutable_effect()->set_gain_microseconds(2.4e6);
    *plan.mutable_placement() = MakePlacement(shape, true);
    for (const v1::Replica& replica : plan.placement().replicas()) {
      if (replica.slot() % 2 == 0) continue;
      v1::Move& move = *plan.add_moves();
      move.set_layer(replica.layer());
      move.set_expert(replica.expert());
      move.set_source(plan.placement().workers(replica.layer() % shape.gpus));
      move.set_destination(plan.placement().workers(replica.worker()));
      move.set_slot(replica.slot());
      move.set_bytes(kBytes);
    }
    for (int l = 0; l < shape.layers; ++l) {
      v1::LayerEffect& layer = *plan.add_layers();
      layer.set_layer(l);
      layer.set_balancedness_before(state_->load.layers(l).balancedness());
      layer.set_balancedness_after(0.97);
    }
    const int first = plan.moves_size() / 2;
    plan.add_wave_moves(first);
    plan.add_wave_moves(plan.moves_size() - first);
    plan.mutable_plan()->set_waves_total(2);
    plan.mutable_plan()->set_moves_total(plan.moves_size());
    plan.mutable_plan()->set_bytes_total(plan.moves_size() * kBytes);
  }
  groups_ = std::make_shared<Groups>(state_);
  plans_ = std::make_shared<Plans>(state_);
  telemetry_ = std::make_shared<Telemetry>();
  grpc::ServerBuilder builder;
  builder.RegisterService(groups_.get());
  builder.RegisterService(plans_.get());
  builder.RegisterService(telemetry_.get());
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  server_ = builder.BuildAndStart();
  address_ = absl::StrCat("127.0.0.1:", port);
}

std::shared_ptr<grpc::Channel> FakeServices::Channel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  return server_->InProcessChannel(arguments);
}

std::vector<std::string> FakeServices::calls() const {
  MutexLock lock(state_->mu);
  return state_->calls;
}

}  // namespace ballast
