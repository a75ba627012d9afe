// The console's pages, as they are in controller/console/web, compiled in.
#ifndef BALLAST_CONTROLLER_CONSOLE_ASSETS_H_
#define BALLAST_CONTROLLER_CONSOLE_ASSETS_H_

#include <span>
#include <string_view>

namespace ballast {

struct Asset {
  // "index.html"
  std::string_view name;
  std::string_view bytes;
};

// Any order.
std::span<const Asset> ConsoleAssets();

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CONSOLE_ASSETS_H_
