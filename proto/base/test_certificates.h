// Certificates for tests of TLS, made anew each time.
#ifndef BALLAST_PROTO_BASE_TEST_CERTIFICATES_H_
#define BALLAST_PROTO_BASE_TEST_CERTIFICATES_H_

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/base/check.h"
#include "proto/base/tls.h"

namespace ballast {

// An authority of its own. Not thread-safe.
class TestAuthority {
 public:
  // `name` tells authorities apart.
  explicit TestAuthority(const std::string& name)
      : key_(EVP_EC_gen("P-256"), EVP_PKEY_free),
        certificate_(
            Make(*this, key_.get(), name, {}, "critical,CA:TRUE", "", absl::InfinitePast(), absl::InfiniteFuture())) {}

  // Writes `prefix`.crt, .key and .ca: a certificate of this authority for `names` (OpenSSL's subjectAltName) with
  // these organisations, its key and the authority's certificate. Both times as they are: valid from a day ago for a
  // thousand days.
  TlsFiles Issue(const std::string& prefix, const std::string& names = "IP:127.0.0.1,DNS:localhost",
                 const std::vector<std::string>& organisations = {"ballast:worker", "ballast:operator"},
                 absl::Time from = absl::InfinitePast(), absl::Time to = absl::InfiniteFuture()) const {
    const Key key(EVP_EC_gen("P-256"), EVP_PKEY_free);
    const Certificate certificate = Make(*this, key.get(), "peer", organisations, "critical,CA:FALSE", names, from, to);
    const TlsFiles files{prefix + ".crt", prefix + ".key", prefix + ".ca"};
    Write(files.certificate, [&](std::FILE* f) { return PEM_write_X509(f, certificate.get()); });
    Write(files.key,
          [&](std::FILE* f) { return PEM_write_PrivateKey(f, key.get(), nullptr, nullptr, 0, nullptr, nullptr); });
    Write(files.authorities, [&](std::FILE* f) { return PEM_write_X509(f, certificate_.get()); });
    return files;
  }

 private:
  using Key = std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)>;
  using Certificate = std::unique_ptr<X509, void (*)(X509*)>;

  // Signed by `issuer`, or by itself while the issuer has no certificate yet.
  static Certificate Make(const TestAuthority& issuer, EVP_PKEY* key, const std::string& name,
                          const std::vector<std::string>& organisations, const char* constraints,
                          const std::string& names, absl::Time from, absl::Time to) {
    Certificate made(X509_new(), X509_free);
    X509* x = made.get();
    const bool root = key == issuer.key_.get();
    X509_set_version(x, 2);
    static long serial = 0;
    ASN1_INTEGER_set(X509_get_serialNumber(x), ++serial);
    if (from == absl::InfinitePast() && to == absl::InfiniteFuture()) {
      X509_gmtime_adj(X509_getm_notBefore(x), -24 * 3600);
      X509_gmtime_adj(X509_getm_notAfter(x), 1000L * 24 * 3600);
    } else {
      ASN1_TIME_set(X509_getm_notBefore(x), absl::ToTimeT(from));
      ASN1_TIME_set(X509_getm_notAfter(x), absl::ToTimeT(to));
    }
    X509_set_pubkey(x, key);
    AddToSubject(x, "CN", name);
    for (const std::string& organisation : organisations) AddToSubject(x, "O", organisation);
    X509_set_issuer_name(x, X509_get_subject_name(root ? x : issuer.certificate_.get()));
    Extend(x, NID_basic_constraints, constraints);
    if (!names.empty()) Extend(x, NID_subject_alt_name, names.c_str());
    BALLAST_CHECK(X509_sign(x, issuer.key_.get(), EVP_sha256()) != 0);
    return made;
  }

  static void AddToSubject(X509* x, const char* field, const std::string& value) {
    BALLAST_CHECK(X509_NAME_add_entry_by_txt(X509_get_subject_name(x), field, MBSTRING_UTF8,
                                             reinterpret_cast<const unsigned char*>(value.c_str()), -1, -1, 0) == 1);
  }

  static void Extend(X509* x, int nid, const char* value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
    BALLAST_CHECK(extension != nullptr);
    X509_add_ext(x, extension, -1);
    X509_EXTENSION_free(extension);
  }

  template <typename F>
  static void Write(const std::string& path, F write) {
    std::FILE* file = std::fopen(path.c_str(), "w");
    BALLAST_CHECK(file != nullptr);
    BALLAST_CHECK(write(file) == 1);
    std::fclose(file);
  }

  const Key key_;
  const Certificate certificate_;
};

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_TEST_CERTIFICATES_H_
