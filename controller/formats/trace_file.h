// Route traces as files: what tokens chose, written in the forms that ParseLoad reads.
#ifndef BALLAST_CONTROLLER_FORMATS_TRACE_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_TRACE_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "controller/formats/load_file.h"

namespace ballast {

// csv with the header layer,sample,token,e0,...: rows and experts beyond the last ones used are not in it.
// FailedPrecondition where the file has no routes (counts alone).
absl::StatusOr<std::string> FormatRoutesCsv(const LoadFile& file);
// ballast.trace/v1, see docs/schemas/trace.v1.schema.json. Errors as above.
absl::StatusOr<std::string> FormatTrace(const LoadFile& file);

std::string Gzip(std::string_view bytes);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_TRACE_FILE_H_
