#include "controller/ctl/plan_set_text.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/output.h"

namespace ballast {
namespace {

struct Row {
  std::string scenario;
  std::string member;
  double balancedness = 1;
  double single = 1;
  double upper_bound = 1;
};

// In the order of the request's scenarios.
std::vector<Row> Rows(const PlanSet& set, const PlanSetFile& file) {
  std::vector<Row> rows(set.single.size());
  for (size_t m = 0; m < set.members.size(); ++m) {
    const PlanSetMember& member = set.members[m];
    for (size_t i = 0; i < member.scenarios.size(); ++i) {
      const int32_t s = member.scenarios[i];
      const LoadScore& score = member.plan.predicted[i];
      rows[s] = {score.scenario, file.members[m].name, BalancednessOf(score, set.split),
                 BalancednessOf(set.single[s], set.split), score.upper_bound};
    }
  }
  return rows;
}

double WorstSingle(const std::vector<Row>& rows) {
  double worst = 1;
  for (const Row& row : rows) worst = std::min(worst, row.single);
  return worst;
}

nlohmann::ordered_json Document(const PlanSet& set, const PlanSetFile& file, const std::vector<Row>& rows) {
  using Json = nlohmann::ordered_json;
  Json scenarios = Json::array();
  for (const Row& row : rows) {
    scenarios.push_back({{"scenario", row.scenario},
                         {"member", row.member},
                         {"balancedness", row.balancedness},
                         {"balancedness_single_plan", row.single},
                         {"upper_bound", row.upper_bound}});
  }
  Json members = Json::array();
  for (const PlanSetFile::Member& member : file.members) {
    Json served = Json::array();
    for (const Scenario& s : member.plan.scenarios) served.push_back(s.name);
    members.push_back({{"name", member.name},
                       {"scenarios", std::move(served)},
                       {"replicas", member.plan.placement.replicas.size()},
                       {"predicted", ToJson(*member.plan.predicted)}});
  }
  Json switches = Json::array();
  for (size_t from = 0; from < file.members.size(); ++from) {
    for (size_t to = 0; to < file.members.size(); ++to) {
      if (from == to) continue;
      const Switch& change = file.switches[from][to];
      switches.push_back({{"from", file.members[from].name},
                          {"to", file.members[to].name},
                          {"moves", change.moves},
                          {"bytes", change.bytes},
                          {"waves", change.waves},
                          {"transfer_seconds", change.transfer_seconds}});
    }
  }
  return {{"policy", file.members[0].plan.policy}, {"split", set.split == Split::kSolved ? "solved" : "equal"},
          {"worst_balancedness", set.worst},       {"worst_balancedness_single_plan", WorstSingle(rows)},
          {"scenarios", std::move(scenarios)},     {"members", std::move(members)},
          {"switches", std::move(switches)}};
}

}  // namespace

void PrintPlanSet(const PlanSet& set, const PlanSetFile& file, const PlanSetOptions& options, const std::string& path,
                  CtlContext& context) {
  const std::vector<Row> rows = Rows(set, file);
  if (context.output != OutputFormat::kTable) {
    nlohmann::ordered_json json = Document(set, file, rows);
    json["out"] = path;
    PrintDocument(context.output, json, context.out);
    return;
  }
  const size_t members = file.members.size();
  Table table({"SCENARIO", "MEMBER", "BALANCEDNESS", "WITH ONE PLAN", "UPPER BOUND"});
  for (const Row& row : rows) {
    table.AddRow({row.scenario, row.member, Ratio(row.balancedness), Ratio(row.single), Ratio(row.upper_bound)});
  }
  table.Print(context.out);
  context.out << absl::StrFormat(
      "\n%s: %d of at most %d plans for %d scenarios; the worst has balancedness %s, with one "
      "plan for all %s\n",
      file.members[0].plan.policy, members, options.most_plans, rows.size(), Ratio(set.worst),
      Ratio(WorstSingle(rows)));
  if (set.worst < options.enough) {
    const bool all = static_cast<int32_t>(members) < options.most_plans;
    context.out << absl::StrFormat("below the %s that is enough; %s\n", Ratio(options.enough),
                                   all ? "more plans do no better" : "more plans may do better");
  }
  context.out << (set.split == Split::kSolved ? "balancedness is with shares solved for each load\n"
                                              : "balancedness is with equal split\n");
  if (members > 1) {
    context.out << "\n";
    Table switches({"FROM", "TO", "MOVES", "BYTES", "WAVES", "SECONDS"});
    for (size_t from = 0; from < members; ++from) {
      for (size_t to = 0; to < members; ++to) {
        if (from == to) continue;
        const Switch& change = file.switches[from][to];
        switches.AddRow({file.members[from].name, file.members[to].name, absl::StrCat(change.moves),
                         HumanBytes(change.bytes), absl::StrCat(change.waves),
                         absl::StrFormat("%.3f", change.transfer_seconds)});
      }
    }
    switches.Print(context.out);
  }
  for (const PlanSetFile::Member& member : file.members) {
    if (!member.plan.predicted->change) continue;
    context.out << "\n" << member.name << ":\n";
    PrintChange(*member.plan.predicted->change, context.out);
  }
  context.out << "written to " << path << "\n";
}

}  // namespace ballast
