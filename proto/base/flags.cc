#include "proto/base/flags.h"

#include <iostream>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/base/release.h"
#include "yaml-cpp/yaml.h"

namespace ballast {
namespace {

// CLI11 and yaml-cpp report by exceptions; none leaves this file.
absl::Status ApplyConfig(CLI::App& app, const std::string& path) {
  try {
    const YAML::Node root = YAML::LoadFile(path);
    if (!root.IsMap() && !root.IsNull()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": must be a map from option names to values"));
    }
    for (const auto& entry : root) {
      const std::string key = entry.first.as<std::string>();
      CLI::Option* option = app.get_option_no_throw("--" + key);
      if (option == nullptr || key == "config" || key == "help" || key == "version") {
        return absl::InvalidArgumentError(absl::StrCat(path, ":", entry.first.Mark().line + 1, ": unknown key '", key,
                                                       "'; --help lists the options"));
      }
      if (option->count() > 0) continue;
      std::vector<std::string> values;
      if (entry.second.IsScalar()) {
        values.push_back(entry.second.as<std::string>());
      } else if (entry.second.IsSequence()) {
        for (const auto& item : entry.second) values.push_back(item.as<std::string>());
      } else {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ":", entry.second.Mark().line + 1, ": ", key, " must be a value or a list of values"));
      }
      for (const std::string& value : values) option->add_result(value);
      option->run_callback();
    }
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", e.what()));
  } catch (const CLI::Error& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", e.what()));
  }
  return absl::OkStatus();
}

}  // namespace

CLI::Validator Between(double least, double most) {
  return CLI::Validator(
      [least, most](const std::string& text) {
        double value = 0;
        if (absl::SimpleAtod(text, &value) && value >= least && value <= most) return std::string();
        return absl::StrCat("Value ", text, " not in range ", least, " to ", most);
      },
      absl::StrCat("in [", least, " - ", most, "]"));
}

std::optional<int> ParseFlags(CLI::App& app, int argc, char** argv) {
  std::string config;
  app.add_option("--config", config, "YAML file with the same names as these options; the command line wins")
      ->type_name("FILE");
  app.set_version_flag("--version", absl::StrCat(app.get_name(), " ", Version()));
  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& e) {
    const std::vector<std::string> rest = app.remaining();
    if (!app.get_subcommands({}).empty() && app.get_subcommands().empty() && !rest.empty()) {
      std::cerr << app.get_name() << ": there is no verb '" << rest[0] << "'; --help lists them\n";
      return e.get_exit_code();
    }
    // A slip in an option's name comes before the option that is missing for it.
    if (const std::vector<std::string> unknown = app.remaining(true); !unknown.empty()) {
      return app.exit(CLI::ExtrasError(app.get_name(), unknown), std::cout, std::cerr);
    }
    return app.exit(e, std::cout, std::cerr);
  } catch (const CLI::ParseError& e) {
    return app.exit(e, std::cout, std::cerr);
  }
  if (!config.empty()) {
    if (absl::Status status = ApplyConfig(app, config); !status.ok()) {
      std::cerr << app.get_name() << ": " << status.message() << "\n";
      return 2;
    }
  }
  return std::nullopt;
}

}  // namespace ballast
