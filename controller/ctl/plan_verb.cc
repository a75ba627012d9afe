#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/formats/plan_file.h"
#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::vector<std::string> load;
  std::vector<std::string> scenario;
  std::string topology;
  int32_t gpus = 0;
  int32_t nodes = 1;
  int32_t slots_per_gpu = 0;
  std::optional<int32_t> replicas_per_gpu;
  std::string policy = "cost-aware";
  int32_t groups = 1;
  std::string current;
  int64_t expert_bytes = 0;
  std::string out;
};

// The machines: a file, or --gpus equal ones.
absl::StatusOr<Topology> MakeTopology(const Options& o, int32_t layers, int32_t experts) {
  if (!o.topology.empty()) return ReadTopology(o.topology);
  if (o.gpus < 1) return absl::InvalidArgumentError("--gpus or --topology must say what to plan for");
  if (o.nodes > o.gpus) {
    return absl::InvalidArgumentError(absl::StrCat("--nodes ", o.nodes, ": there are ", o.gpus, " GPUs"));
  }
  constexpr int64_t kMostSlots = 1 << 24;
  if (o.replicas_per_gpu) {
    const int64_t slots = (static_cast<int64_t>(layers) * experts + o.gpus - 1) / o.gpus + *o.replicas_per_gpu;
    if (slots > kMostSlots) {
      return absl::InvalidArgumentError(absl::StrCat("--replicas-per-gpu ", *o.replicas_per_gpu, ": ", slots,
                                                     " slots a GPU; the limit is ", kMostSlots));
    }
    return UniformTopology(o.gpus, o.nodes, static_cast<int32_t>(slots));
  }
  if (static_cast<int64_t>(o.slots_per_gpu) * layers > kMostSlots) {
    return absl::InvalidArgumentError(absl::StrCat("--slots-per-gpu ", o.slots_per_gpu, " in ", layers,
                                                   " layers; the limit is ", kMostSlots, " slots a GPU"));
  }
  return UniformTopology(o.gpus, o.nodes, o.slots_per_gpu * layers);
}

absl::StatusOr<std::unique_ptr<PlannerPolicy>> MakePolicy(const Options& o) {
  if (o.policy == "cost-aware") return std::make_unique<CostAwarePolicy>();
  if (o.policy == "craft") {
    if (o.replicas_per_gpu) return std::make_unique<CraftPolicy>();
    return absl::InvalidArgumentError("--policy craft needs --replicas-per-gpu");
  }
  if (o.policy == "eplb") {
    if (!o.replicas_per_gpu) return std::make_unique<EplbPolicy>(o.groups, EplbPolicy::Split::kEqual);
    return absl::InvalidArgumentError(
        "--policy eplb gives every layer as many replicas: use --slots-per-gpu in place of --replicas-per-gpu");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--policy ", Quote(o.policy), ": there are cost-aware, craft and eplb"));
}

nlohmann::ordered_json ScoreJson(const LoadScore& score) {
  return {{"scenario", score.scenario},
          {"balancedness", score.balancedness},
          {"balancedness_equal_split", score.balancedness_equal_split},
          {"balancedness_solved_shares", score.balancedness_solved},
          {"upper_bound", score.upper_bound},
          {"worst_layer", {{"layer", score.worst_layer}, {"balancedness", score.worst}}}};
}

void PrintPlan(const Plan& plan, const Options& o, CtlContext& context) {
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
                                   {"scenarios", scenarios},
                                   {"moves", plan.moves},
                                   {"bytes", plan.bytes},
                                   {"waves", plan.waves.size()},
                                   {"predicted_gain", plan.gain},
                                   {"transfer_seconds", plan.transfer.seconds},
                                   {"out", o.out}};
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
  if (!plan.current.empty()) {
    context.out << absl::StrFormat("from the current placement: %d moves, %s, %d waves, predicted gain %.1f %%\n",
                                   plan.moves, HumanBytes(plan.bytes), plan.waves.size(), 100 * plan.gain);
  }
  context.out << "written to " << o.out << "\n";
}

absl::Status Run(const Options& o, CtlContext& context) {
  if (o.load.empty() == o.scenario.empty()) {
    return absl::InvalidArgumentError("give either --load FILE... or --scenario NAME=FILE...");
  }
  const int given = (o.slots_per_gpu > 0 ? 1 : 0) + (o.replicas_per_gpu ? 1 : 0);
  if (given == 2 || (given == 0 && o.topology.empty())) {
    return absl::InvalidArgumentError("give either --slots-per-gpu or --replicas-per-gpu");
  }
  BALLAST_ASSIGN_OR_RETURN(const std::vector<NamedLoads> loads,
                           o.load.empty() ? ReadScenarios(o.scenario) : ReadLoads("load", o.load));
  BALLAST_ASSIGN_OR_RETURN(LoadSet set, MakeLoadSet(loads));
  PlanRequest request;
  request.scenarios = std::move(set.scenarios);
  request.expert_bytes = o.expert_bytes;
  request.slots_per_layer = o.slots_per_gpu;
  request.replicas_per_worker = o.replicas_per_gpu;
  BALLAST_ASSIGN_OR_RETURN(request.topology, MakeTopology(o, static_cast<int32_t>(set.row_of_layer.size()),
                                                          request.scenarios[0].load.experts));
  if (!o.current.empty()) {
    BALLAST_ASSIGN_OR_RETURN(PlanFile current, ReadPlan(o.current));
    if (current.row_of_layer != set.row_of_layer || current.rows != set.rows) {
      return absl::InvalidArgumentError(
          absl::StrCat(o.current, ": its layers are other rows of the load (", current.row_of_layer.size(), " of ",
                       current.rows, ") than these loads' (", set.row_of_layer.size(), " of ", set.rows, ")"));
    }
    request.current = std::move(current.placement);
  }
  BALLAST_ASSIGN_OR_RETURN(const std::unique_ptr<PlannerPolicy> policy, MakePolicy(o));
  BALLAST_ASSIGN_OR_RETURN(const Plan plan, MakePlan(*policy, request));
  PlanFile file;
  file.policy = plan.policy;
  file.topology = request.topology;
  file.placement = plan.placement;
  file.expert_bytes = o.expert_bytes;
  file.rows = set.rows;
  file.row_of_layer = set.row_of_layer;
  file.scenarios = request.scenarios;
  BALLAST_RETURN_IF_ERROR(WriteFile(o.out, FormatPlan(file)));
  PrintPlan(plan, o, context);
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
      "  A quarter of an extra expert a GPU and layer, where it helps most:\n"
      "    ballastctl plan --load dump.json --gpus 32 --replicas-per-gpu 15 --out plan.json\n"
      "  As the engines plan it, to export to one:\n"
      "    ballastctl plan --policy eplb --load dump.json --gpus 32 --slots-per-gpu 9 --out plan.json\n"
      "  What would change, from the plan in force:\n"
      "    ballastctl plan --load today.json --current plan.json --gpus 32 --slots-per-gpu 9 --out next.json\n"
      "Load files are recognised from their content: SGLang's recorder JSON, csv of routes "
      "(layer,sample,token,e0,...)\n"
      "or counts (dataset,iteration,layer,e0,...), counts by model (choose with FILE#MODEL), ballast.load/v1; gzip "
      "too.");
  verb->add_option("--load", o->load, "Load files; together they are one load")->type_name("FILE");
  verb->add_option("--scenario", o->scenario, "A load of its own, by name; repeat for each")->type_name("NAME=FILE");
  verb->add_option("--gpus", o->gpus, "GPUs to plan for")->type_name("N")->check(CLI::Range(1, 1 << 20));
  verb->add_option("--nodes", o->nodes, "Nodes they are on, in equal blocks")
      ->type_name("M")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--slots-per-gpu", o->slots_per_gpu, "Slots of one layer on each GPU, the same in every layer")
      ->type_name("K")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option(
          "--replicas-per-gpu", o->replicas_per_gpu,
          "In place of it: replicas beyond one an expert on each GPU, over all layers, which go to the layers\n"
          "that need them")
      ->type_name("R")
      ->check(CLI::Range(0, 1 << 24));
  verb->add_option("--topology", o->topology, "A topology file in place of --gpus and --nodes")->type_name("FILE");
  verb->add_option("--policy", o->policy,
                   "How to plan: cost-aware (ours: level by construction or search, with traffic\n"
                   "shares), craft or eplb (as published, equal split)")
      ->capture_default_str();
  verb->add_option("--groups", o->groups, "Expert groups of the model (group-limited routing), for eplb")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--current", o->current, "The plan in force: keeps what it can in place, and counts the moves")
      ->type_name("FILE");
  verb->add_option("--expert-bytes", o->expert_bytes, "Bytes of one expert's weights, for the cost of moves")
      ->type_name("B")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--out", o->out, "The plan file to write")->type_name("FILE")->required();
  verb->callback([o, &context] { context.run = [o, &context] { return Run(*o, context); }; });
}

}  // namespace ballast
