#include "controller/service/pages.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

constexpr int32_t kDefaultSize = 100;
constexpr int32_t kMaxSize = 1000;
// Tells our tokens from other base64, and one way of making them from the next.
constexpr char kPrefix[] = "1:";

}  // namespace

absl::StatusOr<Page> CutPage(const std::vector<std::string>& keys, int32_t page_size, const std::string& token) {
  if (page_size < 0 || page_size > kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat("page_size: ", page_size, " is not in 0 to ", kMaxSize));
  }
  Page page;
  if (!token.empty()) {
    std::string last;
    if (!absl::WebSafeBase64Unescape(token, &last) || !last.starts_with(kPrefix)) {
      return absl::InvalidArgumentError("page_token: is none that this service gave out");
    }
    page.begin = std::upper_bound(keys.begin(), keys.end(), last.substr(sizeof(kPrefix) - 1)) - keys.begin();
  }
  page.end = std::min(keys.size(), page.begin + (page_size == 0 ? kDefaultSize : page_size));
  if (page.end < keys.size()) page.next_token = absl::WebSafeBase64Escape(absl::StrCat(kPrefix, keys[page.end - 1]));
  return page;
}

}  // namespace ballast
