#include "tests/cluster/metrics.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace ballast {

absl::StatusOr<std::map<std::string, double>> ReadMetrics(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError(absl::StrCat(address, " is not host:port"));
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) {
    return absl::UnavailableError(absl::StrCat(address, " is unknown"));
  }
  const int fd = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
  const bool connected = fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0;
  freeaddrinfo(found);
  std::string page;
  if (connected) {
    const std::string request =
        absl::StrCat("GET /metrics HTTP/1.1\r\nHost: ", address, "\r\nConnection: close\r\n\r\n");
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) page.append(buffer, static_cast<size_t>(n));
    }
  }
  if (fd >= 0) close(fd);
  if (page.empty()) return absl::UnavailableError(absl::StrCat(address, " does not answer"));
  std::map<std::string, double> metrics;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (line.rfind("ballast_", 0) != 0 || space == std::string::npos) continue;
    metrics[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
  }
  return metrics;
}

double SumOf(const std::map<std::string, double>& metrics, std::string_view name,
             std::initializer_list<std::string_view> labels) {
  double sum = 0;
  for (const auto& [series, value] : metrics) {
    const size_t end = series.find('{');
    if (series.compare(0, end, name) != 0) continue;
    bool all = true;
    for (const std::string_view label : labels) all &= series.find(label) != std::string::npos;
    if (all) sum += value;
  }
  return sum;
}

}  // namespace ballast
