// A child process: a daemon under test.
#ifndef BALLAST_TESTS_CLUSTER_PROCESS_H_
#define BALLAST_TESTS_CLUSTER_PROCESS_H_

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ballast {

// Killed by SIGKILL when destroyed, and when this process dies in whatever way. Not thread-safe.
class Process {
 public:
  // Starts argv[0] with stderr appended to `log_path`. `environment` is added to this process's.
  static absl::StatusOr<std::unique_ptr<Process>> Start(const std::vector<std::string>& argv,
                                                        const std::string& log_path,
                                                        const std::map<std::string, std::string>& environment = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // The fields of the line "ready KEY=VALUE ..." on the daemon's stdout: the addresses that it got. DeadlineExceeded or
  // Aborted (it ended) with the end of its log.
  absl::StatusOr<std::map<std::string, std::string>> AwaitReady(absl::Duration timeout);

  void Signal(int signal);
  // The exit status as waitpid gives it. DeadlineExceeded when it still runs after `timeout`.
  absl::StatusOr<int> Wait(absl::Duration timeout);
  bool running();
  pid_t pid() const { return pid_; }
  const std::string& log_path() const { return log_path_; }
  // User and system time used so far.
  absl::Duration cpu_time() const;

 private:
  Process(pid_t pid, int out, std::string log_path) : pid_(pid), out_(out), log_path_(std::move(log_path)) {}

  const pid_t pid_;
  const int out_;  // read end of its stdout
  const std::string log_path_;
  std::string unread_;
  bool reaped_ = false;
  int status_ = 0;
};

// The last lines of a file, for messages.
std::string TailOfFile(const std::string& path, int lines = 30);

}  // namespace ballast

#endif  // BALLAST_TESTS_CLUSTER_PROCESS_H_
