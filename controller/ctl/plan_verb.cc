#include <algorithm>
#include <memory>
#include <optional>
#include <span>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/ctl/plan_set_text.h"
#include "controller/ctl/progress.h"
#include "controller/formats/cost_model_file.h"
#include "controller/formats/plan_file.h"
#include "controller/formats/task_routes.h"
#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/failure.h"
#include "controller/planner/grouping/policies.h"
#include "controller/planner/level.h"
#include "controller/planner/memory.h"
#include "controller/planner/plan_set.h"
#include "controller/planner/planner.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::vector<std::string> load;
  std::vector<std::string> scenario;
  std::string topology;
  int32_t experts = 0;
  int32_t gpus = 0;
  std::optional<int32_t> nodes;
  int32_t slots_per_gpu = 0;
  // As it is written: a number, or "auto".
  std::string replicas;
  std::optional<int32_t> replicas_per_gpu;
  std::optional<int64_t> hbm_bytes;
  int64_t kv_bytes = 0;
  int64_t kv_bytes_needed = 0;
  std::string policy = "cost-aware";
  TaskAwareOptions task_aware;
  // --max-vio or --task-max-vio is given.
  bool task_limits = false;
  int32_t groups = 1;
  std::string current;
  int64_t expert_bytes = 0;
  MoveBudget move_budget;
  std::vector<std::string> dead;
  std::string cost_model;
  double horizon_seconds = GateLimits().horizon_seconds;
  // 0: one plan, not a set.
  int32_t plans = 0;
  std::optional<double> enough;
  std::string out;
};

// Given as --replicas-per-gpu auto.
bool Auto(const Options& o) { return o.replicas == "auto"; }

// A plan names what is in each slot: more than this is a slip of the keyboard, and would take all memory.
absl::Status CheckAllSlots(int64_t gpus, int64_t slots) {
  constexpr int64_t kMostSlotsInAll = 1 << 24;
  if (gpus * slots <= kMostSlotsInAll) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--gpus ", gpus, " of ", slots, " slots: ", gpus * slots,
                                                 " slots in all; the limit is ", kMostSlotsInAll));
}

// --gpus equal machines.
absl::StatusOr<Topology> MakeTopology(const Options& o, int32_t layers, int32_t experts) {
  if (o.gpus < 1) return absl::InvalidArgumentError("--gpus or --topology must say what to plan for");
  const int32_t nodes = o.nodes.value_or(1);
  if (nodes > o.gpus) {
    return absl::InvalidArgumentError(absl::StrCat("--nodes ", nodes, ": there are ", o.gpus, " GPUs"));
  }
  constexpr int64_t kMostSlots = 1 << 24;
  if (o.replicas_per_gpu) {
    const int64_t slots = (static_cast<int64_t>(layers) * experts + o.gpus - 1) / o.gpus + *o.replicas_per_gpu;
    if (slots > kMostSlots) {
      return absl::InvalidArgumentError(absl::StrCat("--replicas-per-gpu ", *o.replicas_per_gpu, ": ", slots,
                                                     " slots a GPU; the limit is ", kMostSlots));
    }
    BALLAST_RETURN_IF_ERROR(CheckAllSlots(o.gpus, slots));
    return UniformTopology(o.gpus, nodes, static_cast<int32_t>(slots));
  }
  if (static_cast<int64_t>(o.slots_per_gpu) * layers > kMostSlots) {
    return absl::InvalidArgumentError(absl::StrCat("--slots-per-gpu ", o.slots_per_gpu, " in ", layers,
                                                   " layers; the limit is ", kMostSlots, " slots a GPU"));
  }
  BALLAST_RETURN_IF_ERROR(CheckAllSlots(o.gpus, static_cast<int64_t>(o.slots_per_gpu) * layers));
  return UniformTopology(o.gpus, nodes, o.slots_per_gpu * layers);
}

// The most replicas beyond one an expert that each of `workers` GPUs can have, `room` being what all of them hold in
// all and `experts` those of all layers.
int64_t MostReplicas(int64_t experts, int64_t room, int64_t workers) { return (room - experts) / workers; }

// As many replicas as there is room for: a budget of bytes is a limit, a number of replicas is wanted exactly.
// `topology`: null where --gpus machines with slots for all of them are planned for.
absl::Status FitReplicas(int64_t experts, const Topology* topology, Options& o, CtlContext& context) {
  if (!o.replicas_per_gpu) return absl::OkStatus();
  int64_t workers = o.gpus;
  int64_t room = experts * workers;
  if (topology != nullptr) {
    workers = static_cast<int64_t>(topology->workers.size());
    room = 0;
    for (const TopologyWorker& w : topology->workers) {
      room += std::min<int64_t>(experts, w.capacity.slots - w.capacity.staging_slots);
    }
  }
  // Too little for the experts themselves: the planner says so.
  if (workers == 0 || room < experts) return absl::OkStatus();
  const int64_t most = MostReplicas(experts, room, workers);
  if (*o.replicas_per_gpu <= most) return absl::OkStatus();
  const char* why = topology == nullptr ? "then every GPU has every expert" : "the slots hold no more";
  if (!o.hbm_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--replicas-per-gpu ", *o.replicas_per_gpu, "; must be at most ", most, ": ", why));
  }
  context.err << absl::StrFormat("%d replicas a GPU, of %d that the memory holds: %s\n", most, *o.replicas_per_gpu,
                                 why);
  o.replicas_per_gpu = static_cast<int32_t>(most);
  return absl::OkStatus();
}

bool ByRoutes(const Options& o) { return o.policy == "tacg" || o.policy == "task-aware"; }

// `routes` are there for the policies that go by them, and outlive the policy.
absl::StatusOr<std::unique_ptr<PlannerPolicy>> MakePolicy(const Options& o, const std::optional<Routes>& routes) {
  if (ByRoutes(o)) {
    if (o.policy == "task-aware") return std::make_unique<TaskAwarePolicy>(*routes, o.task_aware);
    if (!o.replicas_per_gpu) return std::make_unique<TacgPolicy>(*routes);
    return absl::InvalidArgumentError(
        "--policy tacg gives every layer as many replicas: use --slots-per-gpu in place of --replicas-per-gpu");
  }
  if (o.policy == "cost-aware") return std::make_unique<CostAwarePolicy>();
  if (o.policy == "craft") {
    // Around dead workers nothing is replicated anew.
    if (o.replicas_per_gpu || !o.dead.empty()) return std::make_unique<CraftPolicy>();
    return absl::InvalidArgumentError("--policy craft needs --replicas-per-gpu");
  }
  if (o.policy == "eplb") {
    if (!o.replicas_per_gpu) return std::make_unique<EplbPolicy>(o.groups, EplbPolicy::Split::kEqual);
    return absl::InvalidArgumentError(
        "--policy eplb gives every layer as many replicas: use --slots-per-gpu in place of --replicas-per-gpu");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--policy ", Quote(o.policy), ": there are cost-aware, craft, eplb, tacg and task-aware"));
}

nlohmann::ordered_json ScoreJson(const LoadScore& score) {
  return {{"scenario", score.scenario},
          {"balancedness", score.balancedness},
          {"balancedness_equal_split", score.balancedness_equal_split},
          {"balancedness_solved_shares", score.balancedness_solved},
          {"upper_bound", score.upper_bound},
          {"busiest_tokens", score.busiest},
          {"busiest_tokens_bound", score.busiest_bound},
          {"worst_layer", {{"layer", score.worst_layer}, {"balancedness", score.worst}}}};
}

void PrintPlan(const Plan& plan, const PlanPrediction& predicted, const Options& o, CtlContext& context) {
  const size_t replicas = plan.placement.replicas.size();
  const int64_t extra =
      static_cast<int64_t>(replicas) - static_cast<int64_t>(plan.placement.num_layers) * plan.placement.num_experts;
  if (context.output != OutputFormat::kTable) {
    nlohmann::ordered_json scenarios = nlohmann::ordered_json::array();
    for (const LoadScore& score : plan.predicted) scenarios.push_back(ScoreJson(score));
    nlohmann::ordered_json json = {{"policy", plan.policy},
                                   {"layers", plan.placement.num_layers},
                                   {"replicas", replicas},
                                   {"extra_replicas", extra},
                                   {"scenarios", scenarios}};
    json.update(ToJson(predicted.change.value_or(PlanChange())));
    json["out"] = o.out;
    PrintDocument(context.output, json, context.out);
    return;
  }
  Table table({"SCENARIO", "BALANCEDNESS", "EQUAL SPLIT", "SOLVED SHARES", "UPPER BOUND", "WORST LAYER"});
  for (const LoadScore& score : plan.predicted) {
    table.AddRow({score.scenario, Ratio(score.balancedness), Ratio(score.balancedness_equal_split),
                  Ratio(score.balancedness_solved), Ratio(score.upper_bound),
                  absl::StrFormat("%s (layer %d)", Ratio(score.worst), score.worst_layer)});
  }
  table.Print(context.out);
  context.out << absl::StrFormat("\n%s: %d replicas of %d experts in %d layers on %d GPUs, %d more than one each\n",
                                 plan.policy, replicas, plan.placement.num_experts, plan.placement.num_layers,
                                 plan.placement.workers.size(), extra);
  PrintBounds(predicted.scenarios, context.out);
  if (predicted.change) PrintChange(*predicted.change, context.out);
  context.out << "written to " << o.out << "\n";
}

absl::Status CheckSetOptions(const Options& o) {
  if (o.plans == 0) {
    return o.enough ? absl::InvalidArgumentError("--enough needs --plans") : absl::OkStatus();
  }
  if (o.scenario.empty()) {
    return absl::InvalidArgumentError("--plans needs a --scenario NAME=FILE for each load; --load files are one load");
  }
  if (!o.dead.empty()) return absl::InvalidArgumentError("--dead is for one plan, not with --plans");
  for (const std::string& scenario : o.scenario) {
    const size_t equals = scenario.find('=');
    const std::string name = scenario.substr(0, equals);
    if (equals == std::string::npos || name.find('#') == std::string::npos) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--scenario ", Quote(name),
                     ": a set's members are named after scenarios and chosen as FILE#NAME; no '#', please"));
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const Options& o) {
  if (o.load.empty() == o.scenario.empty()) {
    return absl::InvalidArgumentError("give either --load FILE... or --scenario NAME=FILE...");
  }
  if (o.current.empty()) {
    if (o.plans == 0 && o.move_budget.max_moves > 0) return absl::InvalidArgumentError("--max-moves needs --current");
    if (o.plans == 0 && o.move_budget.max_bytes > 0) return absl::InvalidArgumentError("--max-bytes needs --current");
    if (!o.dead.empty()) return absl::InvalidArgumentError("--dead needs --current");
  }
  if (!o.topology.empty() && (o.gpus > 0 || o.nodes)) {
    return absl::InvalidArgumentError("--topology says what the GPUs are: give either it or --gpus and --nodes");
  }
  if (o.nodes && o.gpus == 0) return absl::InvalidArgumentError("--nodes needs --gpus");
  if (o.groups > 1 && o.policy != "eplb") {
    return absl::InvalidArgumentError(absl::StrCat("--groups is for --policy eplb, not ", o.policy));
  }
  if (o.task_limits && o.policy != "task-aware") {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-vio and --task-max-vio are for --policy task-aware, not ", o.policy));
  }
  if (o.policy == "tacg" && o.dead.empty() && o.move_budget.limited()) {
    return absl::InvalidArgumentError(
        "--policy tacg plans from nothing, as published, not within --max-moves or --max-bytes");
  }
  const int given = (o.slots_per_gpu > 0 ? 1 : 0) + (o.replicas.empty() ? 0 : 1) + (o.hbm_bytes ? 1 : 0);
  if (given > 1 || (given == 0 && o.topology.empty() && o.current.empty())) {
    return absl::InvalidArgumentError("give either --slots-per-gpu or --replicas-per-gpu");
  }
  if (o.plans > 0 && ByRoutes(o)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--plans: --policy ", o.policy, " makes one plan for all tasks, not a set"));
  }
  BALLAST_RETURN_IF_ERROR(CheckSetOptions(o));
  if (Auto(o) && o.kv_bytes == 0) return absl::InvalidArgumentError("--replicas-per-gpu auto needs --kv-bytes");
  if (!Auto(o) && o.kv_bytes + o.kv_bytes_needed > 0) {
    return absl::InvalidArgumentError("--kv-bytes and --kv-bytes-needed are for --replicas-per-gpu auto");
  }
  return absl::OkStatus();
}

// Takes the dead workers out of the topology.
absl::Status Bury(const Options& o, Topology& topology) {
  for (const std::string& name : o.dead) {
    const auto found = std::find_if(topology.workers.begin(), topology.workers.end(),
                                    [&](const TopologyWorker& w) { return w.name == name; });
    if (found == topology.workers.end()) {
      return absl::InvalidArgumentError(absl::StrCat("--dead ", Quote(name), ": there is no such worker, or no more"));
    }
    topology.workers.erase(found);
  }
  if (topology.workers.empty()) return absl::InvalidArgumentError("--dead: no worker is left");
  return absl::OkStatus();
}

// --replicas-per-gpu auto, by the memory-aware rule.
absl::Status ChooseByMemory(Options& o, const PlanRequest& request, const std::optional<Routes>& routes,
                            CtlContext& context) {
  const LoadMatrix& load = request.scenarios[0].load;
  const int64_t all = static_cast<int64_t>(load.layers) * load.experts;
  const int64_t workers = o.gpus;
  MemoryRule rule;
  rule.kv_bytes = o.kv_bytes;
  rule.kv_bytes_needed = o.kv_bytes_needed;
  rule.expert_bytes = request.expert_bytes;
  if (rule.expert_bytes == 0) return absl::InvalidArgumentError("--replicas-per-gpu auto needs --expert-bytes");
  rule.most_replicas = static_cast<int32_t>(std::min<int64_t>(MostReplicas(all, all * workers, workers), 1 << 20));
  std::optional<Progress> progress;
  progress.emplace(ProgressLineOf(context), Clock::Real(), "choosing replicas", 0);
  const auto balancedness = [&](int32_t replicas) -> absl::StatusOr<double> {
    Options with = o;
    with.replicas_per_gpu = replicas;
    PlanRequest one = request;
    one.replicas_per_worker = replicas;
    BALLAST_ASSIGN_OR_RETURN(one.topology, MakeTopology(with, load.layers, load.experts));
    BALLAST_ASSIGN_OR_RETURN(const std::unique_ptr<PlannerPolicy> policy, MakePolicy(with, routes));
    BALLAST_ASSIGN_OR_RETURN(const Plan plan, MakePlan(*policy, one));
    double worst = 1;
    for (const LoadScore& score : plan.predicted) worst = std::min(worst, score.balancedness);
    return worst;
  };
  BALLAST_ASSIGN_OR_RETURN(const MemoryChoice choice, ChooseReplicas(rule, balancedness));
  progress.reset();
  o.replicas_per_gpu = choice.best.replicas;
  context.err << absl::StrFormat("%d replicas a GPU: balancedness %s, %s of KV cache left\n", choice.best.replicas,
                                 Ratio(choice.best.balancedness),
                                 HumanBytes(rule.kv_bytes - choice.best.replicas * rule.expert_bytes));
  return absl::OkStatus();
}

absl::StatusOr<Plan> MakePlanOf(const Options& o, const PlanRequest& request, const std::optional<Routes>& routes) {
  BALLAST_ASSIGN_OR_RETURN(const std::unique_ptr<PlannerPolicy> policy, MakePolicy(o, routes));
  if (o.dead.empty()) return MakePlan(*policy, request);
  BALLAST_ASSIGN_OR_RETURN(FailurePlan failure, PlanFailure(request, policy->split(request)));
  if (failure.without_replica.empty()) return std::move(failure.plan);
  const auto name = [](std::string* out, ExpertId e) { absl::StrAppend(out, "layer ", e.layer, " expert ", e.expert); };
  constexpr size_t kNamed = 8;
  const size_t missing = failure.without_replica.size();
  const std::span named(failure.without_replica.data(), std::min(kNamed, missing));
  return absl::FailedPreconditionError(absl::StrCat("--dead: ", missing, " of ", failure.lost.size(),
                                                    " lost experts find no slot on the other workers: ",
                                                    absl::StrJoin(named, ", ", name), missing > kNamed ? ", ..." : ""));
}

// `common`: what the members' files have alike. Not by routes.
absl::Status MakeSet(const Options& o, const PlanRequest& request, const PlanFile& common, CtlContext& context) {
  BALLAST_ASSIGN_OR_RETURN(const std::unique_ptr<PlannerPolicy> policy, MakePolicy(o, std::nullopt));
  PlanSetOptions options{.most_plans = o.plans};
  options.enough = o.enough.value_or(options.enough);
  std::optional<Progress> progress;
  progress.emplace(ProgressLineOf(context), Clock::Real(), "planning", 0);
  BALLAST_ASSIGN_OR_RETURN(const PlanSet set, MakePlanSet(*policy, request, options));
  progress.reset();
  PlanSetFile file;
  file.split = set.split;
  file.switches = set.switches;
  for (const PlanSetMember& member : set.members) {
    PlanFile plan = common;
    plan.policy = member.plan.policy;
    plan.placement = member.plan.placement;
    for (const int32_t s : member.scenarios) plan.scenarios.push_back(request.scenarios[s]);
    plan.predicted = PredictionOf(member.plan);
    file.members.push_back({plan.scenarios[0].name, std::move(plan)});
  }
  BALLAST_RETURN_IF_ERROR(WriteFile(o.out, FormatPlanSet(file)));
  PrintPlanSet(set, file, options, o.out, context);
  return absl::OkStatus();
}

absl::Status Run(Options o, CtlContext& context) {
  BALLAST_RETURN_IF_ERROR(CheckOptions(o));
  BALLAST_ASSIGN_OR_RETURN(std::vector<NamedLoads> loads,
                           o.load.empty() ? ReadScenarios(o.scenario) : ReadLoads("load", o.load));
  if (o.experts > 0) BALLAST_RETURN_IF_ERROR(SetExperts(o.experts, loads));
  BALLAST_ASSIGN_OR_RETURN(LoadSet set, MakeLoadSet(loads));
  std::optional<Routes> routes;
  if (ByRoutes(o)) {
    BALLAST_ASSIGN_OR_RETURN(routes, MakeTaskRoutes(loads, set.row_of_layer, set.scenarios[0].load.experts));
  }
  PlanRequest request;
  request.scenarios = std::move(set.scenarios);
  request.expert_bytes = o.expert_bytes;
  request.slots_per_layer = o.slots_per_gpu;
  // Its own search keeps the budget; what brings experts of dead workers back does so itself.
  if (o.policy == "task-aware" && o.dead.empty()) {
    o.task_aware.budget = o.move_budget;
  } else {
    request.move_budget = o.move_budget;
  }
  request.gate.horizon_seconds = o.horizon_seconds;
  if (!o.cost_model.empty()) {
    BALLAST_ASSIGN_OR_RETURN(request.cost_model, ReadCostModel(o.cost_model));
  }
  std::optional<Topology> in_force;
  if (!o.current.empty()) {
    BALLAST_ASSIGN_OR_RETURN(PlanFile current, ReadPlan(o.current));
    if (current.row_of_layer != set.row_of_layer || current.rows != set.rows) {
      return absl::InvalidArgumentError(
          absl::StrCat(o.current, ": its layers are other rows of the load (", current.row_of_layer.size(), " of ",
                       current.rows, ") than these loads' (", set.row_of_layer.size(), " of ", set.rows, ")"));
    }
    request.current = std::move(current.placement);
    in_force = std::move(current.topology);
    if (request.expert_bytes == 0) request.expert_bytes = current.expert_bytes;
  }
  if (o.hbm_bytes) {
    if (request.expert_bytes == 0) {
      return absl::InvalidArgumentError("--hbm-bytes-for-replicas needs --expert-bytes");
    }
    BALLAST_ASSIGN_OR_RETURN(o.replicas_per_gpu, ReplicasForBytes(*o.hbm_bytes, request.expert_bytes));
  }
  const int64_t experts = static_cast<int64_t>(set.row_of_layer.size()) * request.scenarios[0].load.experts;
  if (!o.topology.empty()) {
    if (Auto(o)) return absl::InvalidArgumentError("--replicas-per-gpu auto needs --gpus in place of --topology");
    BALLAST_ASSIGN_OR_RETURN(request.topology, ReadTopology(o.topology));
    BALLAST_RETURN_IF_ERROR(FitReplicas(experts, &request.topology, o, context));
  } else if (o.gpus == 0 && in_force) {
    if (Auto(o)) return absl::InvalidArgumentError("--replicas-per-gpu auto needs --gpus");
    request.topology = *std::move(in_force);
    BALLAST_RETURN_IF_ERROR(FitReplicas(experts, &request.topology, o, context));
  } else {
    if (Auto(o)) {
      if (o.gpus < 1) return absl::InvalidArgumentError("--replicas-per-gpu auto needs --gpus");
      BALLAST_RETURN_IF_ERROR(ChooseByMemory(o, request, routes, context));
    }
    BALLAST_RETURN_IF_ERROR(FitReplicas(experts, nullptr, o, context));
    BALLAST_ASSIGN_OR_RETURN(request.topology, MakeTopology(o, static_cast<int32_t>(set.row_of_layer.size()),
                                                            request.scenarios[0].load.experts));
  }
  request.replicas_per_worker = o.replicas_per_gpu;
  BALLAST_RETURN_IF_ERROR(Bury(o, request.topology));
  PlanFile file;
  file.topology = request.topology;
  file.expert_bytes = request.expert_bytes;
  file.rows = set.rows;
  file.row_of_layer = set.row_of_layer;
  if (o.plans > 0) return MakeSet(o, request, file, context);
  std::optional<Progress> progress;
  progress.emplace(ProgressLineOf(context), Clock::Real(), "planning", 0);
  BALLAST_ASSIGN_OR_RETURN(const Plan plan, MakePlanOf(o, request, routes));
  progress.reset();
  file.policy = plan.policy;
  file.placement = plan.placement;
  file.scenarios = request.scenarios;
  file.predicted = PredictionOf(plan);
  BALLAST_RETURN_IF_ERROR(WriteFile(o.out, FormatPlan(file)));
  PrintPlan(plan, *file.predicted, o, context);
  return absl::OkStatus();
}

}  // namespace

void AddPlanVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("plan", "Plan a placement for loads, offline");
  verb->footer(
      "Examples:\n"
      "  One load, 32 GPUs of 4 nodes, 9 slots of every layer on each:\n"
      "    ballastctl plan --load dump.json --gpus 32 --nodes 4 --slots-per-gpu 9 --out plan.json\n"
      "  One placement for two loads:\n"
      "    ballastctl plan --scenario prefill=p.json --scenario decode=d.json --gpus 8 --slots-per-gpu 10 --out "
      "plan.json\n"
      "  Up to three placements for many loads, where one does not serve them all:\n"
      "    ballastctl plan --scenario chat=c.json --scenario code=d.json --scenario math=m.json --plans 3 --gpus 8 \\\n"
      "      --slots-per-gpu 10 --out set.json\n"
      "  A quarter of an extra expert a GPU and layer, where it helps most:\n"
      "    ballastctl plan --load dump.json --gpus 32 --replicas-per-gpu 15 --out plan.json\n"
      "  As the engines plan it, to export to one:\n"
      "    ballastctl plan --policy eplb --load dump.json --gpus 32 --slots-per-gpu 9 --out plan.json\n"
      "  Experts that tasks use together live together, from routes:\n"
      "    ballastctl plan --policy task-aware --scenario code=code.csv.gz --scenario law=law.csv.gz --gpus 16 \\\n"
      "      --slots-per-gpu 5 --out plan.json\n"
      "  What would change, from the plan in force:\n"
      "    ballastctl plan --load today.json --current plan.json --gpus 32 --slots-per-gpu 9 --out next.json\n"
      "  The best 64 moves from it:\n"
      "    ballastctl plan --load today.json --current plan.json --max-moves 64 --out next.json\n"
      "  Two GPUs died:\n"
      "    ballastctl plan --load today.json --current plan.json --dead w3 --dead w7 --out next.json\n"
      "  As many replicas as memory should pay for:\n"
      "    ballastctl plan --load dump.json --gpus 32 --replicas-per-gpu auto --expert-bytes 88080384 \\\n"
      "      --kv-bytes 40000000000 --out plan.json\n"
      "Load files are recognised from their content: SGLang's recorder JSON, csv of routes "
      "(layer,sample,token,e0,...)\n"
      "or counts (dataset,iteration,layer,e0,...), counts by model (choose with FILE#MODEL), ballast.load/v1; gzip "
      "too.");
  verb->add_option("--load", o->load, "Load files; together they are one load")->type_name("FILE");
  verb->add_option("--scenario", o->scenario,
                   "A load of its own, by name; repeat for each. Files of one name are one load")
      ->type_name("NAME=FILE");
  verb->add_option("--experts", o->experts,
                   "Experts of a layer, for csv of routes, which shows those that were used: by default up to the last")
      ->type_name("E")
      ->check(CLI::Range(int64_t{1}, kMaxLoadExperts));
  verb->add_option("--gpus", o->gpus, "GPUs to plan for")->type_name("N")->check(CLI::Range(1, 1 << 20));
  verb->add_option("--nodes", o->nodes, "Nodes they are on, in blocks as equal as can be")
      ->type_name("M")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--slots-per-gpu", o->slots_per_gpu, "Slots of one layer on each GPU, the same in every layer")
      ->type_name("K")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option_function<std::string>(
          "--replicas-per-gpu",
          [o](const std::string& value) {
            int32_t replicas = 0;
            if (value != "auto") {
              if (!absl::SimpleAtoi(value, &replicas) || replicas < 0 || replicas > (1 << 24)) {
                throw CLI::ValidationError("--replicas-per-gpu", value + "; must be auto, or 0 to 16777216");
              }
              o->replicas_per_gpu = replicas;
            }
            o->replicas = value;
          },
          "In place of it: replicas beyond one an expert on each GPU, over all layers, which go to the layers\n"
          "that need them; auto: as many as memory should pay for, see --kv-bytes")
      ->type_name("R|auto");
  verb->add_option("--hbm-bytes-for-replicas", o->hbm_bytes,
                   "In place of it: the memory that those replicas may take on each GPU")
      ->type_name("B")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 60));
  verb->add_option("--kv-bytes", o->kv_bytes,
                   "For --replicas-per-gpu auto: KV-cache bytes of a GPU without extra replicas. Chooses the\n"
                   "most of min(balancedness, KV cache left over KV cache needed)")
      ->type_name("B")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 60));
  verb->add_option("--kv-bytes-needed", o->kv_bytes_needed,
                   "KV-cache bytes that keep a level GPU busy; by default all of --kv-bytes")
      ->type_name("B")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 60));
  verb->add_option("--topology", o->topology, "A topology file in place of --gpus and --nodes")->type_name("FILE");
  verb->add_option("--policy", o->policy,
                   "How to plan: cost-aware (ours: level by construction or search, with traffic\n"
                   "shares), craft or eplb (as published, equal split); from routes, every --scenario, or\n"
                   "file of one load, being a task: task-aware (ours: fewest copies of tokens, under a\n"
                   "limit on MaxVio), tacg (as published, equal split)")
      ->capture_default_str();
  verb->add_option("--max-vio", o->task_aware.limits.maxvio,
                   "For task-aware: what MaxVio (busiest over mean, less 1) of a layer may be for the mix of tasks")
      ->capture_default_str()
      ->check(Between(0, 1e6));
  verb->add_option("--task-max-vio", o->task_aware.limits.task_maxvio, "The same for every task alone; by default any")
      ->check(Between(0, 1e6));
  verb->add_option("--groups", o->groups, "Expert groups of the model (group-limited routing), for eplb")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--current", o->current,
                   "The plan in force: keeps what it can in place, and counts the moves. Its GPUs are planned\n"
                   "for where neither --gpus nor --topology says otherwise")
      ->type_name("FILE[#MEMBER]");
  verb->add_option("--max-moves", o->move_budget.max_moves,
                   "The best gain over --current for so many moves. With --plans and without --current: members are\n"
                   "so many moves from one plan for all scenarios, which keeps switching cheap")
      ->type_name("M")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  verb->add_option("--max-bytes", o->move_budget.max_bytes, "The same for so many bytes")
      ->type_name("B")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 60));
  verb->add_option("--dead", o->dead,
                   "A worker of --current that is gone; repeat for each. The fewest moves that give every\n"
                   "expert a replica again, then balance as far as --max-moves or --max-bytes go")
      ->type_name("WORKER");
  verb->add_option("--cost-model", o->cost_model, "What busy GPUs cost, for the gain in microseconds; see simulate")
      ->type_name("FILE");
  verb->add_option("--horizon", o->horizon_seconds, "Seconds within which the plan must pay for its moves")
      ->type_name("SECONDS")
      ->capture_default_str()
      ->check(Between(1e-3, 1e12));
  verb->add_option("--expert-bytes", o->expert_bytes, "Bytes of one expert's weights, for the cost of moves")
      ->type_name("B")
      ->check(CLI::Range(int64_t{0}, kMaxExpertBytes));
  verb->add_option("--plans", o->plans,
                   "A set of at most so many placements, each for some of the scenarios, where one is not enough")
      ->type_name("K")
      ->check(CLI::Range(1, kMaxPlanSetMembers));
  verb->add_option("--enough", o->enough,
                   "For --plans: the balancedness that every scenario is to have; no more placements than that takes.\n"
                   "By default 0.95")
      ->type_name("B")
      ->check(Between(0.0, 1.0));
  verb->add_option("--out", o->out, "The plan file to write; with --plans a plan set file")
      ->type_name("FILE")
      ->required();
  verb->callback([o, verb, &context] {
    o->task_limits = verb->count("--max-vio") + verb->count("--task-max-vio") > 0;
    context.run = [o, &context] { return Run(*o, context); };
  });
}

}  // namespace ballast
