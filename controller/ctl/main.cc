// ballastctl: plans offline, and asks and commands a running controller.
#include <exception>
#include <iostream>

#include "CLI/CLI.hpp"
#include "controller/ctl/context.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"

int main(int argc, char** argv) {
  CLI::App app(
      "Plans where a mixture-of-experts model's experts live, and talks to a Ballast controller.\n"
      "Exit status: 0 done, 1 it failed (the reason is on stderr), 2 or more a wrong command line.",
      "ballastctl");
  ballast::CtlContext context;
  ballast::AddGlobalOptions(app, context);
  app.footer(
      "A first plan, from an engine's own load dump to its own placement file:\n"
      "  ballastctl plan --policy eplb --load dump.json --gpus 32 --slots-per-gpu 9 --out plan.json\n"
      "  ballastctl score --plan plan.json --load other.json\n"
      "  ballastctl export --plan plan.json --format sglang --out placement.json\n"
      "`ballastctl VERB --help` has examples of each verb.");
  ballast::AddOfflineVerbs(app, context);
  ballast::AddClusterVerbs(app, context);
  ballast::AddDrainVerbs(app, context);
  ballast::AddStoreVerbs(app, context);
  ballast::AddTraceVerbs(app, context);
  ballast::AddSidecarVerb(app, context);
  ballast::AddTopVerb(app, context);
  ballast::AddShellVerbs(app, context);
  if (const auto exit = ballast::ParseFlags(app, argc, argv)) return *exit;
  // What shells and `man` want to know must not depend on certificates.
  const bool asks_nobody = app.got_subcommand("completion") || app.got_subcommand("man");
  const auto security =
      ballast::TransportSecurity::Create(asks_nobody ? ballast::TlsFiles() : context.tls, ballast::Clock::Real().Now());
  if (security.ok()) context.security = *security;
  absl::Status status = security.status();
  // Libraries throw where memory runs out, and over what nobody thought of: that is an error like others.
  try {
    if (status.ok()) status = context.run();
  } catch (const std::exception& e) {
    status = absl::InternalError(e.what());
  }
  context.out.flush();
  if (!status.ok()) {
    std::cerr << "ballastctl: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
