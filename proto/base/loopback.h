// Which host names are this machine's own.
#ifndef BALLAST_PROTO_BASE_LOOPBACK_H_
#define BALLAST_PROTO_BASE_LOOPBACK_H_

#include <string>

namespace ballast {

// "localhost", "::1", "[::1]" or an IPv4 address of 127.0.0.0/8, in letters of any case. No name that only begins so:
// those are other people's to resolve.
bool IsLoopback(const std::string& host);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_LOOPBACK_H_
