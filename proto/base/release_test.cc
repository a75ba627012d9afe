#include "proto/base/release.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/version.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Version, IsTheTrees) { EXPECT_STREQ(Version(), kVersion); }

TEST(CheckSkew, Table) {
  using absl::StatusCode;
  struct Case {
    const char* own;
    const char* other;
    StatusCode code;
  };
  for (const Case& c : {
           Case{"0.2.0", "0.2.0", StatusCode::kOk},
           {"0.2.0", "0.2.9", StatusCode::kOk},
           {"0.2.0", "0.1.7", StatusCode::kOk},
           {"0.2.0", "0.3.0-rc.1", StatusCode::kOk},
           {"0.2.0", "0.3.0+build", StatusCode::kOk},
           {"0.9.0", "0.10.0", StatusCode::kOk},
           {"0.2.0", "0.4.0", StatusCode::kFailedPrecondition},
           {"0.2.0", "0.0.1", StatusCode::kFailedPrecondition},
           {"1.0.0", "0.9.0", StatusCode::kFailedPrecondition},
           {"0.2.0", "1.2.0", StatusCode::kFailedPrecondition},
           {"0.2.0", "", StatusCode::kInvalidArgument},
           {"0.2.0", "0.2", StatusCode::kInvalidArgument},
           {"0.2.0", "0.2.0.1", StatusCode::kInvalidArgument},
           {"0.2.0", "v0.2.0", StatusCode::kInvalidArgument},
           {"0.2.0", "0.-2.0", StatusCode::kInvalidArgument},
           {"0.2.0", "0.99999999999.0", StatusCode::kInvalidArgument},
       }) {
    EXPECT_EQ(CheckSkew(c.own, c.other).code(), c.code) << c.own << " and " << c.other;
  }
  EXPECT_THAT(std::string(CheckSkew("0.2.0", "0.4.1").message()),
              AllOf(HasSubstr("0.2.0"), HasSubstr("0.4.1"), HasSubstr("one minor version at a time")));
}

}  // namespace
}  // namespace ballast
