#include "controller/ctl/context.h"

#include <map>
#include <utility>

#include "proto/base/flags.h"

namespace ballast {

void AddGlobalOptions(CLI::App& app, CtlContext& context) {
  const std::map<std::string, OutputFormat> formats = {
      {"table", OutputFormat::kTable}, {"json", OutputFormat::kJson}, {"yaml", OutputFormat::kYaml}};
  app.add_option_function<std::string>(
         "--output,-o", [&context, formats](const std::string& name) { context.output = formats.at(name); },
         "How results are printed")
      ->check(CLI::IsMember({"table", "json", "yaml"}))
      ->type_name("TEXT")
      ->default_str("table");
  const std::map<std::string, ProgressMode> modes = {{"auto", ProgressMode::kAuto}, {"never", ProgressMode::kNever}};
  app.add_option_function<std::string>(
         "--progress", [&context, modes](const std::string& name) { context.progress = modes.at(name); },
         "Show on stderr how far long work has come; auto: on a terminal")
      ->check(CLI::IsMember({"auto", "never"}))
      ->type_name("TEXT")
      ->default_str("auto");
  app.add_option("--controller", context.controller, "Address of the controller")
      ->envname("BALLAST_CONTROLLER")
      ->capture_default_str();
  AddTlsFlags(app, context.tls);
  for (const auto& [flag, variable] : {std::pair("--tls-cert", "BALLAST_TLS_CERT"),
                                       {"--tls-key", "BALLAST_TLS_KEY"},
                                       {"--tls-ca", "BALLAST_TLS_CA"}}) {
    app.get_option(flag)->envname(variable);
  }
  app.add_option("--tls-server-name", context.tls_server_name,
                 "The name that the controller's certificate must bear; default: the address's host");
  app.add_option("--timeout", context.timeout_seconds, "Seconds that a call may take")
      ->check(Between(0.001, 86400.0))
      ->capture_default_str();
  app.require_subcommand(1);
  app.fallthrough();
}

}  // namespace ballast
