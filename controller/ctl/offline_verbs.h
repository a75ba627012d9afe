// The verbs that work on files alone, each in a file of its own.
#ifndef BALLAST_CONTROLLER_CTL_OFFLINE_VERBS_H_
#define BALLAST_CONTROLLER_CTL_OFFLINE_VERBS_H_

#include <string>

#include "CLI/CLI.hpp"
#include "controller/ctl/context.h"

namespace ballast {

void AddPlanVerb(CLI::App& app, CtlContext& context);
void AddScoreVerb(CLI::App& app, CtlContext& context);
void AddDiffVerb(CLI::App& app, CtlContext& context);
void AddExportVerb(CLI::App& app, CtlContext& context);
void AddImportVerb(CLI::App& app, CtlContext& context);
void AddSimulateVerb(CLI::App& app, CtlContext& context);

// A balancedness or another ratio as tables show it: "0.9939".
std::string Ratio(double value);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_OFFLINE_VERBS_H_
