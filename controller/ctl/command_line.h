// ballastctl's verbs and options, as CLI11 knows them: what completion and the manual page are made from.
#ifndef BALLAST_CONTROLLER_CTL_COMMAND_LINE_H_
#define BALLAST_CONTROLLER_CTL_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace ballast {

// Those right below `app`, and its own options and positional arguments, in the order of the help; without hidden ones.
std::vector<const CLI::App*> VerbsOf(const CLI::App& app);
std::vector<const CLI::Option*> OptionsOf(const CLI::App& app);
std::vector<const CLI::Option*> PositionalsOf(const CLI::App& app);

// What follows the option on the command line: "FILE", "{a,b}"; empty for a flag.
std::string ValueName(const CLI::Option& option);
// The only values that `option` takes; empty: there is no such list. From what its check says in the help.
std::vector<std::string> ValuesOf(const CLI::Option& option);

std::string FirstLine(const std::string& text);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_COMMAND_LINE_H_
