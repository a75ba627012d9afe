// Zip archives whose entries are stored as they are, which is how torch.save writes them (zip64 records and all).
//
// Not a general unzip, and on purpose: Debian's libzip has no static library, and archives that inflate are a way to
// make a reader allocate without bound. Nothing here allocates more than the list of names.
#ifndef BALLAST_CONTROLLER_FORMATS_STORED_ZIP_H_
#define BALLAST_CONTROLLER_FORMATS_STORED_ZIP_H_

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ballast {

// Every entry's bytes by name; they refer to `bytes`. Safe on any bytes, in time linear in their number.
//   InvalidArgument  no zip archive, cut or damaged (a checksum differs), entries that overlap or have one name,
//                    compressed or encrypted entries. The message names the entry.
absl::StatusOr<std::map<std::string, std::string_view>> ReadStoredZip(std::string_view bytes);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_STORED_ZIP_H_
