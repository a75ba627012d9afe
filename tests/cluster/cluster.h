// One controller and its workers as real processes on loopback.
#ifndef BALLAST_TESTS_CLUSTER_CLUSTER_H_
#define BALLAST_TESTS_CLUSTER_CLUSTER_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/group_service.grpc.pb.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "ballast/v1/plan_service.grpc.pb.h"
#include "proto/base/tls.h"
#include "tests/cluster/process.h"

namespace ballast {

struct WorkerOptions {
  std::string name;
  std::string group;
  // 0: every expert of the model and the staging slots.
  int slots = 0;
  int compute_threads = 1;
  std::vector<std::string> extra_flags;
  // Beside the cluster's.
  std::map<std::string, std::string> environment;
};

struct ClusterOptions {
  std::string controller_binary;
  std::string worker_binary;
  std::string ctl_binary;
  // A Hugging Face checkpoint's folder.
  std::string model;
  // For the store, the secret and the logs; must exist.
  std::string directory;
  // "exact" or "fast".
  std::string combine = "exact";
  // Values of the controller's --group, and other flags of it.
  std::vector<std::string> groups;
  std::vector<std::string> controller_flags;
  // Flags of every worker, beside its own.
  std::vector<std::string> worker_flags;
  std::map<std::string, std::string> environment;
  // Of every process and stub; empty: no TLS.
  TlsFiles tls;
};

// Longer than anything takes on a busy machine: only a hang comes near.
inline constexpr absl::Duration kPatience = absl::Minutes(5);

// Adds flags with which nobody is taken for dead, and no request gives up, because the machine is busy. Who is dead is
// noticed by closed connections.
void MakePatient(ClusterOptions& options);

// Not thread-safe; stubs are.
class Cluster {
 public:
  // Starts the controller and waits until it is ready.
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(ClusterOptions options);
  // Stops every process, workers first.
  ~Cluster();

  // Starts a worker (or, after Kill, starts it again) and waits until its ports are open.
  absl::Status StartWorker(const WorkerOptions& options);
  // Starts several at once: loading overlaps.
  absl::Status StartWorkers(const std::vector<WorkerOptions>& options);
  // The controller again, on its old address and store, after it was killed.
  // Another environment than the cluster's may be given.
  absl::Status RestartController();
  absl::Status RestartController(const std::map<std::string, std::string>& environment);

  Process& controller() { return *controller_; }
  Process& worker(const std::string& name) { return *workers_.at(name).process; }
  void KillWorker(const std::string& name);
  void KillController();
  // SIGTERM, and waits for its end.
  absl::Status StopController();

  // The controller's store; to be opened while it is dead.
  std::string store_path() const { return options_.directory + "/controller.db"; }

  const std::string& controller_address() const { return controller_address_; }
  const std::string& controller_metrics_address() const { return controller_metrics_; }
  // Another after RestartController.
  const std::string& controller_console_address() const { return controller_console_; }
  const std::string& worker_address(const std::string& name) const { return workers_.at(name).address; }
  const std::string& worker_metrics_address(const std::string& name) const { return workers_.at(name).metrics; }

  v1::GroupService::Stub& groups() { return *groups_; }
  v1::PlanService::Stub& plans() { return *plans_; }
  // A stub on a channel of its own.
  std::unique_ptr<v1::Inference::Stub> inference(const std::string& worker) const;

  // ballastctl's exit status, with --controller and the cluster's --tls-* given; -1: it did not exit. What it printed
  // is in `text`.
  int Ctl(const std::vector<std::string>& arguments, std::string* text) { return CtlAs(options_.tls, arguments, text); }
  // The same with a caller's own files; without any the call is plain.
  int CtlAs(const TlsFiles& tls, const std::vector<std::string>& arguments, std::string* text);
  // Until the worker's health service says of `service` that it serves, or does not, or cannot be asked.
  absl::Status AwaitHealth(const std::string& worker, const std::string& service, bool serving, absl::Duration timeout);

  // Until the worker's log, which goes on where one of the same name ended, has `text`.
  absl::Status AwaitLog(const std::string& worker, const std::string& text, absl::Duration timeout);

  // Watches the group until `done` says so. DeadlineExceeded shows the last state seen. A controller that is down in
  // between is waited for.
  absl::StatusOr<v1::Group> AwaitGroup(const std::string& group, absl::Duration timeout,
                                       const std::function<bool(const v1::Group&)>& done);
  // Until it serves with every expert live and `size` members.
  absl::StatusOr<v1::Group> AwaitServing(const std::string& group, int size, absl::Duration timeout);

 private:
  struct Worker {
    std::unique_ptr<Process> process;
    std::string address;
    std::string metrics;
  };

  explicit Cluster(ClusterOptions options) : options_(std::move(options)) {}
  absl::Status StartController(const std::string& listen, const std::string& metrics_listen,
                               const std::map<std::string, std::string>& environment);
  std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address) const;

  const ClusterOptions options_;
  TransportSecurity security_;
  int ctl_runs_ = 0;
  std::unique_ptr<Process> controller_;
  std::string controller_address_;
  std::string controller_metrics_;
  std::string controller_console_;
  std::map<std::string, Worker> workers_;
  std::unique_ptr<v1::GroupService::Stub> groups_;
  std::unique_ptr<v1::PlanService::Stub> plans_;
};

}  // namespace ballast

#endif  // BALLAST_TESTS_CLUSTER_CLUSTER_H_
