// The memory that a process may still take.
#ifndef BALLAST_WORKER_DAEMON_MEMORY_LIMIT_H_
#define BALLAST_WORKER_DAEMON_MEMORY_LIMIT_H_

#include <cstdint>
#include <string>

namespace ballast {

// Bytes that this process can still use: what the machine has available, and no more than its control group and those
// above have left of their limits (version 2, and 1's memory controller). Pages of files count as free, as long as
// nobody has used them lately. Containers have a limit there: a pod's. `root` is before every path, for tests.
int64_t AvailableMemoryBytes(const std::string& root = "");

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_MEMORY_LIMIT_H_
