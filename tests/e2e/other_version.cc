// Linked into a daemon: it is of the version that BALLAST_TEST_VERSION says.
#include <cstdlib>

#include "proto/base/release.h"
#include "proto/base/version.h"

namespace ballast {

const char* Version() {
  const char* version = std::getenv("BALLAST_TEST_VERSION");
  return version == nullptr ? kVersion : version;
}

}  // namespace ballast
