// For tests of what users without root's rights see, also where the test itself runs as root.
#ifndef BALLAST_PROTO_BASE_NO_PRIVILEGES_H_
#define BALLAST_PROTO_BASE_NO_PRIVILEGES_H_

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>

#include "proto/base/check.h"

namespace ballast {

// While it lives the calling thread has no capabilities: root may no longer read files whose mode forbids it. Useful
// for: permission errors.
class NoPrivileges {
 public:
  NoPrivileges() {
    BALLAST_CHECK(syscall(SYS_capget, &header_, before_) == 0);
    __user_cap_data_struct none[2];
    std::copy(std::begin(before_), std::end(before_), none);
    for (__user_cap_data_struct& word : none) word.effective = 0;
    BALLAST_CHECK(syscall(SYS_capset, &header_, none) == 0);
  }
  ~NoPrivileges() { BALLAST_CHECK(syscall(SYS_capset, &header_, before_) == 0); }
  NoPrivileges(const NoPrivileges&) = delete;
  NoPrivileges& operator=(const NoPrivileges&) = delete;

 private:
  __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
  // Of capabilities 0 to 31, and 32 on.
  __user_cap_data_struct before_[2];
};

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_NO_PRIVILEGES_H_
