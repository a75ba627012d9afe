#include <memory>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/formats/cost_model_file.h"
#include "controller/formats/plan_file.h"
#include "controller/sim/step.h"
#include "proto/base/flags.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::string plan;
  std::vector<std::string> load;
  std::string cost_model;
  SampleOptions sample;
  int64_t steps = 100;
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

absl::Status Run(const Options& o, CtlContext& context) {
  BALLAST_ASSIGN_OR_RETURN(const PlanFile plan, ReadPlan(o.plan));
  BALLAST_ASSIGN_OR_RETURN(const std::vector<NamedLoads> loads, ReadLoads("load", o.load));
  BALLAST_ASSIGN_OR_RETURN(const Scenario scenario,
                           OntoLayers(loads[0], plan.rows, plan.row_of_layer, plan.placement.num_experts));
  BALLAST_ASSIGN_OR_RETURN(const CostModel model, ReadCostModel(o.cost_model));
  const LoadMatrix parts = Parts(scenario.load);

  StepFigures mean[std::size(kSplits)];
  for (StepFigures& figures : mean) figures = {0, 0};
  std::vector<StepRunner> runners;
  for (const auto& s : kSplits) runners.emplace_back(plan.placement, plan.topology, model, s.split);
  std::mt19937_64 random(o.seed);
  LoadMatrix counts;
  for (int64_t step = 0; step < o.steps; ++step) {
    SampleCounts(parts, o.sample, 1, random, counts);
    for (size_t i = 0; i < runners.size(); ++i) {
      const StepFigures figures = runners[i].Run(counts);
      mean[i].balancedness += figures.balancedness / static_cast<double>(o.steps);
      mean[i].microseconds += figures.microseconds / static_cast<double>(o.steps);
    }
  }

  nlohmann::ordered_json json = {{"tokens_per_step", o.sample.tokens_per_step},
                                 {"top_k", o.sample.top_k},
                                 {"burstiness", o.sample.burstiness},
                                 {"steps", o.steps},
                                 {"seed", o.seed}};
  Table table({"SPLIT", "STEP BALANCEDNESS", "STEP TIME", "TOKENS/S"});
  for (size_t i = 0; i < std::size(kSplits); ++i) {
    const double throughput =
        mean[i].microseconds == 0 ? 0 : static_cast<double>(o.sample.tokens_per_step) / (mean[i].microseconds * 1e-6);
    const nlohmann::ordered_json figures = {{"step_balancedness", mean[i].balancedness},
                                            {"step_microseconds", mean[i].microseconds},
                                            {"tokens_per_second", throughput}};
    if (i == 0) json.update(figures);
    json[kSplits[i].key] = figures;
    table.AddRow({kSplits[i].shown, Ratio(mean[i].balancedness), absl::StrFormat("%.3f ms", mean[i].microseconds / 1e3),
                  absl::StrFormat("%.0f", throughput)});
  }
  if (context.output != OutputFormat::kTable) {
    PrintDocument(context.output, json, context.out);
    return absl::OkStatus();
  }
  table.Print(context.out);
  context.out << absl::StrFormat("\n%d steps of %d tokens, %d experts a token in each of %d layers, on %d GPUs%s\n",
                                 o.steps, o.sample.tokens_per_step, o.sample.top_k, plan.placement.num_layers,
                                 plan.topology.workers.size(),
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
      "The cost model is JSON, {\"format\": \"ballast.cost_model/v1\"} alone being one H200 with DeepSeek-V3's "
      "experts;\n"
      "docs/schemas/cost_model.v1.schema.json has every field.\n"
      "Examples:\n"
      "  ballastctl simulate --plan plan.json --load dump.json --cost-model h200.json\n"
      "  ballastctl simulate --plan plan.json --load dump.json --cost-model h200.json --tokens-per-step 512 -o json");
  verb->add_option("--plan", o->plan, "The plan file")->type_name("FILE")->required();
  verb->add_option("--load", o->load, "Load files; together they are one load")->type_name("FILE")->required();
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
  verb->add_option("--burstiness", o->sample.burstiness,
                   "Deviation over mean of an expert's part from step to step, beyond independent tokens")
      ->check(Between(0.0, 100.0))
      ->capture_default_str();
  verb->add_option("--seed", o->seed, "Of the draws; the same seed gives the same figures")->capture_default_str();
  verb->callback([o, &context] { context.run = [o, &context] { return Run(*o, context); }; });
}

}  // namespace ballast
