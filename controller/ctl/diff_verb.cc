#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/formats/plan_file.h"
#include "controller/planner/score.h"
#include "controller/planner/waves.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::string from;
  std::string to;
  std::vector<std::string> load;
  bool moves = false;
};

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
  BALLAST_ASSIGN_OR_RETURN(const std::vector<Wave> waves,
                           PlanWaves(from.placement, Onto(to.placement, to.topology), to.topology, scenarios, {}));
  int64_t moves = 0;
  double seconds = 0;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  Table table({"WAVE", "MOVES", "DROPS", "BYTES", "SECONDS", "BUSIEST GPUS' TOKENS"});
  for (size_t i = 0; i < waves.size(); ++i) {
    const Wave& wave = waves[i];
    const auto count = static_cast<int64_t>(wave.moves.size());
    const double transfer = TransferSeconds(wave, to.topology, to.expert_bytes);
    moves += count;
    seconds += transfer;
    table.AddRow({absl::StrCat(i + 1), absl::StrCat(count), absl::StrCat(wave.drops.size()),
                  HumanBytes(count * to.expert_bytes), absl::StrFormat("%.3f", transfer),
                  absl::StrFormat("%.6g", wave.busiest)});
    nlohmann::ordered_json json = {{"moves", count},
                                   {"drops", wave.drops.size()},
                                   {"bytes", count * to.expert_bytes},
                                   {"transfer_seconds", transfer},
                                   {"busiest_tokens", wave.busiest},
                                   {"within_tolerance", wave.within_tolerance}};
    if (o.moves) {
      json["list"] = nlohmann::ordered_json::array();
      for (const Move& m : wave.moves) {
        json["list"].push_back({{"layer", m.expert.layer},
                                {"expert", m.expert.expert},
                                {"source", to.placement.workers[m.source]},
                                {"worker", to.placement.workers[m.worker]},
                                {"slot", m.slot}});
      }
    }
    list.push_back(std::move(json));
  }
  double gain = 1;
  nlohmann::ordered_json by_scenario = nlohmann::ordered_json::array();
  Table effect({"SCENARIO", "BALANCEDNESS BEFORE", "AFTER", "GAIN"});
  for (const Scenario& s : scenarios) {
    const LoadScore before = ScoreLoad(from.placement, s, to.topology);
    const LoadScore after = ScoreLoad(to.placement, s, to.topology);
    const double one = before.busiest == 0 ? 0 : 1 - after.busiest / before.busiest;
    gain = std::min(gain, one);
    by_scenario.push_back({{"scenario", s.name},
                           {"balancedness_before", before.balancedness},
                           {"balancedness_after", after.balancedness},
                           {"predicted_gain", one}});
    effect.AddRow(
        {s.name, Ratio(before.balancedness), Ratio(after.balancedness), absl::StrFormat("%.2f %%", 100 * one)});
  }
  if (context.output != OutputFormat::kTable) {
    PrintDocument(context.output,
                  {{"moves", moves},
                   {"bytes", moves * to.expert_bytes},
                   {"waves", waves.size()},
                   {"transfer_seconds", seconds},
                   {"predicted_gain", gain},
                   {"scenarios", by_scenario},
                   {"by_wave", list}},
                  context.out);
    return absl::OkStatus();
  }
  effect.Print(context.out);
  context.out << absl::StrFormat("\n%d moves, %s, %d waves, %.3f s of transfers\n", moves,
                                 HumanBytes(moves * to.expert_bytes), waves.size(), seconds);
  if (!waves.empty()) {
    context.out << "\n";
    table.Print(context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddDiffVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("diff", "What it takes to get from one plan to another, and what it gains");
  verb->footer(
      "Gain: the part of the tokens on the busiest GPUs, summed over layers, that goes away.\n"
      "Examples:\n"
      "  ballastctl diff --from plan.json --to next.json\n"
      "  ballastctl diff --from plan.json --to next.json --moves --output json");
  verb->add_option("--from", o->from, "The plan in force")->type_name("FILE")->required();
  verb->add_option("--to", o->to, "The plan to get to")->type_name("FILE")->required();
  verb->add_option("--load", o->load, "Load to predict the gain with; by default what the second plan was made for")
      ->type_name("FILE");
  verb->add_flag("--moves", o->moves, "Every move too (json, yaml)");
  verb->callback([o, &context] { context.run = [o, &context] { return Run(*o, context); }; });
}

}  // namespace ballast
