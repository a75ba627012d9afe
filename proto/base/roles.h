// Who may call what: roles, which certificates carry, and the one table of what each RPC needs.
//
// A certificate names its roles as organisations of its subject, as Kubernetes does with groups: O=ballast:worker,
// O=ballast:operator, O=ballast:viewer. Several make a caller that has all of them; other organisations mean nothing.
#ifndef BALLAST_PROTO_BASE_ROLES_H_
#define BALLAST_PROTO_BASE_ROLES_H_

#include <openssl/x509.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace ballast {

// A bit each.
enum class Role : uint8_t {
  // Reads, and sends requests to workers.
  kViewer = 1,
  // Joins a group, reports load, hands requests over to other workers; an engine that is no Ballast worker, likewise.
  kWorker = 2,
  // Does what a viewer may, and changes things: approves plans, rolls back, sets modes.
  kOperator = 4,
};

class Roles {
 public:
  constexpr Roles() = default;
  constexpr Roles(Role role) : bits_(static_cast<uint8_t>(role)) {}  // NOLINT: a role is a set of one
  constexpr Roles operator|(Roles other) const {
    Roles all;
    all.bits_ = bits_ | other.bits_;
    return all;
  }
  constexpr bool Intersects(Roles other) const { return (bits_ & other.bits_) != 0; }
  constexpr bool empty() const { return bits_ == 0; }
  // "viewer, worker"; "none".
  std::string ToString() const;

 private:
  uint8_t bits_ = 0;
};

// Who calls. Without TLS nobody is known and everybody may do everything.
struct Caller {
  // The certificate's common name, or its first DNS or e-mail name, or its serial number; empty: not known.
  std::string name;
  Roles roles;
};

Caller CallerFromCertificate(const X509& certificate);
// As gRPC hands it on. A text that is no certificate: a caller without name and roles.
Caller CallerFromPem(std::string_view pem);

// OK when `caller` has one of the roles that `method` ("/ballast.v1.PlanService/GetPlan") is for.
//   PermissionDenied  says who called, the roles had, and those of which one is needed; or that the method is in no
//                     row of the table.
absl::Status CheckRole(const Caller& caller, std::string_view method);

// The table that CheckRole goes by, sorted by method; health and reflection are open to every certificate of the
// authorities and are not in it.
struct MethodRoles {
  std::string_view method;
  Roles roles;
};
std::span<const MethodRoles> MethodTable();

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_ROLES_H_
