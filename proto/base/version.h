// The version of this tree: of the programs, the planner's library and the Python package.
#ifndef BALLAST_PROTO_BASE_VERSION_H_
#define BALLAST_PROTO_BASE_VERSION_H_

namespace ballast {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_VERSION_H_
