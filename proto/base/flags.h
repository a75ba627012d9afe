// Command lines of the daemons: CLI11 options, and a YAML file with the same names.
#ifndef BALLAST_PROTO_BASE_FLAGS_H_
#define BALLAST_PROTO_BASE_FLAGS_H_

#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace ballast {

// Adds --config, --version and --help to `app`, parses `argv`, and gives options that are absent from the command line
// the values of the --config file (a YAML map from option name without dashes to a value, or to a list for options that
// take several). The command line wins. Prints help or the version when asked for.
//
// Returns the exit status that the program must end with at once, or nothing: go on. Errors are printed on stderr:
// unknown options and keys, values that do not parse, a file that is missing or is no YAML map, each with the option's
// name, the value and what is allowed.
std::optional<int> ParseFlags(CLI::App& app, int argc, char** argv);

// A check for numbers from `least` to `most`, which NaN is not: CLI::Range lets it pass.
CLI::Validator Between(double least, double most);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_FLAGS_H_
