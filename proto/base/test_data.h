// How tests are run: with data that is not in the tree, in short or in full.
#ifndef BALLAST_PROTO_BASE_TEST_DATA_H_
#define BALLAST_PROTO_BASE_TEST_DATA_H_

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

namespace ballast::internal {

// The path of `name` in the folder that BALLAST_SHARED names; empty where it is not there.
inline std::string SharedPath(std::string_view name) {
  const char* shared = std::getenv("BALLAST_SHARED");
  if (shared == nullptr || *shared == '\0') return "";
  const std::filesystem::path path = std::filesystem::path(shared) / name;
  return std::filesystem::exists(path) ? path.string() : "";
}

inline bool RunsInCi() {
  const char* ci = std::getenv("CI");
  return ci != nullptr && std::string_view(ci) == "true";
}

}  // namespace ballast::internal

namespace ballast {

// Whether tests run in their long forms: LONG=1. (`make test` hands the variable on, empty or not.)
inline bool RunsLong() {
  const char* length = std::getenv("LONG");
  return length != nullptr && std::string_view(length) == "1";
}

}  // namespace ballast

// In a test's body: declares the string `path`, where `name` ("model/qwen3moe-28m") lies. Where it is missing the test
// is skipped, saying what is missing; with CI=true it fails.
#define BALLAST_REQUIRE_SHARED(path, name)                                           \
  const std::string path = ::ballast::internal::SharedPath(name);                    \
  if (path.empty() && ::ballast::internal::RunsInCi()) {                             \
    FAIL() << "missing with CI=true: " << (name) << " in the folder BALLAST_SHARED"; \
  } else if (path.empty()) /* NOLINT: the macro ends in a statement */               \
  GTEST_SKIP() << "missing: " << (name) << " in the folder BALLAST_SHARED"

#endif  // BALLAST_PROTO_BASE_TEST_DATA_H_
