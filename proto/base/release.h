// Which release this program is, and which others it works with.
#ifndef BALLAST_PROTO_BASE_RELEASE_H_
#define BALLAST_PROTO_BASE_RELEASE_H_

#include <string_view>

#include "absl/status/status.h"

namespace ballast {

// This program's version, "0.1.0". Weak: a test links a program of another version by defining it.
const char* Version();

// Whether programs of these two versions ("MAJOR.MINOR.PATCH", maybe with "-..." behind) work together: of one major
// version, and at most one minor version apart.
//   InvalidArgument     `other` is no version
//   FailedPrecondition  they are too far apart; says both and what to do
absl::Status CheckSkew(std::string_view own, std::string_view other);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_RELEASE_H_
