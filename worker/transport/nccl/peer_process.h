// A second process of the same program, as the product has one process for each GPU: for tests and benchmarks.
//
//   int main(int argc, char** argv) {
//     std::string what;
//     if (auto link = PeerLink::OfChild(argc, argv, &what)) return RunRank(1, *link, what);
//     ChildProcess child("a test");  // runs this program again, with a link to this process
//     return RunRank(0, child.link(), "a test");
//   }
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_PEER_PROCESS_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_PEER_PROCESS_H_

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "proto/base/check.h"

extern char** environ;

namespace ballast {

// Bytes between the two processes. Fails loudly when the other one is gone.
class PeerLink {
 public:
  explicit PeerLink(int fd) : fd_(fd) {}

  // The child's end and what it is to run; nothing in the process that a user has started.
  static std::optional<PeerLink> OfChild(int argc, char** argv, std::string* what) {
    if (argc != 4 || std::strcmp(argv[1], "--peer") != 0) return std::nullopt;
    *what = argv[3];
    return PeerLink(std::atoi(argv[2]));
  }

  void Write(const void* data, size_t bytes) const {
    for (size_t done = 0; done < bytes;) {
      const ssize_t n = send(fd_, static_cast<const char*>(data) + done, bytes - done, MSG_NOSIGNAL);
      BALLAST_CHECK(n > 0) << "the other process is gone";
      done += n;
    }
  }
  void Read(void* data, size_t bytes) const {
    for (size_t done = 0; done < bytes;) {
      const ssize_t n = recv(fd_, static_cast<char*>(data) + done, bytes - done, 0);
      BALLAST_CHECK(n > 0) << "the other process is gone";
      done += n;
    }
  }
  // Both processes have come here.
  void Meet() const {
    char c = 0;
    Write(&c, 1);
    Read(&c, 1);
  }

 private:
  int fd_;
};

// Killed when it goes out of scope.
class ChildProcess {
 public:
  explicit ChildProcess(const std::string& what) : link_(-1) {
    int fds[2];
    BALLAST_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    BALLAST_CHECK(fcntl(fds[0], F_SETFD, FD_CLOEXEC) == 0);
    const std::string fd = std::to_string(fds[1]);
    const char* const args[] = {"peer", "--peer", fd.c_str(), what.c_str(), nullptr};
    BALLAST_CHECK(posix_spawn(&pid_, "/proc/self/exe", nullptr, nullptr, const_cast<char**>(args), environ) == 0);
    close(fds[1]);
    fd_ = fds[0];
    link_ = PeerLink(fd_);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess() {
    if (pid_ > 0) Kill();
    close(fd_);
  }

  const PeerLink& link() const { return link_; }
  void Kill() {
    kill(pid_, SIGKILL);
    Wait();
  }
  // The exit code; -1 for a child that was killed.
  int Wait() {
    int status = 0;
    BALLAST_CHECK(waitpid(pid_, &status, 0) == pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = 0;
  int fd_ = -1;
  PeerLink link_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_PEER_PROCESS_H_
