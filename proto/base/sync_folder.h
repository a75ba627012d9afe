// Makes what has been made, renamed or removed in a folder last through a power loss.
#ifndef BALLAST_PROTO_BASE_SYNC_FOLDER_H_
#define BALLAST_PROTO_BASE_SYNC_FOLDER_H_

#include <string>

#include "absl/status/status.h"

namespace ballast {

// Of the folder that `path` is in; `path` itself need not exist. Folders that cannot be synced by themselves (those of
// some network file systems, or without the right to list them) are synced with everything else.
//   Unavailable  names the folder and the system's error.
absl::Status SyncFolderOf(const std::string& path);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_SYNC_FOLDER_H_
