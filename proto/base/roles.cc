#include "proto/base/roles.h"

#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

constexpr Roles kRead = Roles(Role::kViewer) | Role::kOperator;
constexpr Roles kOperate = Role::kOperator;
constexpr Roles kWork = Role::kWorker;
// An engine's sidecar runs as a worker does; an operator may stand in for it.
constexpr Roles kReport = Roles(Role::kWorker) | Role::kOperator;
constexpr Roles kAny = kRead | Role::kWorker;

constexpr MethodRoles kTable[] = {
    {"/ballast.v1.GroupService/DrainWorker", kOperate},
    {"/ballast.v1.GroupService/GetGroup", kRead},
    {"/ballast.v1.GroupService/GetLoad", kRead},
    {"/ballast.v1.GroupService/GetPlacement", kRead},
    {"/ballast.v1.GroupService/ListGroups", kRead},
    {"/ballast.v1.GroupService/ListWorkers", kRead},
    {"/ballast.v1.GroupService/Pause", kOperate},
    {"/ballast.v1.GroupService/Resume", kOperate},
    {"/ballast.v1.GroupService/SetMode", kOperate},
    {"/ballast.v1.GroupService/SetPolicy", kOperate},
    {"/ballast.v1.GroupService/UndrainWorker", kOperate},
    {"/ballast.v1.GroupService/WatchGroup", kRead},
    // Workers hand requests over to each other.
    {"/ballast.v1.Inference/Generate", kAny},
    {"/ballast.v1.Inference/Score", kAny},
    {"/ballast.v1.ModelService/GetModel", kRead},
    {"/ballast.v1.ModelService/ListModels", kRead},
    {"/ballast.v1.PlanService/ApprovePlan", kOperate},
    {"/ballast.v1.PlanService/CreatePlan", kOperate},
    {"/ballast.v1.PlanService/GetPlan", kRead},
    {"/ballast.v1.PlanService/ListPlans", kRead},
    {"/ballast.v1.PlanService/RejectPlan", kOperate},
    {"/ballast.v1.PlanService/Rollback", kOperate},
    {"/ballast.v1.TelemetryService/GetEngine", kAny},
    {"/ballast.v1.TelemetryService/GetEnginePlacement", kAny},
    {"/ballast.v1.TelemetryService/ListEngines", kRead},
    {"/ballast.v1.TelemetryService/RegisterEngine", kReport},
    {"/ballast.v1.TelemetryService/RemoveEngine", kOperate},
    {"/ballast.v1.TelemetryService/ReportLoad", kReport},
    {"/ballast.v1.TelemetryService/WatchLoad", kRead},
    {"/ballast.v1.WorkerSession/Connect", kWork},
};

constexpr std::array<std::pair<Role, const char*>, 3> kNames = {
    {{Role::kViewer, "viewer"}, {Role::kWorker, "worker"}, {Role::kOperator, "operator"}}};

// gRPC's own services, which tell nothing of a group. Reflection in any version: a client that asks for one that there
// is not must hear so, and asks for the other.
constexpr std::string_view kOpen[] = {"/grpc.health.v1.Health/", "/grpc.reflection."};

std::string Utf8(const ASN1_STRING* text) {
  unsigned char* bytes = nullptr;
  const int size = ASN1_STRING_to_UTF8(&bytes, text);
  if (size < 0) return "";
  std::string out(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
  OPENSSL_free(bytes);
  return out;
}

std::string NameOf(const X509& certificate) {
  const X509_NAME* subject = X509_get_subject_name(&certificate);
  const int at = X509_NAME_get_index_by_NID(const_cast<X509_NAME*>(subject), NID_commonName, -1);
  if (at >= 0) return Utf8(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  const std::unique_ptr<GENERAL_NAMES, void (*)(GENERAL_NAMES*)> names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr)),
      GENERAL_NAMES_free);
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_DNS || name->type == GEN_EMAIL) return Utf8(name->d.ia5);
  }
  const std::unique_ptr<BIGNUM, void (*)(BIGNUM*)> serial(
      ASN1_INTEGER_to_BN(X509_get0_serialNumber(&certificate), nullptr), BN_free);
  char* hex = serial == nullptr ? nullptr : BN_bn2hex(serial.get());
  const std::string out = absl::StrCat("certificate ", hex == nullptr ? "without a serial number" : hex);
  OPENSSL_free(hex);
  return out;
}

}  // namespace

std::string Roles::ToString() const {
  std::string out;
  for (const auto& [role, name] : kNames) {
    if (Intersects(role)) absl::StrAppend(&out, out.empty() ? "" : ", ", name);
  }
  return out.empty() ? "none" : out;
}

Caller CallerFromCertificate(const X509& certificate) {
  Caller caller{.name = NameOf(certificate), .roles = {}};
  X509_NAME* subject = X509_get_subject_name(&certificate);
  for (int at = -1; (at = X509_NAME_get_index_by_NID(subject, NID_organizationName, at)) >= 0;) {
    const std::string organisation = Utf8(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
    for (const auto& [role, name] : kNames) {
      if (organisation == absl::StrCat("ballast:", name)) caller.roles = caller.roles | role;
    }
  }
  return caller;
}

Caller CallerFromPem(std::string_view pem) {
  const std::unique_ptr<BIO, int (*)(BIO*)> bytes(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
  const std::unique_ptr<X509, void (*)(X509*)> certificate(PEM_read_bio_X509(bytes.get(), nullptr, nullptr, nullptr),
                                                           X509_free);
  return certificate == nullptr ? Caller() : CallerFromCertificate(*certificate);
}

absl::Status CheckRole(const Caller& caller, std::string_view method) {
  for (const std::string_view open : kOpen) {
    if (method.starts_with(open)) return absl::OkStatus();
  }
  const auto* const row =
      std::lower_bound(std::begin(kTable), std::end(kTable), method,
                       [](const MethodRoles& r, std::string_view wanted) { return r.method < wanted; });
  if (row == std::end(kTable) || row->method != method) {
    return absl::PermissionDeniedError(absl::StrCat(std::string(method), ": no role may call it"));
  }
  if (caller.roles.Intersects(row->roles)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      std::string(method), ": '", caller.name, "' has role ", caller.roles.ToString(),
      ", needed is one of: ", row->roles.ToString(), " (an organisation O=ballast:ROLE in the certificate's subject)"));
}

std::span<const MethodRoles> MethodTable() { return kTable; }

}  // namespace ballast
