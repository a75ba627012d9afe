#include "controller/console/http_server.h"

#include <openssl/ssl.h>
#include <sys/stat.h>

// Boost 1.74 knows the coroutines of C++20 in gcc and not in clang.
#define BOOST_ASIO_HAS_CO_AWAIT 1
#define BOOST_ASIO_HAS_STD_COROUTINE 1
#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/base/log.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr int kThreads = 4;
constexpr int kMaxConnections = 256;
constexpr size_t kMaxHeader = 16 << 10;
constexpr size_t kMaxBody = 1 << 20;
constexpr auto kIdle = std::chrono::seconds(60);
constexpr auto kExchange = std::chrono::seconds(30);

auto Into(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string Decode(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 && HexDigit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i] == '+' ? ' ' : text[i]);
    }
  }
  return out;
}

HttpRequest ToRequest(http::request<http::string_body>& in, const Caller& caller) {
  HttpRequest out;
  out.method = std::string(in.method_string());
  const std::string target(in.target());
  const size_t question = target.find('?');
  out.path = target.substr(0, question);
  if (question != std::string::npos) out.query = ParseQuery(target.substr(question + 1));
  for (const auto& field : in) {
    out.headers.emplace(absl::AsciiStrToLower(std::string(field.name_string())), std::string(field.value()));
  }
  out.body = std::move(in.body());
  out.caller = caller;
  return out;
}

// The certificates of new connections: read again when a file has been replaced.
class ServerTls {
 public:
  explicit ServerTls(TlsFiles files) : files_(std::move(files)) {}

  // Files that are no good once it serves are told in the log, and the ones before stay in force.
  absl::StatusOr<std::shared_ptr<asio::ssl::context>> Current() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    const Stamp stamp = StampNow();
    if (context_ != nullptr && stamp == stamp_) return context_;
    stamp_ = stamp;
    absl::StatusOr<std::shared_ptr<asio::ssl::context>> made = Make();
    if (made.ok()) {
      context_ = *std::move(made);
    } else if (context_ == nullptr) {
      return made.status();
    } else {
      Log(Severity::kWarning, "console: the replaced TLS files are not used", {{"error", made.status().message()}});
    }
    return context_;
  }

 private:
  // (inode, seconds, nanoseconds) of each file.
  using Stamp = std::array<std::array<int64_t, 3>, 3>;

  Stamp StampNow() const {
    Stamp stamp = {};
    for (int i = 0; const std::string* path : {&files_.certificate, &files_.key, &files_.authorities}) {
      struct stat file = {};
      if (stat(path->c_str(), &file) == 0) {
        stamp[i] = {static_cast<int64_t>(file.st_ino), file.st_mtim.tv_sec, file.st_mtim.tv_nsec};
      }
      ++i;
    }
    return stamp;
  }

  absl::StatusOr<std::shared_ptr<asio::ssl::context>> Make() const {
    auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
    SSL_CTX* const raw = context->native_handle();
    SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
    // Every connection shows its certificate anew.
    SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(raw, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
    error_code error;
    const auto failed = [&](const char* option, const std::string& path) {
      return absl::InvalidArgumentError(absl::StrCat(option, " ", path, ": ", error.message()));
    };
    context->use_certificate_chain_file(files_.certificate, error);
    if (error) return failed("--tls-cert", files_.certificate);
    context->use_private_key_file(files_.key, asio::ssl::context::pem, error);
    if (error) return failed("--tls-key", files_.key);
    context->load_verify_file(files_.authorities, error);
    if (error) return failed("--tls-ca", files_.authorities);
    // Browsers offer the certificates of the authorities that are named.
    SSL_CTX_set_client_CA_list(raw, SSL_load_client_CA_file(files_.authorities.c_str()));
    context->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert, error);
    if (error) return failed("--tls-ca", files_.authorities);
    return context;
  }

  const TlsFiles files_;
  Mutex mu_;
  std::shared_ptr<asio::ssl::context> context_ BALLAST_GUARDED_BY(mu_);
  Stamp stamp_ BALLAST_GUARDED_BY(mu_) = {};
};

}  // namespace

std::map<std::string, std::string> ParseQuery(const std::string& query) {
  std::map<std::string, std::string> out;
  for (const absl::string_view pair : absl::StrSplit(query, '&', absl::SkipEmpty())) {
    const size_t equals = pair.find('=');
    out[Decode(pair.substr(0, equals))] = equals == absl::string_view::npos ? "" : Decode(pair.substr(equals + 1));
  }
  return out;
}

class HttpServer::Impl {
 public:
  Impl(const TlsFiles& tls, HttpHandler handler) : handler_(std::move(handler)) {
    if (tls.given()) tls_.emplace(tls);
  }
  ~Impl() {
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
  }

  absl::Status Listen(const std::string& address) {
    if (tls_.has_value()) BALLAST_RETURN_IF_ERROR(tls_->Current().status());
    const size_t colon = address.rfind(':');
    std::string host = address.substr(0, colon);
    if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) host = host.substr(1, host.size() - 2);
    error_code error;
    tcp::resolver resolver(io_);
    const auto found = resolver.resolve(host, address.substr(colon + 1), tcp::resolver::passive, error);
    if (!error && found.empty()) error = asio::error::host_not_found;
    if (!error) {
      const tcp::endpoint endpoint = found.begin()->endpoint();
      acceptor_.open(endpoint.protocol(), error);
      if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
      if (!error) acceptor_.bind(endpoint, error);
      if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    }
    if (error) {
      return absl::UnavailableError(absl::StrCat("console-listen: cannot listen on ", address, ": ", error.message()));
    }
    port_ = acceptor_.local_endpoint(error).port();
    asio::co_spawn(io_, Accept(), asio::detached);
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { io_.run(); });
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  asio::awaitable<void> Accept() {
    for (;;) {
      error_code error;
      tcp::socket socket = co_await acceptor_.async_accept(asio::make_strand(io_), Into(error));
      if (error == asio::error::operation_aborted) co_return;
      if (error) {
        // Out of descriptors, say: the next one may go better once others have ended.
        asio::steady_timer pause(io_, std::chrono::milliseconds(100));
        co_await pause.async_wait(Into(error));
        continue;
      }
      if (connections_ >= kMaxConnections) continue;
      const auto executor = socket.get_executor();
      asio::co_spawn(executor, Connection(std::move(socket)), asio::detached);
    }
  }

  asio::awaitable<void> Connection(tcp::socket socket) {
    struct Counted {
      explicit Counted(std::atomic<int>& count) : count(count) { ++count; }
      ~Counted() { --count; }
      std::atomic<int>& count;
    } counted(connections_);
    error_code error;
    socket.set_option(tcp::no_delay(true), error);
    if (!tls_.has_value()) {
      beast::tcp_stream stream(std::move(socket));
      co_await Exchange(stream, Caller());
      stream.socket().shutdown(tcp::socket::shutdown_send, error);
      co_return;
    }
    const absl::StatusOr<std::shared_ptr<asio::ssl::context>> context = tls_->Current();
    if (!context.ok()) co_return;
    beast::ssl_stream<beast::tcp_stream> stream(beast::tcp_stream(std::move(socket)), **context);
    beast::get_lowest_layer(stream).expires_after(kExchange);
    co_await stream.async_handshake(asio::ssl::stream_base::server, Into(error));
    if (error) co_return;
    const std::unique_ptr<X509, void (*)(X509*)> certificate(SSL_get1_peer_certificate(stream.native_handle()),
                                                             X509_free);
    if (certificate == nullptr) co_return;
    co_await Exchange(stream, CallerFromCertificate(*certificate));
    beast::get_lowest_layer(stream).expires_after(kExchange);
    co_await stream.async_shutdown(Into(error));
  }

  // Requests and answers, until one side has had enough.
  template <typename Stream>
  asio::awaitable<void> Exchange(Stream& stream, Caller caller) {
    beast::flat_buffer buffer;
    for (;;) {
      http::request_parser<http::string_body> parser;
      parser.header_limit(kMaxHeader);
      parser.body_limit(kMaxBody);
      error_code error;
      beast::get_lowest_layer(stream).expires_after(kIdle);
      co_await http::async_read_header(stream, buffer, parser, Into(error));
      if (error) co_return;
      beast::get_lowest_layer(stream).expires_after(kExchange);
      co_await http::async_read(stream, buffer, parser, Into(error));
      if (error) co_return;
      const bool keep_alive = parser.get().keep_alive();
      const bool head = parser.get().method() == http::verb::head;
      HttpResponse answer = handler_(ToRequest(parser.get(), caller));

      http::response<http::string_body> out(static_cast<http::status>(answer.status), 11);
      for (const auto& [name, value] : answer.headers) out.set(name, value);
      out.keep_alive(keep_alive);
      out.content_length(answer.body.size());
      if (!head) out.body() = std::move(answer.body);
      // The handler may have taken longer than a request may.
      beast::get_lowest_layer(stream).expires_after(kExchange);
      http::response_serializer<http::string_body> serializer(out);
      if (head) {
        co_await http::async_write_header(stream, serializer, Into(error));
      } else {
        co_await http::async_write(stream, serializer, Into(error));
      }
      if (error || !keep_alive) co_return;
    }
  }

  const HttpHandler handler_;
  std::optional<ServerTls> tls_;
  std::atomic<int> connections_ = 0;
  int port_ = 0;
  std::vector<std::thread> threads_;
  asio::io_context io_;
  tcp::acceptor acceptor_{io_};
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address, const TlsFiles& tls,
                                                              HttpHandler handler) {
  auto impl = std::make_unique<Impl>(tls, std::move(handler));
  BALLAST_RETURN_IF_ERROR(impl->Listen(address));
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

int HttpServer::port() const { return impl_->port(); }

}  // namespace ballast
