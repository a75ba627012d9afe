#include "worker/moe/moe_step.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ballast {

absl::Status RowFailure::ToStatus() const {
  if (not_finite) {
    return absl::InternalError(
        absl::StrCat("routing weight of layer ", expert.layer, " expert ", expert.expert, " is not finite"));
  }
  return absl::UnavailableError(absl::StrCat("no live replica of layer ", expert.layer, " expert ", expert.expert,
                                             ": lost with worker ", absl::StrJoin(workers, ", ")));
}

}  // namespace ballast
