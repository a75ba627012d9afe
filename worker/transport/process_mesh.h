// Ranks in processes of their own, for tests and benchmarks of the transport between processes.
//
// The processes are forked, so the caller must not have started UCX or any thread.
#ifndef BALLAST_WORKER_TRANSPORT_PROCESS_MESH_H_
#define BALLAST_WORKER_TRANSPORT_PROCESS_MESH_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/transport/poller.h"
#include "worker/transport/ucx_transport.h"

namespace ballast {

// What a child has besides its transport: lines to and from the parent.
class ParentLine {
 public:
  explicit ParentLine(int fd) : fd_(fd) {}
  void Say(char word) const;
  // Blocks; dies with the parent.
  char Hear() const;

 private:
  int fd_;
};

class ProcessMesh {
 public:
  using Environment = std::vector<std::pair<std::string, std::string>>;
  // Returns the process's exit status.
  using Body = std::function<int(std::unique_ptr<Transport> transport, const ParentLine& parent)>;

  // Forks `ranks` processes, each of which sets `environment`, joins the others and runs `body`. One that cannot join
  // exits with 101.
  ProcessMesh(int ranks, const Environment& environment, const Body& body, UcxTransportOptions options = {});
  // Kills those that are left.
  ~ProcessMesh();
  ProcessMesh(const ProcessMesh&) = delete;
  ProcessMesh& operator=(const ProcessMesh&) = delete;

  void Say(int rank, char word) const;
  // Blocks for the next word of a child; '\0' when the child is gone.
  char Hear(int rank) const;
  void Kill(int rank) const;
  // Blocks; the exit status, or 128 + the signal that ended it.
  int Join(int rank);

 private:
  struct Child {
    pid_t pid = -1;
    UniqueFd line;
  };
  std::vector<Child> children_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_PROCESS_MESH_H_
