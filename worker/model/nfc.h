#ifndef BALLAST_WORKER_MODEL_NFC_H_
#define BALLAST_WORKER_MODEL_NFC_H_

#include <string>
#include <string_view>

namespace ballast {

// Unicode normalization form C (Unicode 15). `text` must be UTF-8. O(n log n), runs of combining marks included.
std::string ToNfc(std::string_view text);

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_NFC_H_
