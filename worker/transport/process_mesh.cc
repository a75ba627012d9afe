#include "worker/transport/process_mesh.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "proto/base/check.h"
#include "proto/base/clock.h"

namespace ballast {
namespace {

constexpr int kCannotJoin = 101;

bool ReadAll(int fd, void* data, size_t size) {
  for (size_t got = 0; got < size;) {
    const ssize_t n = read(fd, static_cast<char*>(data) + got, size - got);
    if (n <= 0 && errno != EINTR) return false;
    if (n > 0) got += n;
  }
  return true;
}

void WriteAll(int fd, const void* data, size_t size) {
  // A child that is gone shows when it is joined.
  [[maybe_unused]] const ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
}

int RunChild(int rank, int ranks, int line, const ProcessMesh::Body& body, const UcxTransportOptions& options) {
  auto listener =
      MeshListener::Start({.host = "127.0.0.1", .identity = {.group = "g", .secret = "s", .fingerprint = "f"}});
  if (!listener.ok()) return kCannotJoin;
  const int port = (*listener)->port();
  WriteAll(line, &port, sizeof port);
  std::vector<int> ports(ranks);
  if (!ReadAll(line, ports.data(), ports.size() * sizeof(int))) return kCannotJoin;
  MeshView view{.view = ViewId(1), .rank = rank};
  for (int i = 0; i < ranks; ++i) {
    view.members.push_back({.address = "127.0.0.1:" + std::to_string(ports[i]), .incarnation = Incarnation(i + 1)});
  }
  auto context = UcxContext::Create();
  if (!context.ok()) {
    std::fprintf(stderr, "rank %d: %s\n", rank, context.status().ToString().c_str());
    return kCannotJoin;
  }
  auto transport = ConnectUcx(*context, **listener, view, Clock::Real().Now() + absl::Seconds(30), options);
  if (!transport.ok()) {
    std::fprintf(stderr, "rank %d: %s\n", rank, transport.status().ToString().c_str());
    return kCannotJoin;
  }
  return body(*std::move(transport), ParentLine(line));
}

}  // namespace

void ParentLine::Say(char word) const { WriteAll(fd_, &word, 1); }

char ParentLine::Hear() const {
  char word;
  if (!ReadAll(fd_, &word, 1)) std::exit(kCannotJoin);
  return word;
}

ProcessMesh::ProcessMesh(int ranks, const Environment& environment, const Body& body, UcxTransportOptions options)
    : children_(ranks) {
  for (int rank = 0; rank < ranks; ++rank) {
    int fds[2];
    BALLAST_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0) << std::strerror(errno);
    children_[rank].line = UniqueFd(fds[0]);
    const pid_t pid = fork();
    BALLAST_CHECK(pid >= 0) << std::strerror(errno);
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (Child& other : children_) other.line.Reset();
      for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
      // exit, not _exit: sanitizers report at exit.
      std::exit(RunChild(rank, ranks, fds[1], body, options));
    }
    children_[rank].pid = pid;
    close(fds[1]);
  }
  std::vector<int> ports(ranks, 0);
  for (int rank = 0; rank < ranks; ++rank) ReadAll(children_[rank].line.get(), &ports[rank], sizeof(int));
  for (const Child& child : children_) WriteAll(child.line.get(), ports.data(), ports.size() * sizeof(int));
}

ProcessMesh::~ProcessMesh() {
  for (size_t rank = 0; rank < children_.size(); ++rank) {
    if (children_[rank].pid < 0) continue;
    Kill(static_cast<int>(rank));
    Join(static_cast<int>(rank));
  }
}

void ProcessMesh::Say(int rank, char word) const { WriteAll(children_[rank].line.get(), &word, 1); }

char ProcessMesh::Hear(int rank) const {
  char word = '\0';
  return ReadAll(children_[rank].line.get(), &word, 1) ? word : '\0';
}

void ProcessMesh::Kill(int rank) const { kill(children_[rank].pid, SIGKILL); }

int ProcessMesh::Join(int rank) {
  int status = 0;
  BALLAST_CHECK(waitpid(std::exchange(children_[rank].pid, -1), &status, 0) > 0) << std::strerror(errno);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace ballast
