// The console of a group that is not there, of any size: for tests of what it draws. Prints "ready console=HOST:PORT"
// and serves until its standard input ends.
#include <cstdlib>
#include <iostream>

#include "controller/console/console.h"
#include "controller/console/fake_services.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"

// synthetic_console LAYERS EXPERTS GPUS
int main(int argc, char** argv) {
  BALLAST_CHECK(argc == 4) << "want LAYERS EXPERTS GPUS";
  ballast::FakeServices services(
      {.layers = std::atoi(argv[1]), .experts = std::atoi(argv[2]), .gpus = std::atoi(argv[3])});
  const auto console = ballast::Console::Start("127.0.0.1:0", {}, true, services.Channel(), ballast::Clock::Real());
  BALLAST_CHECK(console.ok()) << console.status();
  std::cout << "ready console=127.0.0.1:" << (*console)->port() << std::endl;
  while (std::cin.get() != EOF) {
  }
  return 0;
}
