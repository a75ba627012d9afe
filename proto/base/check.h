// For what cannot happen: says where and why, and dies. What can happen is an absl::Status.
#ifndef BALLAST_PROTO_BASE_CHECK_H_
#define BALLAST_PROTO_BASE_CHECK_H_

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace ballast::internal {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    text_ << file << ":" << line << ": check failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::fprintf(stderr, "%s\n", text_.str().c_str());
    std::fflush(stderr);
    std::abort();
  }
  std::ostream& stream() { return text_; }

 private:
  std::ostringstream text_;
};

struct Voidify {
  void operator&(std::ostream&) {}
};

}  // namespace ballast::internal

// BALLAST_CHECK(n > 0) << "n=" << n;
#define BALLAST_CHECK(condition) \
  (condition)                    \
      ? (void)0                  \
      : ::ballast::internal::Voidify() & ::ballast::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

#endif  // BALLAST_PROTO_BASE_CHECK_H_
