// What ThreadSanitizer cannot see: an order that a library without its instrumentation gives.
#ifndef BALLAST_PROTO_BASE_TSAN_H_
#define BALLAST_PROTO_BASE_TSAN_H_

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace ballast {

// What this thread did before TsanRelease(tag) comes before what another does after TsanAcquire(tag). Only for what is
// so by the library's contract; nothing without ThreadSanitizer.
inline void TsanRelease([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(tag);
#endif
}
inline void TsanAcquire([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(tag);
#endif
}

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_TSAN_H_
