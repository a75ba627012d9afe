// The controller's term: its reign, which grows with every start.
#ifndef BALLAST_CONTROLLER_STORE_TERM_H_
#define BALLAST_CONTROLLER_STORE_TERM_H_

#include "absl/status/statusor.h"
#include "controller/store/store.h"
#include "proto/base/ids.h"

namespace ballast {

// Takes the next term, durably. DataLoss when the record is damaged; others as the store.
absl::StatusOr<Term> BeginTerm(Store& store);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_STORE_TERM_H_
