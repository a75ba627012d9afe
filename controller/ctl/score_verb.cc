#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/files.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"
#include "controller/formats/plan_file.h"
#include "controller/formats/task_routes.h"
#include "controller/planner/copies.h"
#include "controller/planner/grouping/hops.h"
#include "controller/planner/memory.h"
#include "controller/planner/score.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct Options {
  std::string plan;
  std::vector<std::string> load;
  bool by_layer = false;
};

nlohmann::ordered_json ToJson(const LoadScore& s) {
  return {{"balancedness", s.balancedness},
          {"balancedness_equal_split", s.balancedness_equal_split},
          {"balancedness_solved_shares", s.balancedness_solved},
          {"worst_layer", {{"layer", s.worst_layer}, {"balancedness", s.worst}}},
          {"jain", s.jain},
          {"maxvio", s.maxvio},
          {"cross_node_part", s.cross_node_part}};
}

void AddHops(const HopScore& score, nlohmann::ordered_json& json) {
  json["hops_per_token"] = score.hops;
  json["maxvio_summed"] = score.balance.maxvio_all;
  json["jain_summed"] = score.balance.jain_all;
}

// The parts of the loads by name, summed: the tasks.
std::vector<NamedLoads> ByPart(const NamedLoads& loads) {
  std::vector<NamedLoads> out;
  for (const LoadFile& file : loads.files) {
    for (const LoadPart& part : file.parts) {
      auto found = std::find_if(out.begin(), out.end(), [&](const NamedLoads& l) { return l.name == part.name; });
      if (found == out.end()) found = out.insert(out.end(), NamedLoads{part.name, {}});
      found->files.push_back({file.format, {part}, {}, file.name});
    }
  }
  return out;
}

absl::Status Run(const Options& o, CtlContext& context) {
  BALLAST_ASSIGN_OR_RETURN(const PlanSetFile set, ReadPlanSet(o.plan));
  BALLAST_ASSIGN_OR_RETURN(const std::vector<NamedLoads> loads, ReadLoads("load", o.load));
  const auto onto = [&](const NamedLoads& named) {
    const PlanFile& any = set.members[0].plan;
    return OntoLayers(named, any.rows, any.row_of_layer, any.placement.num_experts);
  };
  BALLAST_ASSIGN_OR_RETURN(const Scenario scenario, onto(loads[0]));
  std::optional<Pick> pick;
  if (set.members.size() > 1) {
    BALLAST_ASSIGN_OR_RETURN(pick, PickMember(set, -1, scenario.load, GateLimits()));
  }
  const PlanSetFile::Member& member = set.members[pick ? pick->member : 0];
  const PlanFile& plan = member.plan;
  const LoadScore score = ScoreLoad(plan.placement, scenario, plan.topology);
  CopyCount copies;
  const std::vector<DispatchTable> layers = Onto(plan.placement, plan.topology);
  for (const LoadFile& file : loads[0].files) {
    for (size_t l = 0; l < plan.row_of_layer.size(); ++l) {
      const auto row = static_cast<size_t>(plan.row_of_layer[l]);
      if (row >= file.routes.experts.size()) continue;
      copies +=
          CountCopies(layers[l], plan.topology, file.routes.top_k, file.routes.experts[row], file.routes.samples[row]);
    }
  }
  std::vector<HopScore> hops;
  // None where files have counts alone, or leave a layer out.
  if (const auto routes = MakeTaskRoutes(loads, plan.row_of_layer, plan.placement.num_experts); routes.ok()) {
    hops = ScoreHops(layers, *routes, plan.topology);
  }
  const auto replicas = static_cast<int64_t>(plan.placement.replicas.size());
  const int64_t extra = replicas - static_cast<int64_t>(plan.placement.num_layers) * plan.placement.num_experts;
  nlohmann::ordered_json json;
  if (!member.name.empty()) json["member"] = member.name;
  if (pick) {
    json["member_reason"] = pick->reason;
    for (size_t m = 0; m < set.members.size(); ++m) {
      json["member_balancedness"][set.members[m].name] = pick->balancedness[m];
    }
  }
  json.update(ToJson(score));
  const nlohmann::ordered_json unknown;
  json["copies_per_token"] = copies.tokens == 0 ? unknown : nlohmann::ordered_json(copies.per_token());
  json["cross_node_copies_per_token"] =
      copies.tokens == 0 ? unknown : nlohmann::ordered_json(copies.cross_node_per_token());
  if (!hops.empty()) AddHops(hops[0], json);
  json["replicas"] = extra;
  json["replica_bytes"] = BytesOf(extra, plan.expert_bytes);
  json["upper_bound"] = score.upper_bound;
  const std::vector<NamedLoads> tasks = ByPart(loads[0]);
  std::vector<std::pair<std::string, LoadScore>> task_scores;
  if (tasks.size() > 1) {
    for (const NamedLoads& task : tasks) {
      BALLAST_ASSIGN_OR_RETURN(const Scenario part, onto(task));
      task_scores.emplace_back(task.name, ScoreLoad(plan.placement, part, plan.topology));
      json["tasks"][task.name] = ToJson(task_scores.back().second);
      for (const HopScore& h : hops) {
        if (h.task == task.name) AddHops(h, json["tasks"][task.name]);
      }
    }
  }
  if (o.by_layer) {
    json["layers"] = nlohmann::ordered_json::array();
    for (size_t l = 0; l < score.layers.size(); ++l) {
      const LayerScore& s = score.layers[l];
      json["layers"].push_back({{"layer", l},
                                {"row", plan.row_of_layer[l]},
                                {"balancedness", s.balancedness},
                                {"balancedness_equal_split", s.balancedness_equal_split},
                                {"balancedness_solved_shares", s.balancedness_solved},
                                {"upper_bound", s.upper_bound},
                                {"jain", s.jain},
                                {"maxvio", s.maxvio}});
    }
  }
  if (context.output != OutputFormat::kTable) {
    PrintDocument(context.output, json, context.out);
    return absl::OkStatus();
  }
  if (pick) {
    Table members({"MEMBER", "BALANCEDNESS", "PICKED"});
    for (size_t m = 0; m < set.members.size(); ++m) {
      members.AddRow({set.members[m].name, Ratio(pick->balancedness[m]), &set.members[m] == &member ? "*" : ""});
    }
    members.Print(context.out);
    context.out << "\n"
                << pick->reason << (set.split == Split::kSolved ? " (shares solved for the load)" : " (equal split)")
                << "\n\n";
  }
  Table table({"LOAD", "BALANCEDNESS", "EQUAL SPLIT", "SOLVED SHARES", "UPPER BOUND", "JAIN", "MAXVIO", "WORST LAYER"});
  const auto add = [&](const std::string& name, const LoadScore& s) {
    table.AddRow({name, Ratio(s.balancedness), Ratio(s.balancedness_equal_split), Ratio(s.balancedness_solved),
                  Ratio(s.upper_bound), Ratio(s.jain), Ratio(s.maxvio),
                  absl::StrFormat("%s (layer %d)", Ratio(s.worst), s.worst_layer)});
  };
  add("all", score);
  for (const auto& [name, s] : task_scores) add(name, s);
  table.Print(context.out);
  context.out << absl::StrFormat("\n%d replicas beyond one an expert, %s\n", extra,
                                 HumanBytes(BytesOf(extra, plan.expert_bytes)));
  if (score.cross_node_part > 0) {
    context.out << absl::StrFormat(
        "%.1f %% of the (token, expert) pairs cross nodes, where tokens come to all GPUs alike\n",
        100 * score.cross_node_part);
  }
  if (copies.tokens > 0) {
    context.out << absl::StrFormat("%.3f copies a token and layer, %.3f of them to another node\n", copies.per_token(),
                                   copies.cross_node_per_token());
  }
  for (const HopScore& h : hops) {
    context.out << absl::StrFormat("%s: %.2f hops a token; summed over layers MaxVio %.3f, Jain %.4f\n",
                                   h.task.empty() ? "tasks, each counting the same" : h.task, h.hops,
                                   h.balance.maxvio_all, h.balance.jain_all);
  }
  if (o.by_layer) {
    context.out << "\n";
    Table rows({"LAYER", "BALANCEDNESS", "EQUAL SPLIT", "SOLVED SHARES", "UPPER BOUND"});
    for (size_t l = 0; l < score.layers.size(); ++l) {
      const LayerScore& s = score.layers[l];
      rows.AddRow({absl::StrCat(l), Ratio(s.balancedness), Ratio(s.balancedness_equal_split),
                   Ratio(s.balancedness_solved), Ratio(s.upper_bound)});
    }
    rows.Print(context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddScoreVerb(CLI::App& app, CtlContext& context) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("score", "How level a plan is under a load, and how level any could be");
  verb->footer(
      "Balancedness is the mean over the layers of (mean load of a GPU) / (load of the busiest): 1 is level.\n"
      "  balancedness                 with the plan's own shares\n"
      "  balancedness_equal_split     every expert's tokens split equally over its replicas\n"
      "  balancedness_solved_shares   shares chosen anew for this load\n"
      "  upper_bound                  no placement of as many replicas can be above it, proven\n"
      "  cross_node_part              part of the (token, expert) pairs that cross nodes, tokens coming to all GPUs "
      "alike\n"
      "Copies a token need a load of routes: GPUs that a token's vector is sent to in a layer, itself left out; "
      "samples\n"
      "are at home on the GPUs in turn. Hops a token, from routes too: the GPUs that a token visits, less one, summed "
      "over\n"
      "layers, files being tasks that count the same and tokens being at home on the GPUs in turn.\n"
      "Of a plan set the member that the load wants is scored, and named; FILE#MEMBER scores that one.\n"
      "Examples:\n"
      "  ballastctl score --plan plan.json --load other.json\n"
      "  ballastctl score --plan set.json --load today.json\n"
      "  ballastctl score --plan plan.json --load routes.csv.gz --by-layer --output json");
  verb->add_option("--plan", o->plan, "The plan file, or a plan set")->type_name("FILE[#MEMBER]")->required();
  verb->add_option("--load", o->load, "Load files; together they are one load")->type_name("FILE")->required();
  verb->add_flag("--by-layer", o->by_layer, "Every layer too");
  verb->callback([o, &context] { context.run = [o, &context] { return Run(*o, context); }; });
}

}  // namespace ballast
