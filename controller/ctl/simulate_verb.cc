#include <algorithm>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/ctl/progress.h"
#include "controller/formats/cost_model_file.h"
#include "controller/formats/plan_file.h"
#include "controller/sim/step.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::string plan;
  std::vector<std::string> load;
  std::vector<std::string> scenario;
  std::string cost_model;
  SampleOptions sample;
  int64_t steps = 100;
  double horizon_seconds = GateLimits().horizon_seconds;
  uint64_t seed = 1;
};

constexpr struct {
  const char* key;
  const char* shown;
  StepSplit split;
} kSplits[] = {
    {"plan_shares", "plan's shares", StepSplit::kWeights},
    {"equal_split", "equal split", StepSplit::kEqual},
    {"shares_per_step", "shares per step", StepSplit::kSolved},
};

// Each layer's tokens as parts of its sum.
LoadMatrix Parts(LoadMatrix load) {
  for (int32_t l = 0; l < load.layers; ++l) {
    const auto layer = load.layer(l);
    const double sum = std::accumulate(layer.begin(), layer.end(), 0.0);
    for (double& t : layer) t = sum == 0 ? 0 : t / sum;
  }
  return load;
}

// Under one load: what steps are like on the plan that serves it.
struct Phase {
  std::string scenario;
  // Of the set; and the change to it from the phase before, none where it was in force.
  size_t member = 0;
  std::optional<size_t> from;
  Switch change;
  std::string reason;
  // By kSplits, means.
  StepFigures figures[std::size(kSplits)];
};

// Serving seconds that a switch costs, as the picker's gate counts them.
double LostSeconds(const Switch& change, const GateLimits& gate) {
  return change.transfer_seconds * gate.move_slowdown + static_cast<double>(change.waves) * gate.seconds_per_wave;
}

double Throughput(const Options& o, const StepFigures& figures) {
  return figures.microseconds == 0 ? 0 : static_cast<double>(o.sample.tokens_per_step) / (figures.microseconds * 1e-6);
}

// Tokens a second over all phases, each of which lasts the horizon, what switching loses taken off.
double Throughput(const Options& o, const std::vector<Phase>& phases, size_t split, const GateLimits& gate) {
  double sum = 0;
  for (const Phase& phase : phases) {
    const double lost = std::min(1.0, LostSeconds(phase.change, gate) / gate.horizon_seconds);
    sum += Throughput(o, phase.figures[split]) * (1 - lost);
  }
  return sum / static_cast<double>(phases.size());
}

// Counts the steps of all phases in `progress`, from `before` on.
void RunSteps(const Options& o, const PlanFile& plan, const LoadMatrix& load, const CostModel& model, int64_t before,
              Progress& progress, Phase& phase) {
  const LoadMatrix parts = Parts(load);
  for (StepFigures& figures : phase.figures) figures = {0, 0};
  std::vector<StepRunner> runners;
  for (const auto& s : kSplits) runners.emplace_back(plan.placement, plan.topology, model, s.split);
  std::mt19937_64 random(o.seed);
  LoadMatrix counts;
  for (int64_t step = 0; step < o.steps; ++step) {
    SampleCounts(parts, o.sample, 1, random, counts);
    for (size_t i = 0; i < runners.size(); ++i) {
      const StepFigures figures = runners[i].Run(counts);
      phase.figures[i].balancedness += figures.balancedness / static_cast<double>(o.steps);
      phase.figures[i].microseconds += figures.microseconds / static_cast<double>(o.steps);
    }
    progress.Set(before + step + 1);
  }
}

nlohmann::ordered_json FiguresJson(const Options& o, const Phase& phase) {
  nlohmann::ordered_json json;
  for (size_t i = 0; i < std::size(kSplits); ++i) {
    const nlohmann::ordered_json figures = {{"step_balancedness", phase.figures[i].balancedness},
                                            {"step_microseconds", phase.figures[i].microseconds},
                                            {"tokens_per_second", Throughput(o, phase.figures[i])}};
    if (i == 0) json.update(figures);
    json[kSplits[i].key] = figures;
  }
  return json;
}

nlohmann::ordered_json SettingsJson(const Options& o) {
  return {{"tokens_per_step", o.sample.tokens_per_step},
          {"top_k", o.sample.top_k},
          {"burstiness", o.sample.burstiness},
          {"steps", o.steps},
          {"seed", o.seed}};
}

void PrintFigures(const Options& o, const Phase& phase, std::ostream& out) {
  Table table({"SPLIT", "STEP BALANCEDNESS", "STEP TIME", "TOKENS/S"});
  for (size_t i = 0; i < std::size(kSplits); ++i) {
    table.AddRow({kSplits[i].shown, Ratio(phase.figures[i].balancedness),
                  absl::StrFormat("%.3f ms", phase.figures[i].microseconds / 1e3),
                  absl::StrFormat("%.0f", Throughput(o, phase.figures[i]))});
  }
  table.Print(out);
}

// Several loads in turn, on one plan or the members of a set.
void PrintPhases(const Options& o, const PlanSetFile& set, const std::vector<Phase>& phases, const GateLimits& gate,
                 CtlContext& context) {
  int64_t switches = 0;
  int64_t bytes = 0;
  for (const Phase& phase : phases) {
    switches += phase.from.has_value() ? 1 : 0;
    // A file may say the most that there is.
    if (__builtin_add_overflow(bytes, phase.change.bytes, &bytes)) bytes = std::numeric_limits<int64_t>::max();
  }
  if (context.output != OutputFormat::kTable) {
    nlohmann::ordered_json json = SettingsJson(o);
    json["horizon_seconds"] = gate.horizon_seconds;
    json["tokens_per_second"] = Throughput(o, phases, 0, gate);
    for (size_t i = 0; i < std::size(kSplits); ++i) {
      json[kSplits[i].key] = {{"tokens_per_second", Throughput(o, phases, i, gate)}};
    }
    json["switches"] = switches;
    json["switch_bytes"] = bytes;
    json["scenarios"] = nlohmann::ordered_json::array();
    for (const Phase& phase : phases) {
      nlohmann::ordered_json row = {{"scenario", phase.scenario}};
      if (!set.members[0].name.empty()) {
        row["member"] = set.members[phase.member].name;
        row["member_reason"] = phase.reason;
      }
      row.update(FiguresJson(o, phase));
      if (phase.from) {
        row["switch"] = {{"from", set.members[*phase.from].name},
                         {"moves", phase.change.moves},
                         {"bytes", phase.change.bytes},
                         {"waves", phase.change.waves},
                         {"transfer_seconds", phase.change.transfer_seconds},
                         {"lost_seconds", LostSeconds(phase.change, gate)}};
      }
      json["scenarios"].push_back(std::move(row));
    }
    PrintDocument(context.output, json, context.out);
    return;
  }
  for (const Phase& phase : phases) {
    context.out << phase.scenario;
    if (!set.members[0].name.empty()) context.out << " on " << set.members[phase.member].name << ": " << phase.reason;
    context.out << "\n";
    PrintFigures(o, phase, context.out);
    if (phase.from) {
      context.out << absl::StrFormat(
          "switched from %s: %d moves, %s, %d waves, %.3f s of transfers: %.3f s of serving "
          "lost\n",
          set.members[*phase.from].name, phase.change.moves, HumanBytes(phase.change.bytes), phase.change.waves,
          phase.change.transfer_seconds, LostSeconds(phase.change, gate));
    }
    context.out << "\n";
  }
  Table table({"SPLIT", "TOKENS/S OVER ALL"});
  for (size_t i = 0; i < std::size(kSplits); ++i) {
    table.AddRow({kSplits[i].shown, absl::StrFormat("%.0f", Throughput(o, phases, i, gate))});
  }
  table.Print(context.out);
  context.out << absl::StrFormat("\n%d scenarios of %.6g s each; %d switches, %s moved, what they lose taken off\n",
                                 phases.size(), gate.horizon_seconds, switches, HumanBytes(bytes));
}

absl::Status Run(const Options& o, CtlContext& context) {
  if (o.load.empty() == o.scenario.empty()) {
    return absl::InvalidArgumentError("give either --load FILE... or --scenario NAME=FILE...");
  }
  BALLAST_ASSIGN_OR_RETURN(const PlanSetFile set, ReadPlanSet(o.plan));
  BALLAST_ASSIGN_OR_RETURN(const std::vector<NamedLoads> loads,
                           o.load.empty() ? ReadScenarios(o.scenario) : ReadLoads("load", o.load));
  BALLAST_ASSIGN_OR_RETURN(const CostModel model, ReadCostModel(o.cost_model));
  const PlanSetFile::Member& first = set.members[0];
  const PlanFile& shape = first.plan;
  if (o.sample.top_k > shape.placement.num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("--top-k ", o.sample.top_k, ": a layer has ", shape.placement.num_experts, " experts"));
  }
  GateLimits gate;
  gate.horizon_seconds = o.horizon_seconds;
  std::vector<Phase> phases;
  std::optional<Progress> progress;
  progress.emplace(ProgressLineOf(context), Clock::Real(), "simulating", o.steps * static_cast<int64_t>(loads.size()));
  for (const NamedLoads& named : loads) {
    BALLAST_ASSIGN_OR_RETURN(const Scenario scenario,
                             OntoLayers(named, shape.rows, shape.row_of_layer, shape.placement.num_experts));
    Phase phase{.scenario = named.name};
    if (!first.name.empty()) {
      const int32_t before = phases.empty() ? -1 : static_cast<int32_t>(phases.back().member);
      BALLAST_ASSIGN_OR_RETURN(Pick pick, PickMember(set, before, scenario.load, gate));
      phase.member = static_cast<size_t>(pick.member);
      phase.reason = std::move(pick.reason);
      if (before >= 0 && pick.member != before) {
        phase.from = static_cast<size_t>(before);
        phase.change = set.switches[before][pick.member];
      }
    }
    RunSteps(o, set.members[phase.member].plan, scenario.load, model, o.steps * static_cast<int64_t>(phases.size()),
             *progress, phase);
    phases.push_back(std::move(phase));
  }
  progress.reset();
  if (!o.scenario.empty() || !first.name.empty()) {
    PrintPhases(o, set, phases, gate, context);
    return absl::OkStatus();
  }
  if (context.output != OutputFormat::kTable) {
    nlohmann::ordered_json json = SettingsJson(o);
    json.update(FiguresJson(o, phases[0]));
    PrintDocument(context.output, json, context.out);
    return absl::OkStatus();
  }
  PrintFigures(o, phases[0], context.out);
  context.out << absl::StrFormat("\n%d steps of %d tokens, %d experts a token in each of %d layers, on %d GPUs%s\n",
                                 o.steps, o.sample.tokens_per_step, o.sample.top_k, shape.placement.num_layers,
                                 shape.topology.workers.size(),
                                 model.microseconds_per_step == 0 ? "; the MoE layers' time alone" : "");
  return absl::OkStatus();
}

}  // namespace

void AddSimulateVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("simulate", "Step time and throughput of a plan under a load, by a cost model");
  verb->footer(
      "Draws steps from the load, every token choosing for itself, and takes from the cost model how long the busiest\n"
      "GPU of each layer needs. Balancedness is of single steps, so below what `score` says of the whole load.\n"
      "  plan's shares     every expert's tokens split as the plan says\n"
      "  equal split       alike over its replicas, as other engines do\n"
      "  shares per step   solved for each step's own counts\n"
      "Scenarios come in turn, each for --horizon seconds. Of a plan set the picker chooses the member for each; it\n"
      "changes where that pays within the horizon, and what the change costs is taken off the throughput over all.\n"
      "The cost model is JSON, {\"format\": \"ballast.cost_model/v1\"} alone being one H200 with DeepSeek-V3's "
      "experts;\n"
      "docs/schemas/cost_model.v1.schema.json has every field.\n"
      "Examples:\n"
      "  ballastctl simulate --plan plan.json --load dump.json --cost-model h200.json\n"
      "  ballastctl simulate --plan plan.json --load dump.json --cost-model h200.json --tokens-per-step 512 -o json\n"
      "  ballastctl simulate --plan set.json --scenario day=d.json --scenario night=n.json --cost-model h200.json");
  verb->add_option("--plan", o->plan, "The plan file, or a plan set")->type_name("FILE[#MEMBER]")->required();
  verb->add_option("--load", o->load, "Load files; together they are one load")->type_name("FILE");
  verb->add_option("--scenario", o->scenario, "A load of its own, by name; repeat for each, in the order they come")
      ->type_name("NAME=FILE");
  verb->add_option("--cost-model", o->cost_model, "The cost model file")->type_name("FILE")->required();
  verb->add_option("--tokens-per-step", o->sample.tokens_per_step, "Tokens of one step of the whole group")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  verb->add_option("--top-k", o->sample.top_k, "Experts that a token chooses in a layer")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  verb->add_option("--steps", o->steps, "Steps to draw")
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}))
      ->capture_default_str();
  verb->add_option("--horizon", o->horizon_seconds, "Seconds that each scenario lasts")
      ->type_name("SECONDS")
      ->check(Between(1e-3, 1e12))
      ->capture_default_str();
  verb->add_option("--burstiness", o->sample.burstiness,
                   "Deviation over mean of an expert's part from step to step, beyond independent tokens")
      ->check(Between(0.0, 100.0))
      ->capture_default_str();
  verb->add_option("--seed", o->seed, "Of the draws; the same seed gives the same figures")->capture_default_str();
  verb->callback([o, &context] { context.run = [o, &context] { return Run(*o, context); }; });
}

}  // namespace ballast
