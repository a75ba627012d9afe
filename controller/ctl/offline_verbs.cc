#include "controller/ctl/offline_verbs.h"

#include "absl/strings/str_format.h"

namespace ballast {

void AddOfflineVerbs(CLI::App& app, CtlContext& context) {
  AddPlanVerb(app, context);
  AddScoreVerb(app, context);
  AddDiffVerb(app, context);
  AddExportVerb(app, context);
  AddImportVerb(app, context);
  AddSimulateVerb(app, context);
}

std::string Ratio(double value) { return absl::StrFormat("%.4f", value); }

}  // namespace ballast
