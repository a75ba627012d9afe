#include "controller/store/term.h"

#include <optional>
#include <span>
#include <string>

#include "controller/store/records.pb.h"
#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<Term> BeginTerm(Store& store) {
  BALLAST_ASSIGN_OR_RETURN(const std::optional<std::string> value, store.Get("controller"));
  store::ControllerRecord record;
  if (value.has_value() && !record.ParseFromString(*value)) {
    return absl::DataLossError("store: record 'controller' is damaged; restore a backup");
  }
  record.set_term(record.term() + 1);
  const StoreWrite write{"controller", record.SerializeAsString()};
  BALLAST_RETURN_IF_ERROR(store.Apply(std::span(&write, 1)));
  return Term(record.term());
}

}  // namespace ballast
