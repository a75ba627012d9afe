// An HTTP/1.1 server for the console: plain on loopback, or HTTPS with client certificates.
#ifndef BALLAST_CONTROLLER_CONSOLE_HTTP_SERVER_H_
#define BALLAST_CONTROLLER_CONSOLE_HTTP_SERVER_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/base/roles.h"
#include "proto/base/tls.h"

namespace ballast {

struct HttpRequest {
  // "GET"
  std::string method;
  // Before '?', as it was sent.
  std::string path;
  // Decoded; of a name given twice the last.
  std::map<std::string, std::string> query;
  // Names in lower case; of a name given twice the first.
  std::map<std::string, std::string> headers;
  std::string body;
  // Of the client's certificate; nobody without TLS.
  Caller caller;

  // Empty where there is none.
  std::string Header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

struct HttpResponse {
  int status = 200;
  // Content-Length, Connection and Date are the server's.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// Called from several threads; may block, which holds up few others.
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

// "a=1&b=%2F" -> {a: 1, b: /}. A malformed escape stays as it is.
std::map<std::string, std::string> ParseQuery(const std::string& query);

// Bounded: at most 256 connections, 16 KiB of header, 1 MiB of body, 30 s for a request, 60 s idle; what is above is
// answered by closing the connection.
class HttpServer {
 public:
  // Listens on "host:port"; port 0 takes any free one. With `tls` given: HTTPS, TLS 1.2 and later, to clients that show
  // a certificate of the authorities; files that are replaced hold for the connections that follow.
  //   InvalidArgument  the files are no good.   Unavailable  the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address, const TlsFiles& tls,
                                                           HttpHandler handler);
  // Ends every connection; waits for handlers under way.
  ~HttpServer();

  int port() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CONSOLE_HTTP_SERVER_H_
