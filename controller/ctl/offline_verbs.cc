#include "controller/ctl/offline_verbs.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/output.h"

namespace ballast {

void AddOfflineVerbs(CLI::App& app, CtlContext& context) {
  AddPlanVerb(app, context);
  AddScoreVerb(app, context);
  AddDiffVerb(app, context);
  AddExportVerb(app, context);
  AddImportVerb(app, context);
  AddSimulateVerb(app, context);
}

void PrintChange(const PlanChange& change, std::ostream& out) {
  out << absl::StrFormat("from the current placement: %d moves, %s, %d waves, %.3f s of transfers\n", change.moves,
                         HumanBytes(change.bytes), change.waves, change.transfer.seconds);
  out << absl::StrFormat("predicted gain %.1f %%: %.6g tokens and %.6g us less on the busiest GPUs\n",
                         100 * change.gain, change.gain_tokens, change.gain_microseconds);
  Table links({"LINK", "MOVES", "BYTES", "SECONDS"});
  const auto add = [&](const char* name, const TransferCost::Link& link) {
    if (link.moves == 0) return;
    links.AddRow({name, absl::StrCat(link.moves), HumanBytes(link.bytes), absl::StrFormat("%.3f", link.seconds)});
  };
  add("node", change.transfer.node);
  add("cross-node", change.transfer.cross_node);
  add("checkpoint", change.transfer.checkpoint);
  if (change.moves > 0) links.Print(out);
  out << (change.pays ? "pays: " : "does not pay: ") << change.pays_reason << "\n";
}

void PrintBounds(std::span<const PlanPrediction::OfScenario> scenarios, std::ostream& out) {
  for (const PlanPrediction::OfScenario& s : scenarios) {
    if (s.busiest_tokens_bound == 0) continue;
    out << absl::StrFormat("%s: %.6g tokens on the busiest GPUs, %.2f %% above the lower bound of %.6g\n", s.scenario,
                           s.busiest_tokens, 100 * (s.busiest_tokens / s.busiest_tokens_bound - 1),
                           s.busiest_tokens_bound);
  }
}

std::string Ratio(double value) { return absl::StrFormat("%.4f", value); }

}  // namespace ballast
