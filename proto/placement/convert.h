// Placements to and from their wire form.
#ifndef BALLAST_PROTO_PLACEMENT_CONVERT_H_
#define BALLAST_PROTO_PLACEMENT_CONVERT_H_

#include "absl/status/statusor.h"
#include "ballast/v1/common.pb.h"
#include "proto/placement/placement.h"

namespace ballast {

v1::Placement ToProto(const Placement& placement);

// Sorts the replicas. InvalidArgument as Validate (without capacities).
absl::StatusOr<Placement> FromProto(const v1::Placement& placement);

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_CONVERT_H_
