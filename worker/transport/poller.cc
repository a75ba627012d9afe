#include "worker/transport/poller.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "proto/base/check.h"

namespace ballast {
namespace {

uint32_t Mask(bool readable, bool writable) {
  return (readable ? uint32_t{EPOLLIN} | uint32_t{EPOLLRDHUP} : 0) | (writable ? uint32_t{EPOLLOUT} : 0);
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    Reset();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void UniqueFd::Reset() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

Poller::Poller() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  BALLAST_CHECK(epoll_.valid()) << "epoll_create1: " << std::strerror(errno);
}

void Poller::Add(int fd, uint64_t key, bool readable, bool writable) {
  epoll_event event{.events = Mask(readable, writable), .data = {.u64 = key}};
  BALLAST_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0) << "fd " << fd << ": " << std::strerror(errno);
}

void Poller::Change(int fd, uint64_t key, bool readable, bool writable) {
  epoll_event event{.events = Mask(readable, writable), .data = {.u64 = key}};
  BALLAST_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0) << "fd " << fd << ": " << std::strerror(errno);
}

void Poller::Remove(int fd) {
  BALLAST_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr) == 0)
      << "fd " << fd << ": " << std::strerror(errno);
}

const std::vector<Poller::Event>& Poller::Wait(absl::Duration timeout) {
  int timeout_ms = -1;
  if (timeout != absl::InfiniteDuration()) {
    const absl::Duration bounded = std::clamp(timeout, absl::ZeroDuration(), absl::Hours(1));
    timeout_ms = static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(bounded, absl::Milliseconds(1))));
  }
  epoll_event ready[64];
  const int n = epoll_wait(epoll_.get(), ready, 64, timeout_ms);
  BALLAST_CHECK(n >= 0 || errno == EINTR) << "epoll_wait: " << std::strerror(errno);
  events_.clear();
  for (int i = 0; i < n; ++i) {
    events_.push_back({.key = ready[i].data.u64,
                       .readable = (ready[i].events & EPOLLIN) != 0,
                       .writable = (ready[i].events & EPOLLOUT) != 0,
                       .hung_up = (ready[i].events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) != 0});
  }
  return events_;
}

WakeFd::WakeFd() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  BALLAST_CHECK(fd_.valid()) << "eventfd: " << std::strerror(errno);
}

void WakeFd::Signal() {
  // EAGAIN means that it is readable already.
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(fd_.get(), &one, sizeof one);
}

void WakeFd::Clear() {
  uint64_t count;
  [[maybe_unused]] const ssize_t n = read(fd_.get(), &count, sizeof count);
}

}  // namespace ballast
