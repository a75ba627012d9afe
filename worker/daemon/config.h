// The worker's flags, and what follows from them.
#ifndef BALLAST_WORKER_DAEMON_CONFIG_H_
#define BALLAST_WORKER_DAEMON_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/tls.h"

namespace ballast {

struct WorkerConfig {
  std::string model;
  std::string model_name;
  std::string controller = "127.0.0.1:7070";
  std::string name;
  std::string group;
  std::string role = "mixed";
  std::string node;
  std::string listen = "127.0.0.1:7080";
  std::string metrics_listen = "127.0.0.1:7081";
  std::string data_listen = "127.0.0.1:7082";
  std::string advertise_host;
  std::string group_secret_file;
  TlsFiles tls;
  bool allow_insecure = false;
  int slots = 0;
  int staging_slots = 2;
  int speed = 1;
  std::string device = "cpu";
  std::string combine = "fast";
  std::string step_shares = "auto";
  int route_samples = 16;
  double classify_tasks = 0;
  int compute_threads = 0;
  int capacity = 256;
  int kv_blocks = 0;
  int max_running = 64;
  int max_waiting = 256;
  double step_timeout_seconds = 5;
  double view_patience_seconds = 1.5;
  double drain_timeout_seconds = 30;
  std::string log_format = "text";
  std::string log_level = "info";
};

// Adds every option, named like the fields with dashes.
void AddWorkerFlags(CLI::App& app, WorkerConfig& config);

// Where a worker computes.
struct Device {
  bool cuda = false;
  // Of the GPU, as CUDA counts them.
  int index = 0;
};
// "cpu", "cuda" (the first GPU), "cuda:N". InvalidArgument says what is wanted.
absl::StatusOr<Device> ParseDevice(std::string_view name);

struct HostPort {
  std::string host;
  int port = 0;
};
// "127.0.0.1:80", "[::1]:0", "host:7080". InvalidArgument says what is wanted.
absl::StatusOr<HostPort> ParseHostPort(std::string_view address);
// "host:port", brackets around an IPv6 address.
std::string JoinHostPort(const std::string& host, int port);
// Every interface: "0.0.0.0" or "::".
bool IsWildcard(const std::string& host);

// Fills in what was left empty (model_name, name, node, advertise_host, compute_threads) and checks the rest.
//   InvalidArgument     names the option, the value and what is allowed
//   FailedPrecondition  an address beyond loopback with neither tls nor allow_insecure; says what is given up
absl::Status FinishConfig(WorkerConfig& config, const std::string& host_name, int cores);

// Rows of logits of a step at most: what every running request can have, and 256 at once for those that are scored. As
// many as --capacity would take gigabytes.
int MaxLogitRows(const WorkerConfig& config);

// How many slots and KV blocks a worker takes when it is not told.
struct MemoryNeeds {
  // Every expert of the model.
  int experts = 0;
  int64_t expert_bytes = 0;
  int64_t kv_block_bytes = 0;
  // KV blocks of one request as long as the model's positions.
  int kv_blocks_per_request = 0;
  int64_t available_bytes = 0;
};
// Every expert and the staging slots, if they fit three quarters of the available memory; else what fits.
int DefaultSlots(const MemoryNeeds& needs, int staging_slots);
// One GiB or an eighth of the available memory, whichever is less, but never less than one request needs or more than
// `max_running` requests can use.
int DefaultKvBlocks(const MemoryNeeds& needs, int max_running);

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_CONFIG_H_
