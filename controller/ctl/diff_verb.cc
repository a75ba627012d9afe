#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/formats/cost_model_file.h"
#include "controller/formats/plan_file.h"
#include "controller/planner/memory.h"
#include "controller/planner/planner.h"
#include "controller/planner/score.h"
#include "controller/planner/waves.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::string from;
  std::string to;
  std::vector<std::string> load;
  std::string cost_model;
  bool moves = false;
};

// Of what the busiest workers have.
double GainOf(const Plan& plan, size_t scenario) {
  const double before = plan.current[scenario].busiest;
  return before == 0 ? 0 : 1 - plan.predicted[scenario].busiest / before;
}

nlohmann::ordered_json Document(const Plan& plan, const PlanRequest& request, bool moves) {
  nlohmann::ordered_json json = ToJson(*PredictionOf(plan).change);
  json["scenarios"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < plan.predicted.size(); ++i) {
    const LoadScore& after = plan.predicted[i];
    json["scenarios"].push_back({{"scenario", after.scenario},
                                 {"balancedness_before", plan.current[i].balancedness},
                                 {"balancedness_after", after.balancedness},
                                 {"upper_bound", after.upper_bound},
                                 {"busiest_tokens_before", plan.current[i].busiest},
                                 {"busiest_tokens_after", after.busiest},
                                 {"busiest_tokens_bound", after.busiest_bound},
                                 {"predicted_gain", GainOf(plan, i)}});
  }
  json["by_wave"] = nlohmann::ordered_json::array();
  for (const Wave& wave : plan.waves) {
    const auto count = static_cast<int64_t>(wave.moves.size());
    nlohmann::ordered_json row = {{"moves", count},
                                  {"drops", wave.drops.size()},
                                  {"bytes", BytesOf(count, request.expert_bytes)},
                                  {"transfer_seconds", TransferSeconds(wave, request.topology, request.expert_bytes)},
                                  {"busiest_tokens", wave.busiest},
                                  {"within_tolerance", wave.within_tolerance}};
    if (moves) {
      row["list"] = nlohmann::ordered_json::array();
      for (const Move& m : wave.moves) {
        row["list"].push_back({{"layer", m.expert.layer},
                               {"expert", m.expert.expert},
                               {"source", plan.placement.workers[m.source]},
                               {"worker", plan.placement.workers[m.worker]},
                               {"slot", m.slot}});
      }
    }
    json["by_wave"].push_back(std::move(row));
  }
  return json;
}

void PrintTables(const Plan& plan, const PlanRequest& request, std::ostream& out) {
  Table effect({"SCENARIO", "BALANCEDNESS BEFORE", "AFTER", "UPPER BOUND", "GAIN"});
  for (size_t i = 0; i < plan.predicted.size(); ++i) {
    effect.AddRow({plan.predicted[i].scenario, Ratio(plan.current[i].balancedness),
                   Ratio(plan.predicted[i].balancedness), Ratio(plan.predicted[i].upper_bound),
                   absl::StrFormat("%.2f %%", 100 * GainOf(plan, i))});
  }
  effect.Print(out);
  out << "\n";
  const PlanPrediction predicted = PredictionOf(plan);
  PrintBounds(predicted.scenarios, out);
  PrintChange(*predicted.change, out);
  if (plan.waves.empty()) return;
  Table table({"WAVE", "MOVES", "DROPS", "BYTES", "SECONDS", "BUSIEST GPUS' TOKENS"});
  for (size_t i = 0; i < plan.waves.size(); ++i) {
    const Wave& wave = plan.waves[i];
    const auto count = static_cast<int64_t>(wave.moves.size());
    table.AddRow({absl::StrCat(i + 1), absl::StrCat(count), absl::StrCat(wave.drops.size()),
                  HumanBytes(BytesOf(count, request.expert_bytes)),
                  absl::StrFormat("%.3f", TransferSeconds(wave, request.topology, request.expert_bytes)),
                  absl::StrFormat("%.6g", wave.busiest)});
  }
  out << "\n";
  table.Print(out);
}

absl::Status Run(const Options& o, CtlContext& context) {
  BALLAST_ASSIGN_OR_RETURN(const PlanFile from, ReadPlan(o.from));
  BALLAST_ASSIGN_OR_RETURN(const PlanFile to, ReadPlan(o.to));
  if (from.placement.num_layers != to.placement.num_layers || from.placement.num_experts != to.placement.num_experts ||
      from.placement.workers != to.placement.workers) {
    return absl::InvalidArgumentError(absl::StrCat(
        o.from, " places ", from.placement.num_layers, " layers of ", from.placement.num_experts, " experts on ",
        from.placement.workers.size(), " workers, ", o.to, " ", to.placement.num_layers, " of ",
        to.placement.num_experts, " on ", to.placement.workers.size(), "; they must be the same, workers by name"));
  }
  if (from.rows != to.rows || from.row_of_layer != to.row_of_layer) {
    return absl::InvalidArgumentError(absl::StrCat(o.from, ": its layers are other rows of the load (",
                                                   from.row_of_layer.size(), " of ", from.rows, ") than those of ",
                                                   o.to, " (", to.row_of_layer.size(), " of ", to.rows, ")"));
  }
  std::vector<SlotCapacity> capacity;
  for (const TopologyWorker& worker : to.topology.workers) capacity.push_back(worker.capacity);
  if (const absl::Status fits = Validate(from.placement, capacity); !fits.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(o.from, " in the slots of ", o.to, ": ", fits.message()));
  }
  std::vector<Scenario> scenarios = to.scenarios;
  if (!o.load.empty()) {
    BALLAST_ASSIGN_OR_RETURN(const std::vector<NamedLoads> loads, ReadLoads("load", o.load));
    BALLAST_ASSIGN_OR_RETURN(Scenario scenario,
                             OntoLayers(loads[0], to.rows, to.row_of_layer, to.placement.num_experts));
    scenarios = {std::move(scenario)};
  }
  if (scenarios.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(o.to, " does not say what load it is for: give --load"));
  }
  PlanRequest request;
  request.scenarios = std::move(scenarios);
  request.topology = to.topology;
  request.current = from.placement;
  request.expert_bytes = to.expert_bytes;
  if (!o.cost_model.empty()) {
    BALLAST_ASSIGN_OR_RETURN(request.cost_model, ReadCostModel(o.cost_model));
  }
  BALLAST_ASSIGN_OR_RETURN(const Plan plan, PlanTo(to.policy, request, to.placement));
  if (context.output == OutputFormat::kTable) {
    PrintTables(plan, request, context.out);
  } else {
    PrintDocument(context.output, Document(plan, request, o.moves), context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddDiffVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("diff", "What it takes to get from one plan to another, and what it gains");
  verb->footer(
      "Gain: the part of the tokens on the busiest GPUs, summed over layers, that goes away; of several scenarios the\n"
      "worst counts most.\n"
      "Examples:\n"
      "  ballastctl diff --from plan.json --to next.json\n"
      "  ballastctl diff --from plan.json --to next.json --moves --output json\n"
      "  ballastctl diff --from set.json#chat --to set.json#code");
  verb->add_option("--from", o->from, "The plan in force")->type_name("FILE[#MEMBER]")->required();
  verb->add_option("--to", o->to, "The plan to get to")->type_name("FILE[#MEMBER]")->required();
  verb->add_option("--load", o->load, "Load to predict the gain with; by default what the second plan was made for")
      ->type_name("FILE");
  verb->add_option("--cost-model", o->cost_model, "What busy GPUs cost, for the gain in microseconds; see simulate")
      ->type_name("FILE");
  verb->add_flag("--moves", o->moves, "Every move too (json, yaml)");
  verb->callback([o, &context] { context.run = [o, &context] { return Run(*o, context); }; });
}

}  // namespace ballast
