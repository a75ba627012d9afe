#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/formats/engine_file.h"
#include "controller/formats/plan_file.h"
#include "controller/planner/memory.h"
#include "controller/planner/score.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct ExportOptions {
  std::string plan;
  std::string format;
  bool equalize = false;
  EngineFileOptions file;
  std::string out;
};

absl::Status RunExport(const ExportOptions& o, CtlContext& context) {
  const EngineFormat format = EngineFormatOf(o.format);
  BALLAST_RETURN_IF_ERROR(CheckOptions(format, o.file));
  BALLAST_ASSIGN_OR_RETURN(const PlanFile plan, ReadPlan(o.plan));
  absl::StatusOr<SlotMap> map = ToSlotMap(plan);
  if (o.equalize && map.ok()) context.err << "nothing to equalize: the file says all of the plan\n";
  if (o.equalize && !map.ok()) {
    BALLAST_ASSIGN_OR_RETURN(const Equalized equal, Equalize(plan));
    context.err << absl::StrFormat("equalized: %d slots of each layer on every GPU, %s\n", equal.slots,
                                   equal.planned_anew ? "planned anew for equal split" : "in the same places");
    for (const EqualizeLoss& loss : equal.losses) {
      context.err << absl::StrFormat("equalized: scenario %s: balancedness %s, was %s (loss %.4f)\n", loss.scenario,
                                     Ratio(loss.after), Ratio(loss.before), loss.before - loss.after);
    }
    map = ToSlotMap(equal.plan);
  }
  if (!map.ok()) return map.status();
  const std::string bytes = FormatEngineFile(format, *map, o.file);
  if (o.out.empty()) {
    context.out << bytes;
    return absl::OkStatus();
  }
  return WriteFile(o.out, bytes);
}

struct ImportOptions {
  std::string file;
  std::string format;
  int32_t gpus = 0;
  std::optional<int32_t> nodes;
  std::string topology;
  std::vector<std::string> load;
  int64_t expert_bytes = 0;
  EngineFileOptions engine;
  std::string out;
};

absl::Status RunImport(const ImportOptions& o, CtlContext& context) {
  std::optional<Topology> topology;
  int32_t gpus = o.gpus;
  if (!o.topology.empty()) {
    BALLAST_ASSIGN_OR_RETURN(topology, ReadTopology(o.topology));
    if (gpus != 0 || o.nodes) {
      return absl::InvalidArgumentError("--topology says what the GPUs are: give either it or --gpus and --nodes");
    }
    gpus = static_cast<int32_t>(topology->workers.size());
  }
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(o.file));
  std::optional<EngineFormat> format;
  if (!o.format.empty()) format = EngineFormatOf(o.format);
  BALLAST_ASSIGN_OR_RETURN(SlotMap map, ParseEngineFile(bytes, o.file, format, gpus, o.engine));
  std::optional<LoadSet> load;
  if (!o.load.empty()) {
    BALLAST_ASSIGN_OR_RETURN(const std::vector<NamedLoads> loads, ReadLoads("load", o.load));
    BALLAST_ASSIGN_OR_RETURN(load, MakeLoadSet(loads));
  }
  if (!topology.has_value()) {
    const int32_t nodes = o.nodes.value_or(1);
    if (nodes > map.gpus) {
      return absl::InvalidArgumentError(absl::StrCat("--nodes ", nodes, ": there are ", map.gpus, " GPUs"));
    }
    const size_t slots = map.expert_of_slot[0].size() / map.gpus * map.expert_of_slot.size();
    topology = UniformTopology(map.gpus, nodes, static_cast<int32_t>(slots));
  }
  const size_t slots = map.expert_of_slot[0].size();
  absl::StatusOr<ImportedPlan> imported = FromSlotMap(std::move(map), *topology, load ? &*load : nullptr);
  if (!imported.ok()) {
    return absl::Status(imported.status().code(), absl::StrCat(o.file, ": ", imported.status().message()));
  }
  imported->plan.expert_bytes = o.expert_bytes;
  BALLAST_RETURN_IF_ERROR(WriteFile(o.out, FormatPlan(imported->plan)));
  constexpr size_t kShown = 3;
  for (size_t i = 0; i < std::min(kShown, imported->merged.size()); ++i) {
    const ImportedPlan::Merged& m = imported->merged[i];
    context.err << absl::StrFormat("layer %d: expert %d is %d times on %s; one replica with their weight\n", m.layer,
                                   m.expert, m.slots, m.worker);
  }
  if (imported->merged.size() > kShown) {
    context.err << absl::StrFormat("... and %d more like it\n", imported->merged.size() - kShown);
  }
  const Placement& placement = imported->plan.placement;
  if (context.output != OutputFormat::kTable) {
    nlohmann::ordered_json json = {
        {"layers", placement.num_layers},   {"experts", placement.num_experts},  {"slots", slots},
        {"gpus", placement.workers.size()}, {"merged", imported->merged.size()}, {"out", o.out}};
    if (load) {
      json["balancedness"] = ScoreLoad(placement, imported->plan.scenarios[0], imported->plan.topology).balancedness;
    }
    PrintDocument(context.output, json, context.out);
    return absl::OkStatus();
  }
  context.out << absl::StrFormat("%d layers of %d experts in %d slots on %d GPUs\n", placement.num_layers,
                                 placement.num_experts, slots, placement.workers.size());
  if (load) {
    context.out << "balancedness under the load: "
                << Ratio(ScoreLoad(placement, imported->plan.scenarios[0], imported->plan.topology).balancedness)
                << "\n";
  }
  context.out << "written to " << o.out << "\n";
  return absl::OkStatus();
}

void AddFirstLayer(CLI::App* verb, EngineFileOptions& options) {
  verb->add_option("--first-layer", options.first_layer,
                   "trtllm: the model's number of the load's first row; not 0 where the load has MoE layers alone and "
                   "dense\nones come before them")
      ->type_name("N")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
}

}  // namespace

void AddExportVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<ExportOptions>();
  CLI::App* verb = app.add_subcommand("export", "Write a plan as another engine's placement file");
  verb->footer(
      "Engines split an expert's tokens equally and want as many slots in every layer and on every GPU. A plan that "
      "says\n"
      "more is refused, or with --equalize brought to that, with what it loses printed.\n"
      "Examples:\n"
      "  SGLang:\n"
      "    ballastctl export --plan plan.json --format sglang --out placement.json\n"
      "    python3 -m sglang.launch_server ... --init-expert-location placement.json\n"
      "  TensorRT-LLM, in the options of the LLM API: moe_config: {load_balancer: balancer.yaml}\n"
      "    ballastctl export --plan plan.json --format trtllm --equalize --out balancer.yaml\n"
      "  vLLM-Ascend: --additional-config '{\"eplb_config\": {\"expert_map_path\": \"map.json\"}}'\n"
      "    ballastctl export --plan plan.json --format vllm-ascend --equalize --out map.json\n"
      "  A member of a plan set:\n"
      "    ballastctl export --plan set.json#chat --format sglang --equalize --out chat.json\n"
      "  What DeepSeek's rebalance_experts returns:\n"
      "    ballastctl export --plan plan.json --format eplb --equalize --out arrays.json");
  verb->add_option("--plan", o->plan, "The plan file; of a plan set one member")
      ->type_name("FILE[#MEMBER]")
      ->required();
  verb->add_option("--format", o->format, "Whose file")->required()->check(CLI::IsMember(EngineFormatNames()));
  verb->add_flag("--equalize", o->equalize, "Drop what the format cannot say, and print the loss");
  AddFirstLayer(verb, o->file);
  verb->add_option("--out", o->out, "The file to write; stdout by default")->type_name("FILE");
  verb->callback([o, &context] { context.run = [o, &context] { return RunExport(*o, context); }; });
}

void AddImportVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<ImportOptions>();
  CLI::App* verb = app.add_subcommand("import", "Read another engine's placement file as a plan");
  verb->footer(
      "The file is recognised from its content. With --load the layers without load are left out as dense, and the "
      "plan\n"
      "can be planned on from (plan --current) and compared.\n"
      "Examples:\n"
      "  ballastctl import --file placement.json --gpus 32 --nodes 4 --load dump.json --out now.json\n"
      "  ballastctl score --plan now.json --load dump.json\n"
      "  ballastctl plan --current now.json --load dump.json --gpus 32 --nodes 4 --slots-per-gpu 9 --out next.json");
  verb->add_option("--file", o->file, "The engine's file")->type_name("FILE")->required();
  verb->add_option("--format", o->format, "What the file must be")->check(CLI::IsMember(EngineFormatNames()));
  verb->add_option("--gpus", o->gpus, "GPUs that its slots are on; vllm-ascend files say it themselves")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--nodes", o->nodes, "Nodes they are on, in blocks as equal as can be")
      ->type_name("M")
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--topology", o->topology, "A topology file in place of --gpus and --nodes")->type_name("FILE");
  verb->add_option("--load", o->load, "What the engine planned it for; several files are one load")->type_name("FILE");
  verb->add_option("--expert-bytes", o->expert_bytes, "Bytes of one expert's weights, for the cost of moves")
      ->type_name("B")
      ->check(CLI::Range(int64_t{0}, kMaxExpertBytes));
  AddFirstLayer(verb, o->engine);
  verb->add_option("--out", o->out, "The plan file to write")->type_name("FILE")->required();
  verb->callback([o, &context] { context.run = [o, &context] { return RunImport(*o, context); }; });
}

}  // namespace ballast
