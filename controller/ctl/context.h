// What every verb of ballastctl shares: the global options, and how a verb is registered.
#ifndef BALLAST_CONTROLLER_CTL_CONTEXT_H_
#define BALLAST_CONTROLLER_CTL_CONTEXT_H_

#include <functional>
#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "proto/base/tls.h"

namespace ballast {

enum class OutputFormat { kTable, kJson, kYaml };
// Whether bars show how far long work has come: where stderr is a terminal, or never.
enum class ProgressMode { kAuto, kNever };

// A verb's callback sets `run`; main calls it once the command line has been parsed.
struct CtlContext {
  OutputFormat output = OutputFormat::kTable;
  ProgressMode progress = ProgressMode::kAuto;
  // host:port of the controller's gRPC services, for the verbs that ask it.
  std::string controller = "127.0.0.1:7070";
  TlsFiles tls;
  // The name that the controller's certificate must bear, where that is not the address's host.
  std::string tls_server_name;
  // From `tls`, once the command line has been parsed.
  TransportSecurity security;
  // Of one call; a watch has none.
  double timeout_seconds = 10;
  std::function<absl::Status()> run;
  // Results; errors go to stderr by main.
  std::ostream& out = std::cout;
  // Remarks that are no results.
  std::ostream& err = std::cerr;
};

// --output, --progress, --controller, --timeout and those of TLS, which every verb takes.
void AddGlobalOptions(CLI::App& app, CtlContext& context);

// One function a file of verbs: adds its subcommands to `app`. `context` outlives the parsing and the run.
void AddClusterVerbs(CLI::App& app, CtlContext& context);
void AddDrainVerbs(CLI::App& app, CtlContext& context);
void AddOfflineVerbs(CLI::App& app, CtlContext& context);
void AddShellVerbs(CLI::App& app, CtlContext& context);
void AddSidecarVerb(CLI::App& app, CtlContext& context);
void AddStoreVerbs(CLI::App& app, CtlContext& context);
void AddTopVerb(CLI::App& app, CtlContext& context);
void AddTraceVerbs(CLI::App& app, CtlContext& context);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_CONTEXT_H_
