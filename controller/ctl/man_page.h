// ballastctl's manual page, from its command line. Pure.
#ifndef BALLAST_CONTROLLER_CTL_MAN_PAGE_H_
#define BALLAST_CONTROLLER_CTL_MAN_PAGE_H_

#include <string>

#include "CLI/CLI.hpp"

namespace ballast {

// In troff with the macros of man(7): every verb and option.
std::string ManPage(const CLI::App& app, const std::string& version);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_MAN_PAGE_H_
