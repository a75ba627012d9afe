#include "tests/cluster/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/base/clock.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<Process>> Process::Start(const std::vector<std::string>& argv,
                                                        const std::string& log_path,
                                                        const std::map<std::string, std::string>& environment) {
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) return absl::InternalError(absl::StrCat("pipe: ", strerror(errno)));
  const int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) return absl::InternalError(absl::StrCat(log_path, ": ", strerror(errno)));
  // Everything that allocates happens before the fork: other threads may hold the allocator's lock at it.
  std::vector<char*> args;
  for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
  args.push_back(nullptr);
  std::vector<std::string> variables;
  for (char** v = environ; *v != nullptr; ++v) {
    const std::string variable = *v;
    if (!environment.contains(variable.substr(0, variable.find('=')))) variables.push_back(variable);
  }
  for (const auto& [key, value] : environment) variables.push_back(absl::StrCat(key, "=", value));
  std::vector<char*> envp;
  for (std::string& v : variables) envp.push_back(v.data());
  envp.push_back(nullptr);

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError(absl::StrCat("fork: ", strerror(errno)));
  if (pid == 0) {
    // The signal is sent when the forking thread ends, too, so processes are started from threads that stay.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    // A terminal's Ctrl-C is for the parent, which then stops its children in order.
    setpgid(0, 0);
    dup2(out[1], STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execve(args[0], args.data(), envp.data());
    _exit(127);
  }
  close(out[1]);
  close(log);
  return std::unique_ptr<Process>(new Process(pid, out[0], log_path));
}

Process::~Process() {
  if (running()) {
    kill(pid_, SIGKILL);
    waitpid(pid_, &status_, 0);
  }
  close(out_);
}

absl::StatusOr<std::map<std::string, std::string>> Process::AwaitReady(absl::Duration timeout) {
  const absl::Time deadline = Clock::Real().Now() + timeout;
  while (true) {
    for (size_t end; (end = unread_.find('\n')) != std::string::npos; unread_.erase(0, end + 1)) {
      std::istringstream words(unread_.substr(0, end));
      std::string word;
      words >> word;
      if (word != "ready") continue;
      std::map<std::string, std::string> fields;
      while (words >> word) {
        const size_t eq = word.find('=');
        if (eq != std::string::npos) fields[word.substr(0, eq)] = word.substr(eq + 1);
      }
      unread_.erase(0, end + 1);
      return fields;
    }
    const absl::Duration left = deadline - Clock::Real().Now();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrCat("pid ", pid_, " was not ready within ",
                                                      absl::FormatDuration(timeout), "; its log ends:\n",
                                                      TailOfFile(log_path_)));
    }
    pollfd fd = {out_, POLLIN, 0};
    if (poll(&fd, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1) <= 0) continue;
    char buffer[4096];
    const ssize_t got = read(out_, buffer, sizeof buffer);
    if (got <= 0) {
      return absl::AbortedError(
          absl::StrCat("pid ", pid_, " ended before it was ready; its log ends:\n", TailOfFile(log_path_)));
    }
    unread_.append(buffer, got);
  }
}

void Process::Signal(int signal) {
  if (running()) kill(pid_, signal);
}

bool Process::running() {
  if (!reaped_ && waitpid(pid_, &status_, WNOHANG) == pid_) reaped_ = true;
  return !reaped_;
}

absl::StatusOr<int> Process::Wait(absl::Duration timeout) {
  if (!running()) return status_;
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  if (fd < 0) return absl::InternalError(absl::StrCat("pidfd_open: ", strerror(errno)));
  pollfd poller = {fd, POLLIN, 0};
  poll(&poller, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  close(fd);
  if (running()) {
    return absl::DeadlineExceededError(absl::StrCat("pid ", pid_, " still runs after ", absl::FormatDuration(timeout)));
  }
  return status_;
}

absl::Duration Process::cpu_time() const {
  std::ifstream stat(absl::StrCat("/proc/", pid_, "/stat"));
  std::string text((std::istreambuf_iterator<char>(stat)), {});
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return absl::ZeroDuration();
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;  // state to cmajflt
  int64_t user = 0, system = 0;
  fields >> user >> system;
  return absl::Seconds(static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK)));
}

std::string TailOfFile(const std::string& path, int lines) {
  std::ifstream file(path);
  std::deque<std::string> last;
  for (std::string line; std::getline(file, line);) {
    last.push_back(line);
    if (static_cast<int>(last.size()) > lines) last.pop_front();
  }
  return absl::StrJoin(last, "\n");
}

}  // namespace ballast
