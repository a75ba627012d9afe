#include "worker/transport/frame_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "worker/transport/wire.h"

namespace ballast {
namespace {

constexpr size_t kHeaderBytes = sizeof(uint32_t) + sizeof(uint8_t);
constexpr int kBacklog = 256;

struct AddressFree {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using AddressList = std::unique_ptr<addrinfo, AddressFree>;

absl::StatusOr<AddressList> Resolve(const std::string& host, const std::string& port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int rc = getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &list);
  if (rc == 0) return AddressList(list);
  const std::string text = absl::StrCat("address \"", host, ":", port, "\": ", gai_strerror(rc));
  return rc == EAI_NONAME && (flags & AI_NUMERICHOST) ? absl::InvalidArgumentError(text) : absl::UnavailableError(text);
}

absl::Status SystemError(std::string_view what) {
  return absl::UnavailableError(absl::StrCat(absl::string_view(what.data(), what.size()), ": ", std::strerror(errno)));
}

void SetOption(int fd, int level, int option, int value) {
  BALLAST_CHECK(setsockopt(fd, level, option, &value, sizeof value) == 0) << option << ": " << std::strerror(errno);
}

std::string NameOf(const sockaddr_storage& address, socklen_t length) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown address";
  }
  return address.ss_family == AF_INET6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

}  // namespace

std::string EncodeFrame(uint8_t type, std::string_view payload) {
  internal::WireWriter out;
  out.Put(static_cast<uint32_t>(payload.size())).Put(type).PutRaw(payload);
  return std::move(out).Take();
}

absl::Status FrameSocket::Send(std::string_view encoded) {
  out_.append(encoded);
  return Flush();
}

absl::Status FrameSocket::Flush() {
  while (!out_.empty()) {
    const ssize_t n = send(fd_.get(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      out_.erase(0, n);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      break;
    } else if (errno != EINTR) {
      return SystemError("connection lost");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<Frame>> FrameSocket::Read() {
  while (true) {
    size_t wanted = kHeaderBytes;
    if (in_.size() >= kHeaderBytes) {
      internal::WireReader header(in_);
      const uint32_t size = header.Get<uint32_t>();
      const uint8_t type = header.Get<uint8_t>();
      if (size > max_payload_) {
        return absl::InvalidArgumentError(absl::StrCat("frame of ", size, " bytes, the limit is ", max_payload_));
      }
      wanted += size;
      if (in_.size() >= wanted) {
        Frame frame{.type = type, .payload = in_.substr(kHeaderBytes, size)};
        in_.erase(0, wanted);
        return std::optional<Frame>(std::move(frame));
      }
    }
    // Never more than one frame is buffered: the rest waits in the kernel.
    char buffer[16384];
    const ssize_t n = recv(fd_.get(), buffer, std::min(sizeof buffer, wanted - in_.size()), MSG_DONTWAIT);
    if (n > 0) {
      in_.append(buffer, n);
    } else if (n == 0) {
      return absl::UnavailableError("connection closed by the other side");
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return std::optional<Frame>();
    } else if (errno != EINTR) {
      return SystemError("connection lost");
    }
  }
}

absl::StatusOr<UniqueFd> ListenTcp(const std::string& host, int* port) {
  absl::StatusOr<AddressList> list = Resolve(host, absl::StrCat(*port), AI_PASSIVE | AI_NUMERICHOST);
  if (!list.ok()) return list.status();
  absl::Status last = absl::UnavailableError("no address to listen on");
  // "" gives 0.0.0.0 and ::; the latter, with IPv4 mapped, serves both.
  std::vector<const addrinfo*> candidates;
  for (const addrinfo* a = list->get(); a != nullptr; a = a->ai_next) {
    a->ai_family == AF_INET6 ? static_cast<void>(candidates.insert(candidates.begin(), a)) : candidates.push_back(a);
  }
  for (const addrinfo* a : candidates) {
    UniqueFd fd(socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol));
    if (!fd.valid()) {
      last = SystemError("socket");
      continue;
    }
    SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (a->ai_family == AF_INET6) SetOption(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, host.empty() ? 0 : 1);
    if (bind(fd.get(), a->ai_addr, a->ai_addrlen) != 0 || listen(fd.get(), kBacklog) != 0) {
      last = SystemError(absl::StrCat("data port ", *port));
      continue;
    }
    sockaddr_storage bound{};
    socklen_t length = sizeof bound;
    BALLAST_CHECK(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length) == 0);
    *port = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                                              : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
    return fd;
  }
  return last;
}

absl::StatusOr<UniqueFd> DialTcp(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 ||
      port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("data address \"", address, "\": want host:port, port 1 to 65535"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  absl::StatusOr<AddressList> list = Resolve(host, absl::StrCat(port), 0);
  if (!list.ok()) return list.status();
  const addrinfo* a = list->get();
  UniqueFd fd(socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol));
  if (!fd.valid()) return SystemError("socket");
  ConfigureLink(fd.get());
  if (connect(fd.get(), a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS) return SystemError("connect");
  return fd;
}

absl::Status ConnectResult(int fd) {
  int error = 0;
  socklen_t length = sizeof error;
  BALLAST_CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0) << std::strerror(errno);
  if (error != 0) return absl::UnavailableError(absl::StrCat("connect: ", std::strerror(error)));
  return absl::OkStatus();
}

std::string PeerName(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "unknown address";
  return NameOf(address, length);
}

void ConfigureLink(int fd) {
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 4);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 2);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

}  // namespace ballast
