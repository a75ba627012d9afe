// The verbs that ask and command a running controller, and `generate`, which asks a worker.
#include <algorithm>
#include <chrono>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "ballast/v1/group_service.grpc.pb.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "ballast/v1/model_service.grpc.pb.h"
#include "ballast/v1/plan_service.grpc.pb.h"
#include "controller/ctl/client.h"
#include "controller/ctl/context.h"
#include "controller/ctl/output.h"
#include "controller/ctl/plan_text.h"
#include "controller/ctl/progress.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/clock.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// What the command line of these verbs says.
struct ClusterOptions {
  std::string group;
  std::string id;
  std::string policy;
  std::string expert;
  std::string reason;
  std::string mode;
  std::string worker;
  std::string task;
  std::string prompt;
  bool dry_run = false;
  int limit = 20;
  int window_seconds = 0;
  int max_tokens = 64;
  double temperature = 0;
  double top_p = 1;
  uint64_t seed = 0;
};

std::string Ratio(double value) { return absl::StrFormat("%.3f", value); }
std::string Show(const google::protobuf::Timestamp& t) {
  if (t.seconds() == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(t.seconds()), absl::UTCTimeZone());
}

// Prints a message as a document, or calls `table`.
template <typename Message>
absl::Status Print(const CtlContext& context, const Message& message, const std::function<void()>& table) {
  if (context.output == OutputFormat::kTable) {
    table();
  } else {
    PrintDocument(context.output, ToJson(message), context.out);
  }
  return absl::OkStatus();
}

absl::Status GetGroups(CtlContext& context) {
  Client client(context);
  BALLAST_ASSIGN_OR_RETURN(auto list,
                           client.Call(client.groups(), &v1::GroupService::Stub::ListGroups, v1::ListGroupsRequest()));
  return Print(context, list, [&] {
    Table table({"GROUP", "MODEL", "STATE", "MODE", "COMBINE", "WORKERS", "VIEW", "EPOCH", "BALANCEDNESS", "PLAN"});
    for (const v1::Group& g : list.groups()) {
      table.AddRow({g.name(), g.model().name(), EnumText(g.state()),
                    EnumText(g.mode()) + (g.paused() ? " (paused)" : ""), EnumText(g.combine()),
                    absl::StrCat(g.view().members_size(), "/", g.size()), absl::StrCat(g.view().view()),
                    absl::StrCat(g.epoch()), g.balancedness() > 0 ? Ratio(g.balancedness()) : "-",
                    g.plan().empty() ? "-" : g.plan()});
    }
    table.Print(context.out);
  });
}

absl::Status GetWorkers(CtlContext& context, const ClusterOptions& options) {
  Client client(context);
  BALLAST_ASSIGN_OR_RETURN(const v1::ListWorkersResponse all, client.Workers(options.group));
  return Print(context, all, [&] {
    Table table(
        {"WORKER", "GROUP", "STATE", "DRAIN", "RANK", "SLOTS", "LOAD", "RUNNING", "WAITING", "KV", "SERVES AT"});
    for (const v1::Worker& w : all.workers()) {
      table.AddRow({w.name(), w.group(), EnumText(w.state()),
                    w.drain() == v1::DRAIN_STATE_UNSPECIFIED ? "-" : EnumText(w.drain()),
                    w.rank() < 0 ? "-" : absl::StrCat(w.rank()), absl::StrCat(w.slots_used(), "/", w.slots()),
                    absl::StrFormat("%.1f%%", 100 * w.load_ratio()), absl::StrCat(w.requests_running()),
                    absl::StrCat(w.requests_waiting()), absl::StrFormat("%.0f%%", 100 * w.kv_cache_used_ratio()),
                    w.serving_address()});
    }
    table.Print(context.out);
  });
}

absl::Status GetPlans(CtlContext& context, const ClusterOptions& options) {
  Client client(context);
  v1::ListPlansRequest request;
  request.set_group(options.group);
  request.set_page_size(options.limit);
  BALLAST_ASSIGN_OR_RETURN(auto list, client.Call(client.plans(), &v1::PlanService::Stub::ListPlans, request));
  return Print(context, list, [&] {
    Table table({"PLAN", "GROUP", "STATE", "CREATED", "POLICY", "BEFORE", "AFTER", "AT MOST", "GAIN", "TIME GAINED",
                 "WAVES", "MOVES", "BYTES", "TRANSFERS"});
    for (const v1::Plan& p : list.plans()) {
      table.AddRow({p.id(), p.group(), EnumText(p.state()), Show(p.created()), p.policy(),
                    Ratio(p.balancedness_before()), Ratio(p.balancedness_after()), Ratio(p.balancedness_bound()),
                    PlanGain(p), PlanGainTime(p), absl::StrCat(p.waves_done(), "/", p.waves_total()),
                    absl::StrCat(p.moves_done(), "/", p.moves_total()), HumanBytes(p.bytes_total()),
                    PlanTransferTime(p)});
    }
    table.Print(context.out);
  });
}

absl::Status GetPlacement(CtlContext& context, const ClusterOptions& options) {
  Client client(context);
  v1::GetPlacementRequest request;
  BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(options.group));
  BALLAST_ASSIGN_OR_RETURN(auto response, client.Call(client.groups(), &v1::GroupService::Stub::GetPlacement, request));
  return Print(context, response, [&] {
    const v1::Placement& p = response.placement();
    context.out << "Epoch " << p.epoch() << ", shares version " << p.shares_version() << ", " << p.replicas_size()
                << " replicas of " << p.num_layers() << " x " << p.num_experts() << " experts\n";
    std::vector<std::string> columns = {"LAYER"};
    columns.insert(columns.end(), p.workers().begin(), p.workers().end());
    Table table(columns);
    for (int layer = 0; layer < p.num_layers(); ++layer) {
      std::vector<std::string> cells(p.workers_size() + 1);
      cells[0] = absl::StrCat(layer);
      for (const v1::Replica& r : p.replicas()) {
        if (r.layer() == layer)
          absl::StrAppend(&cells[r.worker() + 1], cells[r.worker() + 1].empty() ? "" : " ", r.expert());
      }
      table.AddRow(cells);
    }
    table.Print(context.out);
  });
}

absl::Status GetLoad(CtlContext& context, const ClusterOptions& options) {
  Client client(context);
  v1::GetLoadRequest request;
  BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(options.group));
  if (!options.task.empty()) request.set_task(options.task);
  if (options.window_seconds > 0) request.mutable_window()->set_seconds(options.window_seconds);
  BALLAST_ASSIGN_OR_RETURN(auto load, client.Call(client.groups(), &v1::GroupService::Stub::GetLoad, request));
  return Print(context, load, [&] {
    Table table({"LAYER", "BALANCEDNESS", "HOTTEST EXPERTS", "OF THE LAYER"});
    bool any = false;
    for (const v1::LayerLoad& l : load.layers()) {
      std::vector<int> order(l.tokens_size());
      double sum = 0;
      for (int e = 0; e < l.tokens_size(); ++e) {
        order[e] = e;
        sum += l.tokens(e);
      }
      const size_t shown = std::min<size_t>(3, order.size());
      std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                        [&](int a, int b) { return l.tokens(a) > l.tokens(b); });
      std::string hottest, parts;
      for (size_t i = 0; i < shown && l.tokens(order[i]) > 0; ++i) {
        absl::StrAppend(&hottest, i > 0 ? ", " : "", order[i]);
        absl::StrAppend(&parts, i > 0 ? ", " : "", absl::StrFormat("%.0f%%", 100 * l.tokens(order[i]) / sum));
      }
      any |= sum > 0;
      table.AddRow({absl::StrCat(l.layer()), Ratio(l.balancedness()), hottest, parts});
    }
    if (!any) {
      context.out << "no tokens in the window\n";
      return;
    }
    table.Print(context.out);
    Table tasks({"TASK", "PREFILL TOKENS", "DECODE TOKENS"});
    for (const v1::TaskLoad& t : load.tasks()) {
      tasks.AddRow({t.task().empty() ? "(unlabelled)" : t.task(), absl::StrCat(t.prefill_tokens()),
                    absl::StrCat(t.decode_tokens())});
    }
    context.out << "\n";
    tasks.Print(context.out);
  });
}

absl::Status GetModels(CtlContext& context) {
  Client client(context);
  BALLAST_ASSIGN_OR_RETURN(auto list,
                           client.Call(client.models(), &v1::ModelService::Stub::ListModels, v1::ListModelsRequest()));
  return Print(context, list, [&] {
    Table table({"MODEL", "ARCHITECTURE", "LAYERS", "EXPERTS", "TOP-K", "EXPERT SIZE", "FINGERPRINT", "GROUPS"});
    for (const v1::Model& m : list.models()) {
      std::string groups;
      for (const std::string& g : m.groups()) absl::StrAppend(&groups, groups.empty() ? "" : " ", g);
      const v1::ModelIdentity& id = m.identity();
      table.AddRow({id.name(), id.architecture(), absl::StrCat(id.num_moe_layers()), absl::StrCat(id.num_experts()),
                    absl::StrCat(id.experts_per_token()), HumanBytes(id.expert_bytes()), id.fingerprint().substr(0, 12),
                    groups});
    }
    table.Print(context.out);
  });
}

absl::Status GetEngines(CtlContext& context) {
  Client client(context);
  v1::ListEnginesRequest request;
  request.set_page_size(1000);
  v1::ListEnginesResponse all;
  do {
    BALLAST_ASSIGN_OR_RETURN(auto page,
                             client.Call(client.telemetry(), &v1::TelemetryService::Stub::ListEngines, request));
    all.mutable_engines()->MergeFrom(page.engines());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return Print(context, all, [&] {
    Table table({"ENGINE", "MODEL", "LAYERS", "EXPERTS", "GPUS", "SLOTS", "EPOCH", "PLANNED", "PREDICTED",
                 "BALANCEDNESS", "TOKENS"});
    for (const v1::EngineStatus& e : all.engines()) {
      const v1::Engine& engine = e.engine();
      table.AddRow({engine.name(), engine.model(), absl::StrCat(engine.num_layers()),
                    absl::StrCat(engine.num_experts()), absl::StrCat(engine.workers_size()),
                    absl::StrCat(engine.slots_per_layer()), absl::StrCat(e.epoch()), Show(e.planned()),
                    e.predicted_balancedness() > 0 ? Ratio(e.predicted_balancedness()) : "-",
                    e.balancedness() > 0 ? Ratio(e.balancedness()) : "-", absl::StrCat(e.window_tokens())});
    }
    table.Print(context.out);
  });
}

void PrintPlan(const v1::Plan& p, std::ostream& out) {
  // A dry run's is kept nowhere and has no id.
  out << (p.id().empty() ? "A plan" : absl::StrCat("Plan ", p.id())) << " of group " << p.group() << ": "
      << (p.id().empty() ? "not kept" : EnumText(p.state())) << "\n"
      << "  policy        " << p.policy() << "\n";
  if (!p.reason().empty()) out << "  why           " << p.reason() << "\n";
  out << "  balancedness  " << Ratio(p.balancedness_before()) << " -> " << Ratio(p.balancedness_after()) << " (at most "
      << Ratio(p.balancedness_bound()) << " in these slots)\n"
      << EffectText(p) << TrafficText(p.effect()) << "  epochs        " << p.base_epoch() << " -> " << p.target_epoch()
      << "\n"
      << "  waves         " << p.waves_done() << " of " << p.waves_total() << " done\n"
      << "  moves         " << p.moves_done() << " of " << p.moves_total() << " done, " << HumanBytes(p.bytes_done())
      << " of " << HumanBytes(p.bytes_total()) << "\n"
      << "  created       " << Show(p.created()) << ", finished " << Show(p.finished()) << "\n";
  for (const v1::Event& e : p.history()) out << "    " << Show(e.at()) << "  " << e.text() << "\n";
}

absl::Status DescribePlan(CtlContext& context, const ClusterOptions& options) {
  Client client(context);
  v1::GetPlanRequest request;
  request.set_id(options.id);
  if (!options.expert.empty()) {
    const std::vector<std::string> parts = absl::StrSplit(options.expert, '/');
    int32_t layer = 0, expert = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &layer) || !absl::SimpleAtoi(parts[1], &expert)) {
      return absl::InvalidArgumentError(absl::StrCat("--expert: '", options.expert, "' is not LAYER/EXPERT"));
    }
    request.mutable_expert()->set_layer(layer);
    request.mutable_expert()->set_expert(expert);
  }
  BALLAST_ASSIGN_OR_RETURN(auto response, client.Call(client.plans(), &v1::PlanService::Stub::GetPlan, request));
  return Print(context, response, [&] {
    const std::vector<v1::ReplicaReason> reasons(response.reasons().begin(), response.reasons().end());
    if (request.has_expert()) {
      context.out << ReasonsText(reasons, static_cast<int64_t>(reasons.size()));
      return;
    }
    PrintPlan(response.plan(), context.out);
    if (const std::string homes = HomesText(response.placement()); !homes.empty()) {
      context.out << "\nWhere requests should start:\n" << homes;
    }
    if (!reasons.empty()) {
      context.out << "\nWhy experts move:\n" << ReasonsText(reasons, response.plan().moves_total());
    }
    Table layers({"LAYER", "BEFORE", "AFTER", "REPLICAS"});
    for (const v1::LayerEffect& l : response.layers()) {
      layers.AddRow({absl::StrCat(l.layer()), Ratio(l.balancedness_before()), Ratio(l.balancedness_after()),
                     absl::StrCat(l.replicas_before(), " -> ", l.replicas_after())});
    }
    context.out << "\n";
    layers.Print(context.out);
    Table moves({"WAVE", "LAYER", "EXPERT", "FROM", "TO", "SLOT"});
    int wave = 0;
    int left = response.wave_moves_size() > 0 ? response.wave_moves(0) : 0;
    for (const v1::Move& m : response.moves()) {
      while (left == 0 && wave + 1 < response.wave_moves_size()) left = response.wave_moves(++wave);
      --left;
      moves.AddRow({absl::StrCat(wave + 1), absl::StrCat(m.layer()), absl::StrCat(m.expert()),
                    m.source().empty() ? "checkpoint" : m.source(), m.destination(), absl::StrCat(m.slot())});
    }
    context.out << "\n";
    moves.Print(context.out);
  });
}

// The verbs that answer with a plan.
template <typename Request, typename Response>
absl::Status PlanVerb(CtlContext& context, const Request& request,
                      grpc::Status (v1::PlanService::Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  Client client(context);
  BALLAST_ASSIGN_OR_RETURN(auto response, client.Call(client.plans(), method, request));
  return Print(context, response, [&] { PrintPlan(response.plan(), context.out); });
}

// The verbs that answer with a group.
template <typename Request, typename Response>
absl::Status GroupVerb(CtlContext& context, const ClusterOptions& options, Request request,
                       grpc::Status (v1::GroupService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                      Response*)) {
  Client client(context);
  BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(options.group));
  BALLAST_ASSIGN_OR_RETURN(auto response, client.Call(client.groups(), method, request));
  return Print(context, response, [&] {
    const v1::Group& g = response.group();
    context.out << "Group " << g.name() << ": mode " << EnumText(g.mode()) << ", policy " << g.policy()
                << (g.paused() ? ", paused" : "") << ", " << EnumText(g.state()) << ", epoch " << g.epoch() << "\n";
  });
}

// Shows how far the plan under way is as long as there is one that the controller tells of; `progress` is of the plan
// `shown`.
void FollowRollout(const CtlContext& context, Client& client, const v1::Group& group, std::string& shown,
                   std::unique_ptr<Progress>& progress) {
  const ProgressLine line = ProgressLineOf(context);
  // Nobody sees it: the controller need not be asked.
  if (line.out == nullptr) return;
  v1::Plan plan;
  if (!group.plan().empty()) {
    v1::GetPlanRequest request;
    request.set_id(group.plan());
    // An error takes the bar away, and no more: the changes that are watched still come.
    absl::StatusOr<v1::GetPlanResponse> response =
        client.Call(client.plans(), &v1::PlanService::Stub::GetPlan, request);
    if (response.ok()) plan = std::move(*response->mutable_plan());
  }
  const bool under_way = plan.state() >= v1::PLAN_STATE_APPROVED && plan.state() < v1::PLAN_STATE_DONE;
  if (!under_way) {
    progress = nullptr;
    return;
  }
  if (progress == nullptr || shown != plan.id()) {
    shown = plan.id();
    progress = nullptr;
    progress = std::make_unique<Progress>(line, Clock::Real(), absl::StrCat("plan ", shown), plan.bytes_total());
  }
  progress->Set(plan.bytes_done());
}

absl::Status Watch(CtlContext& context, const ClusterOptions& options) {
  Client client(context);
  v1::WatchGroupRequest request;
  BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(options.group));
  grpc::ClientContext call;
  const auto stream = client.groups()->WatchGroup(&call, request);
  v1::WatchGroupResponse response;
  std::string rolled_out;
  std::unique_ptr<Progress> progress;
  while (stream->Read(&response)) {
    std::ostringstream text;
    if (context.output != OutputFormat::kTable) {
      // One document a change, so that a pipe can take them apart.
      if (context.output == OutputFormat::kJson) {
        text << ToJson(response).dump() << "\n";
      } else {
        text << "---\n";
        PrintDocument(context.output, ToJson(response), text);
      }
    } else {
      const v1::Group& g = response.group();
      for (const v1::Event& e : response.events()) text << Show(e.at()) << "  " << e.text() << "\n";
      if (response.events_size() == 0) {
        text << g.name() << ": " << EnumText(g.state()) << ", view " << g.view().view() << ", epoch " << g.epoch()
             << ", balancedness " << (g.balancedness() > 0 ? Ratio(g.balancedness()) : "-") << "\n";
      }
    }
    if (progress != nullptr) {
      progress->Print(context.out, text.str());
    } else {
      context.out << text.str() << std::flush;
    }
    FollowRollout(context, client, response.group(), rolled_out, progress);
  }
  progress = nullptr;
  return Client::ToStatus(stream->Finish(), context.controller);
}

absl::Status Generate(CtlContext& context, const ClusterOptions& options) {
  std::string address = options.worker;
  if (address.empty()) {
    Client client(context);
    BALLAST_ASSIGN_OR_RETURN(const v1::ListWorkersResponse all, client.Workers(options.group));
    for (const v1::Worker& w : all.workers()) {
      if (w.state() == v1::WORKER_STATE_SERVING && address.empty()) address = w.serving_address();
    }
    if (address.empty()) {
      return absl::UnavailableError(absl::StrCat("no worker", options.group.empty() ? "" : " of group ", options.group,
                                                 " serves; 'ballastctl get workers' shows their states"));
    }
  }
  const auto stub = v1::Inference::NewStub(context.security.Connect(address));
  v1::GenerateRequest request;
  request.set_text(options.prompt);
  request.set_task(options.task);
  request.set_max_tokens(options.max_tokens);
  request.set_temperature(static_cast<float>(options.temperature));
  request.set_top_p(static_cast<float>(options.top_p));
  request.set_seed(options.seed);
  grpc::ClientContext call;
  const auto stream = stub->Generate(&call, request);
  v1::GenerateResponse all, part;
  while (stream->Read(&part)) {
    if (context.output == OutputFormat::kTable) context.out << part.text() << std::flush;
    // MergeFrom appends what repeats but replaces text.
    const std::string text = all.text() + part.text();
    all.MergeFrom(part);
    all.set_text(text);
  }
  if (context.output == OutputFormat::kTable) context.out << "\n";
  BALLAST_RETURN_IF_ERROR(Client::ToStatus(stream->Finish(), address));
  return Print(context, all, [] {});
}

CLI::App* Verb(CLI::App& parent, CtlContext& context, const char* name, const char* help,
               std::function<absl::Status()> run) {
  CLI::App* verb = parent.add_subcommand(name, help);
  verb->callback([&context, run = std::move(run)] { context.run = run; });
  return verb;
}

}  // namespace

void AddClusterVerbs(CLI::App& app, CtlContext& context) {
  // Lives as long as the callbacks do: for the whole program.
  auto& o = *new ClusterOptions;
  const auto group_option = [&o](CLI::App* verb) {
    verb->add_option("--group,-g", o.group, "Name of the group; not needed when there is only one");
  };

  CLI::App* get = app.add_subcommand("get", "List what a running controller knows");
  get->require_subcommand(1);
  Verb(*get, context, "groups", "Groups, their state and how level they are", [&] { return GetGroups(context); });
  group_option(Verb(*get, context, "workers", "Workers, their slots and load", [&] { return GetWorkers(context, o); }));
  CLI::App* plans = Verb(*get, context, "plans", "Plans, newest first", [&] { return GetPlans(context, o); });
  group_option(plans);
  plans->add_option("--limit", o.limit, "How many")->check(CLI::Range(1, 1000))->capture_default_str();
  group_option(Verb(*get, context, "placement", "Which worker holds which experts, layer by layer",
                    [&] { return GetPlacement(context, o); }));
  CLI::App* load = Verb(*get, context, "load", "Load of the planning window by layer and by task",
                        [&] { return GetLoad(context, o); });
  group_option(load);
  load->add_option("--task", o.task, "Of one task alone");
  load->add_option("--window", o.window_seconds, "The last so many seconds of the window alone")
      ->check(CLI::Range(1, 86400));
  Verb(*get, context, "models", "Models that groups run", [&] { return GetModels(context); });
  Verb(*get, context, "engines", "Engines that are planned for without being Ballast workers",
       [&] { return GetEngines(context); });

  CLI::App* describe = app.add_subcommand("describe", "Show one thing with everything known of it");
  describe->require_subcommand(1);
  CLI::App* plan =
      Verb(*describe, context, "plan", "Effect by layer and task, why experts move, moves by wave, history",
           [&] { return DescribePlan(context, o); });
  plan->add_option("id", o.id, "The plan's id, from 'get plans'")->required();
  plan->add_option("--expert", o.expert, "LAYER/EXPERT: only why this expert is where the plan has it");

  CLI::App* propose = Verb(app, context, "propose", "Make a plan from the load seen, for somebody to approve", [&] {
    Client client(context);
    v1::CreatePlanRequest request;
    BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(o.group));
    request.set_policy(o.policy);
    request.set_dry_run(o.dry_run);
    return PlanVerb(context, request, &v1::PlanService::Stub::CreatePlan);
  });
  group_option(propose);
  propose->add_option("--policy", o.policy, "Another policy than the group's");
  propose->add_flag("--dry-run", o.dry_run, "Show it and keep nothing");
  Verb(app, context, "approve", "Roll a proposed plan out",
       [&] {
         v1::ApprovePlanRequest request;
         request.set_id(o.id);
         return PlanVerb(context, request, &v1::PlanService::Stub::ApprovePlan);
       })
      ->add_option("id", o.id, "The plan's id")
      ->required();
  CLI::App* reject = Verb(app, context, "reject", "Turn a proposed plan down", [&] {
    v1::RejectPlanRequest request;
    request.set_id(o.id);
    request.set_reason(o.reason);
    return PlanVerb(context, request, &v1::PlanService::Stub::RejectPlan);
  });
  reject->add_option("id", o.id, "The plan's id")->required();
  reject->add_option("--reason", o.reason, "Kept in the plan's history");
  CLI::App* rollback = Verb(app, context, "rollback", "Go back to the placement before the last rollout", [&] {
    Client client(context);
    v1::RollbackRequest request;
    BALLAST_ASSIGN_OR_RETURN(*request.mutable_group(), client.GroupName(o.group));
    request.set_reason(o.reason);
    return PlanVerb(context, request, &v1::PlanService::Stub::Rollback);
  });
  group_option(rollback);
  rollback->add_option("--reason", o.reason, "Kept in the plan's history");

  group_option(Verb(app, context, "pause", "Stop planning and rollouts; serving goes on",
                    [&] { return GroupVerb(context, o, v1::PauseRequest(), &v1::GroupService::Stub::Pause); }));
  group_option(Verb(app, context, "resume", "End a pause",
                    [&] { return GroupVerb(context, o, v1::ResumeRequest(), &v1::GroupService::Stub::Resume); }));
  CLI::App* mode = Verb(app, context, "mode", "What the controller may do by itself", [&] {
    v1::SetModeRequest request;
    request.set_mode(o.mode == "observe"   ? v1::GROUP_MODE_OBSERVE
                     : o.mode == "approve" ? v1::GROUP_MODE_APPROVE
                                           : v1::GROUP_MODE_AUTO);
    return GroupVerb(context, o, request, &v1::GroupService::Stub::SetMode);
  });
  group_option(mode);
  mode->add_option("mode", o.mode, "observe: plan only; approve: wait for approval; auto: roll out what pays")
      ->required()
      ->check(CLI::IsMember({"observe", "approve", "auto"}));
  CLI::App* policy = app.add_subcommand("policy", "How plans are made");
  policy->require_subcommand(1);
  group_option(Verb(*policy, context, "get", "The group's policy",
                    [&] { return GroupVerb(context, o, v1::GetGroupRequest(), &v1::GroupService::Stub::GetGroup); }));
  CLI::App* set = Verb(*policy, context, "set", "Plan by another policy from now on", [&] {
    v1::SetPolicyRequest request;
    request.set_policy(o.policy);
    return GroupVerb(context, o, request, &v1::GroupService::Stub::SetPolicy);
  });
  group_option(set);
  set->add_option("policy", o.policy,
                  "cost-aware: level; task-aware: experts that are chosen together live together, too; tacg, eplb: as "
                  "published")
      ->required();
  group_option(Verb(app, context, "watch", "Follow a group: views, plans, waves, as they happen",
                    [&] { return Watch(context, o); }));

  CLI::App* generate = Verb(app, context, "generate", "Send a prompt to a worker and print the answer as it comes",
                            [&] { return Generate(context, o); });
  generate->add_option("prompt", o.prompt, "The text to go on from")->required();
  generate->add_option("--task", o.task, "Label that the load is counted under");
  generate->add_option("--worker", o.worker, "host:port of the worker; default: one that the controller knows");
  group_option(generate);
  generate->add_option("--max-tokens", o.max_tokens, "Tokens to make at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  generate->add_option("--temperature", o.temperature, "0: always the most likely token")->capture_default_str();
  generate->add_option("--top-p", o.top_p, "Sample from the most likely tokens of this mass")->capture_default_str();
  generate->add_option("--seed", o.seed, "Same seed, same answer (exact groups); 0: any")->capture_default_str();
}

}  // namespace ballast
