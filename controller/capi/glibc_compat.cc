// Lets the library load with glibc 2.35 (Ubuntu 22.04, on which engines' images are built). Debian's libstdc++ refers
// to arc4random, which glibc has since 2.36, in std::random_device, which nothing in this library uses.
#include <cstdint>

#include "proto/base/check.h"

extern "C" __attribute__((visibility("hidden"))) uint32_t arc4random() noexcept;
extern "C" uint32_t arc4random() noexcept {
  BALLAST_CHECK(false) << "the planner draws no random bits";
  return 0;
}
