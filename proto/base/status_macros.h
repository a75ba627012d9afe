#ifndef BALLAST_PROTO_BASE_STATUS_MACROS_H_
#define BALLAST_PROTO_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function when `expr`, an absl::Status, is not OK.
#define BALLAST_RETURN_IF_ERROR(expr)                                   \
  do {                                                                  \
    if (absl::Status ballast_status_ = (expr); !ballast_status_.ok()) { \
      return ballast_status_;                                           \
    }                                                                   \
  } while (false)

#define BALLAST_CONCAT_INNER_(a, b) a##b
#define BALLAST_CONCAT_(a, b) BALLAST_CONCAT_INNER_(a, b)

// BALLAST_ASSIGN_OR_RETURN(auto x, F()): x is F()'s value; returns F()'s status when that is not OK.
#define BALLAST_ASSIGN_OR_RETURN(lhs, expr) \
  BALLAST_ASSIGN_OR_RETURN_IMPL_(BALLAST_CONCAT_(ballast_statusor_, __LINE__), lhs, expr)
#define BALLAST_ASSIGN_OR_RETURN_IMPL_(var, lhs, expr) \
  auto var = (expr);                                   \
  if (!var.ok()) return std::move(var).status();       \
  lhs = *std::move(var)

#endif  // BALLAST_PROTO_BASE_STATUS_MACROS_H_
