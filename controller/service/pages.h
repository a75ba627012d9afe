// Pages of lists, with tokens that callers cannot read.
#ifndef BALLAST_CONTROLLER_SERVICE_PAGES_H_
#define BALLAST_CONTROLLER_SERVICE_PAGES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ballast {

struct Page {
  // Of the list: [begin, end).
  size_t begin = 0;
  size_t end = 0;
  // Empty: the list ends here.
  std::string next_token;
};

// The page after the one that `token` ended (empty: the first) of a list whose items have unique keys in ascending
// order, as `keys` tells. Items that come or go between two calls are seen at most once.
//   InvalidArgument  page_size is not in 0 to 1000 (0 stands for 100), or the token is none of ours.
absl::StatusOr<Page> CutPage(const std::vector<std::string>& keys, int32_t page_size, const std::string& token);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_PAGES_H_
