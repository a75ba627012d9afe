// Mutual TLS for the gRPC connections of daemons and of ballastctl.
#ifndef BALLAST_PROTO_BASE_TLS_H_
#define BALLAST_PROTO_BASE_TLS_H_

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/channel_arguments.h"
#include "proto/base/roles.h"

namespace ballast {

// PEM files, as cert-manager writes them into a secret. All three or none.
struct TlsFiles {
  // tls.crt: the own certificate, then those that lead to its authority.
  std::string certificate;
  // tls.key: the private key of the certificate.
  std::string key;
  // ca.crt: the authorities whose certificates the other side may show.
  std::string authorities;

  bool given() const { return !certificate.empty() || !key.empty() || !authorities.empty(); }
};

// Adds --tls-cert, --tls-key and --tls-ca.
void AddTlsFlags(CLI::App& app, TlsFiles& files);

// What connections are made with: mutual TLS (TLS 1.2 and later), or nothing at all. A caller must show a certificate
// of the authorities, whatever its name, and before any service sees its call, CheckRole lets it through by the roles
// in it; a server must show the name, or IP address, that it is reached under. Copies share their state; thread-safe.
class TransportSecurity {
 public:
  // No TLS.
  TransportSecurity() = default;

  // With no files given, no TLS. Replaced files are read again within a minute, and hold for connections made from
  // then on; put certificate and key in place together (a symbolic link to a folder does it).
  //   InvalidArgument     some files are given and others are not; a file is not PEM; the key is of another
  //                       certificate. Names the option and the file
  //   NotFound, PermissionDenied  a file cannot be read
  //   FailedPrecondition  the certificate has expired by `now`, or is not valid yet
  static absl::StatusOr<TransportSecurity> Create(const TlsFiles& files, absl::Time now);

  // Whether TLS is in use; without it no roles are checked.
  bool tls() const { return provider_ != nullptr; }

  std::shared_ptr<grpc::ServerCredentials> ServerCredentials() const;

  // A channel to "host:port". `server_name`: the name that the server must show, where that is not the host (a
  // forwarded port).
  std::shared_ptr<grpc::Channel> Connect(const std::string& address, grpc::ChannelArguments arguments = {},
                                         const std::string& server_name = "") const;

 private:
  std::shared_ptr<grpc::experimental::FileWatcherCertificateProvider> provider_;
};

// Who makes this call; without TLS nobody is known.
Caller CallerOf(const grpc::ServerContextBase& call);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_TLS_H_
