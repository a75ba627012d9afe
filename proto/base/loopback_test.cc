#include "proto/base/loopback.h"

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(IsLoopback, IsOfAddressesAndNotOfNamesThatLookLikeThem) {
  for (const char* host : {"localhost", "LocalHost", "127.0.0.1", "127.255.0.9", "::1", "[::1]"}) {
    EXPECT_TRUE(IsLoopback(host)) << host;
  }
  for (const char* host : {"", "127.evil.example", "127.0.0.1.evil.example", "127.1", "localhost.evil.example",
                           "128.0.0.1", "0.0.0.0", "::", "[::2]", "host"}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
}

}  // namespace
}  // namespace ballast
