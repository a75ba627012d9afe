#include "proto/base/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstdio>
#include <ctime>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/auth_context.h"
#include "grpcpp/security/auth_metadata_processor.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "proto/base/grpc_status.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr unsigned kRefreshSeconds = 30;

struct Named {
  const char* option;
  const std::string& path;
};

absl::Status CheckReadable(const Named& file) {
  if (std::FILE* opened = std::fopen(file.path.c_str(), "r")) {
    std::fclose(opened);
    return absl::OkStatus();
  }
  return absl::ErrnoToStatus(errno, absl::StrCat(file.option, " ", file.path));
}

// Takes OpenSSL's last error, and forgets the others.
absl::Status OpenSslError(const Named& file, const char* wanted) {
  const unsigned long error = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(error);
  return absl::InvalidArgumentError(absl::StrCat(file.option, " ", file.path, ": ", wanted,
                                                 reason == nullptr ? "" : absl::StrCat(" (", reason, ")")));
}

std::string ToText(const ASN1_TIME* time) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return "an unreadable date";
  return absl::FormatTime(absl::FromTM(parts, absl::UTCTimeZone()), absl::UTCTimeZone());
}

absl::Status CheckValidity(const Named& certificate, const X509* x509, absl::Time now) {
  const std::time_t seconds = absl::ToTimeT(now);
  if (X509_cmp_time(X509_get0_notBefore(x509), const_cast<std::time_t*>(&seconds)) > 0) {
    return absl::FailedPreconditionError(absl::StrCat(certificate.option, " ", certificate.path, ": not valid before ",
                                                      ToText(X509_get0_notBefore(x509))));
  }
  if (X509_cmp_time(X509_get0_notAfter(x509), const_cast<std::time_t*>(&seconds)) < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(certificate.option, " ", certificate.path, ": expired at ", ToText(X509_get0_notAfter(x509))));
  }
  return absl::OkStatus();
}

// gRPC only says at the first connection, in its log, that a file is no good.
absl::Status CheckFiles(const Named& certificate, const Named& key, const Named& authorities, absl::Time now) {
  for (const Named& file : {certificate, key, authorities}) BALLAST_RETURN_IF_ERROR(CheckReadable(file));
  ERR_clear_error();
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_method()), SSL_CTX_free);
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for TLS");
  if (SSL_CTX_use_certificate_chain_file(context.get(), certificate.path.c_str()) != 1) {
    return OpenSslError(certificate, "not a PEM certificate");
  }
  if (SSL_CTX_use_PrivateKey_file(context.get(), key.path.c_str(), SSL_FILETYPE_PEM) != 1) {
    const bool of_another = ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_VALUES_MISMATCH;
    return OpenSslError(key,
                        of_another ? "not the key of the certificate" : "not a PEM private key without passphrase");
  }
  if (SSL_CTX_load_verify_locations(context.get(), authorities.path.c_str(), nullptr) != 1) {
    return OpenSslError(authorities, "no PEM certificates");
  }
  return CheckValidity(certificate, SSL_CTX_get0_certificate(context.get()), now);
}

Caller CallerOf(const grpc::AuthContext& connection) {
  const std::vector<grpc::string_ref> pem = connection.FindPropertyValues("x509_pem_cert");
  return pem.empty() ? Caller() : CallerFromPem({pem[0].data(), pem[0].size()});
}

// gRPC asks it before it hands a call to whatever kind of service.
class RoleCheck final : public grpc::AuthMetadataProcessor {
 public:
  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* connection, OutputMetadata* consumed,
                       OutputMetadata* response) override {
    const auto path = metadata.find(":path");
    const absl::Status status =
        CheckRole(CallerOf(*connection),
                  path == metadata.end() ? "" : std::string_view(path->second.data(), path->second.size()));
    return ToGrpc(status);
  }
};

}  // namespace

void AddTlsFlags(CLI::App& app, TlsFiles& files) {
  app.add_option("--tls-cert", files.certificate,
                 "PEM file of the own certificate and those that lead to its authority. With --tls-key and --tls-ca:\n"
                 "mutual TLS on every gRPC connection. Replaced files are read again")
      ->type_name("FILE");
  app.add_option("--tls-key", files.key, "PEM file of the certificate's private key")->type_name("FILE");
  app.add_option("--tls-ca", files.authorities,
                 "PEM file of the authorities that certificates must come from. What a caller may do is in its\n"
                 "certificate's subject: O=ballast:worker, O=ballast:operator or O=ballast:viewer")
      ->type_name("FILE");
}

absl::StatusOr<TransportSecurity> TransportSecurity::Create(const TlsFiles& files, absl::Time now) {
  const Named certificate{"--tls-cert", files.certificate}, key{"--tls-key", files.key},
      authorities{"--tls-ca", files.authorities};
  TransportSecurity security;
  if (!files.given()) return security;
  for (const Named& file : {certificate, key, authorities}) {
    if (file.path.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.option, " is missing: --tls-cert, --tls-key and --tls-ca go together"));
    }
  }
  BALLAST_RETURN_IF_ERROR(CheckFiles(certificate, key, authorities, now));
  security.provider_ = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      key.path, certificate.path, authorities.path, kRefreshSeconds);
  return security;
}

std::shared_ptr<grpc::ServerCredentials> TransportSecurity::ServerCredentials() const {
  if (!tls()) return grpc::InsecureServerCredentials();
  grpc::experimental::TlsServerCredentialsOptions options(provider_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  std::shared_ptr<grpc::ServerCredentials> credentials = grpc::experimental::TlsServerCredentials(options);
  credentials->SetAuthMetadataProcessor(std::make_shared<RoleCheck>());
  return credentials;
}

std::shared_ptr<grpc::Channel> TransportSecurity::Connect(const std::string& address, grpc::ChannelArguments arguments,
                                                          const std::string& server_name) const {
  if (!tls()) return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider_);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  if (!server_name.empty()) arguments.SetSslTargetNameOverride(server_name);
  return grpc::CreateCustomChannel(address, grpc::experimental::TlsCredentials(options), arguments);
}

Caller CallerOf(const grpc::ServerContextBase& call) { return CallerOf(*call.auth_context()); }

}  // namespace ballast
