#include "controller/ctl/context.h"

#include <map>

#include "proto/base/flags.h"

namespace ballast {

void AddGlobalOptions(CLI::App& app, CtlContext& context) {
  const std::map<std::string, OutputFormat> formats = {
      {"table", OutputFormat::kTable}, {"json", OutputFormat::kJson}, {"yaml", OutputFormat::kYaml}};
  app.add_option("--output,-o", context.output, "table, json or yaml")
      ->transform(CLI::CheckedTransformer(formats).description(""))
      ->default_str("table");
  app.add_option("--controller", context.controller, "Address of the controller")
      ->envname("BALLAST_CONTROLLER")
      ->capture_default_str();
  app.add_option("--timeout", context.timeout_seconds, "Seconds that a call may take")
      ->check(Between(0.001, 86400.0))
      ->capture_default_str();
  app.require_subcommand(1);
  app.fallthrough();
}

}  // namespace ballast
