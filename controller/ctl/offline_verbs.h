// The verbs that work on files alone, each in a file of its own.
#ifndef BALLAST_CONTROLLER_CTL_OFFLINE_VERBS_H_
#define BALLAST_CONTROLLER_CTL_OFFLINE_VERBS_H_

#include <ostream>
#include <span>
#include <string>

#include "CLI/CLI.hpp"
#include "controller/ctl/context.h"
#include "controller/formats/plan_prediction.h"

namespace ballast {

void AddPlanVerb(CLI::App& app, CtlContext& context);
void AddScoreVerb(CLI::App& app, CtlContext& context);
void AddDiffVerb(CLI::App& app, CtlContext& context);
void AddExportVerb(CLI::App& app, CtlContext& context);
void AddImportVerb(CLI::App& app, CtlContext& context);
void AddSimulateVerb(CLI::App& app, CtlContext& context);

// What it takes to get to a plan from the placement in force, what that gains, and whether it pays: a few lines and a
// table of links.
void PrintChange(const PlanChange& change, std::ostream& out);
// How far the busiest GPUs of each scenario are from what no placement can go below: a line each.
void PrintBounds(std::span<const PlanPrediction::OfScenario> scenarios, std::ostream& out);

// A balancedness or another ratio as tables show it: "0.9939".
std::string Ratio(double value);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_OFFLINE_VERBS_H_
