#include "worker/daemon/config.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "proto/base/loopback.h"
#include "proto/base/status_macros.h"

namespace ballast {

void AddWorkerFlags(CLI::App& app, WorkerConfig& config) {
  app.add_option("--model", config.model, "Folder of a Hugging Face checkpoint (olmoe, qwen3_moe or mixtral)");
  app.add_option("--model-name", config.model_name, "Name of the model that operators see; default: the folder's");
  app.add_option("--controller", config.controller, "host:port of the controller")->capture_default_str();
  app.add_option("--name", config.name, "Name of this worker, the same after a restart; default: the host's");
  app.add_option("--group", config.group, "Group that this worker joins");
  app.add_option("--role", config.role, "What the group does: mixed, prefill or decode")->capture_default_str();
  app.add_option("--node", config.node, "Name of this host; links inside a node are fast. Default: the host's name");
  app.add_option("--listen", config.listen, "host:port of Inference, health and reflection; port 0: any free one")
      ->capture_default_str();
  app.add_option("--metrics-listen", config.metrics_listen, "host:port of Prometheus metrics")->capture_default_str();
  app.add_option("--data-listen", config.data_listen, "address:port where peers open data connections")
      ->capture_default_str();
  app.add_option("--advertise-host", config.advertise_host,
                 "Host under which others reach this worker; default: the host of the listen options");
  app.add_option("--group-secret-file", config.group_secret_file, "File with the secret shared by the group's workers");
  AddTlsFlags(app, config.tls);
  app.add_flag("--allow-insecure", config.allow_insecure,
               "Serve beyond loopback without TLS: anyone who reaches the ports can send requests, read answers and "
               "weights, and, holding the secret, join the group");
  app.add_option("--slots", config.slots, "Expert slots, staging included; 0: every expert, if memory allows")
      ->capture_default_str();
  app.add_option("--staging-slots", config.staging_slots, "Slots that no placement uses")->capture_default_str();
  app.add_option(
         "--speed", config.speed,
         "How fast this worker is beside the others of its group; only ratios matter. It gets as much more to do")
      ->capture_default_str();
  app.add_option("--device", config.device,
                 "Where the model is computed and the experts' slots lie: cpu, cuda (the first GPU) or cuda:N")
      ->capture_default_str();
  app.add_option("--combine", config.combine, "fast, or exact: the same bits in every placement")
      ->capture_default_str();
  app.add_option("--step-shares", config.step_shares,
                 "Where traffic shares come from in the steps that this worker leads: fixed (the placement), previous "
                 "(solved for the counts of the step before), current (for the step's own), or auto: what pays, layer "
                 "by layer")
      ->capture_default_str();
  app.add_option(
         "--route-samples", config.route_samples,
         "Tokens of each task and phase whose whole routes a load report holds, for plans that group experts by "
         "what is chosen together; 0: none")
      ->capture_default_str();
  app.add_option("--classify-tasks", config.classify_tasks,
                 "Takes an unlabelled request for the task whose labelled prompts chose experts most like its own "
                 "prompt, where "
                 "that is at least so certain (0.9, say); 0: never")
      ->capture_default_str();
  app.add_option("--compute-threads", config.compute_threads,
                 "Threads of the CPU's kernels and of sampling; 0: one a core")
      ->capture_default_str();
  app.add_option("--capacity", config.capacity, "Rows (tokens) of this worker in a step at most")
      ->capture_default_str();
  app.add_option("--kv-blocks", config.kv_blocks, "Blocks of 16 positions of KV cache; 0: by memory")
      ->capture_default_str();
  app.add_option("--max-running", config.max_running, "Requests that run at a time")->capture_default_str();
  app.add_option("--max-waiting", config.max_waiting, "Requests that wait; more are refused")->capture_default_str();
  app.add_option("--step-timeout", config.step_timeout_seconds, "Seconds after which a silent peer counts as lost")
      ->capture_default_str();
  app.add_option("--view-patience", config.view_patience_seconds,
                 "Seconds that requests wait for a new view after a peer is lost")
      ->capture_default_str();
  app.add_option(
         "--drain-timeout", config.drain_timeout_seconds,
         "Seconds that this worker goes on for after SIGTERM: its experts are moved to others, its requests end")
      ->capture_default_str();
  app.add_option("--log-format", config.log_format, "text or json")->capture_default_str();
  app.add_option("--log-level", config.log_level, "debug, info, warning or error")->capture_default_str();
}

absl::StatusOr<Device> ParseDevice(std::string_view name) {
  if (name == "cpu") return Device{};
  if (name == "cuda") return Device{.cuda = true};
  constexpr std::string_view kNumbered = "cuda:";
  constexpr int kMost = 1023;
  Device device{.cuda = true};
  if (name.substr(0, kNumbered.size()) == kNumbered) {
    const std::string_view number = name.substr(kNumbered.size());
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), device.index);
    if (error == std::errc() && end == number.data() + number.size() && device.index >= 0 && device.index <= kMost) {
      return device;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device is '", std::string(name), "'; allowed are cpu, cuda, cuda:N with N from 0 to ", kMost));
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view address) {
  const auto malformed = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", std::string(address), "' is not host:port, with the port between 0 and 65535"));
  };
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return malformed();
  std::string_view host = address.substr(0, colon);
  const std::string_view port = address.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return malformed();
  }
  HostPort out{.host = std::string(host)};
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
  if (error != std::errc() || end != port.data() + port.size() || host.empty() || out.port < 0 || out.port > 65535) {
    return malformed();
  }
  return out;
}

std::string JoinHostPort(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? absl::StrCat(host, ":", port) : absl::StrCat("[", host, "]:", port);
}

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "::"; }

absl::Status FinishConfig(WorkerConfig& config, const std::string& host_name, int cores) {
  for (const auto& [option, value] : {std::pair("--model", &config.model), {"--group", &config.group}}) {
    if (value->empty()) return absl::InvalidArgumentError(absl::StrCat(option, " is needed"));
  }
  const auto one_of = [](const char* option, const std::string& value,
                         std::initializer_list<std::string_view> allowed) -> absl::Status {
    std::string list;
    for (const std::string_view a : allowed) {
      if (value == a) return absl::OkStatus();
      absl::StrAppend(&list, list.empty() ? "" : ", ", std::string(a));
    }
    return absl::InvalidArgumentError(absl::StrCat(option, " is '", value, "'; allowed are ", list));
  };
  BALLAST_RETURN_IF_ERROR(one_of("--role", config.role, {"mixed", "prefill", "decode"}));
  BALLAST_RETURN_IF_ERROR(ParseDevice(config.device).status());
  BALLAST_RETURN_IF_ERROR(one_of("--combine", config.combine, {"fast", "exact"}));
  BALLAST_RETURN_IF_ERROR(one_of("--step-shares", config.step_shares, {"auto", "current", "previous", "fixed"}));
  BALLAST_RETURN_IF_ERROR(one_of("--log-format", config.log_format, {"text", "json"}));
  BALLAST_RETURN_IF_ERROR(one_of("--log-level", config.log_level, {"debug", "info", "warning", "error"}));

  struct Range {
    const char* option;
    double value, least, most;
  };
  for (const Range& r :
       {Range{"--slots", static_cast<double>(config.slots), 0, 1 << 24},
        {"--staging-slots", static_cast<double>(config.staging_slots), 1, 1 << 16},
        {"--speed", static_cast<double>(config.speed), 1, 1024},
        {"--route-samples", static_cast<double>(config.route_samples), 0, 4096},
        {"--classify-tasks", config.classify_tasks, 0, 1},
        {"--compute-threads", static_cast<double>(config.compute_threads), 0, 1024},
        {"--capacity", static_cast<double>(config.capacity), 1, 65536},
        {"--kv-blocks", static_cast<double>(config.kv_blocks), 0, 1 << 28},
        {"--max-running", static_cast<double>(config.max_running), 1, static_cast<double>(config.capacity)},
        {"--max-waiting", static_cast<double>(config.max_waiting), 1, 1 << 20},
        {"--step-timeout", config.step_timeout_seconds, 0.1, 3600},
        {"--view-patience", config.view_patience_seconds, 0, 3600},
        {"--drain-timeout", config.drain_timeout_seconds, 0, 86400}}) {
    if (r.value < r.least || r.value > r.most) {
      return absl::InvalidArgumentError(
          absl::StrCat(r.option, " is ", r.value, "; it must be between ", r.least, " and ", r.most));
    }
  }
  if (config.slots > 0 && config.slots <= config.staging_slots) {
    return absl::InvalidArgumentError(
        absl::StrCat("--slots is ", config.slots, "; it must be above --staging-slots, ", config.staging_slots));
  }

  if (config.model_name.empty()) {
    const std::filesystem::path path = std::filesystem::path(config.model).lexically_normal();
    config.model_name = (path.has_filename() ? path : path.parent_path()).filename().string();
  }
  if (config.name.empty()) config.name = host_name;
  if (config.node.empty()) config.node = host_name;
  if (config.name.size() > 253) {
    return absl::InvalidArgumentError(absl::StrCat("--name has ", config.name.size(), " characters; the limit is 253"));
  }
  if (config.compute_threads == 0) config.compute_threads = std::max(1, cores);

  for (const auto& [option, address] : {std::pair("--listen", &config.listen),
                                        {"--metrics-listen", &config.metrics_listen},
                                        {"--data-listen", &config.data_listen}}) {
    const absl::StatusOr<HostPort> parsed = ParseHostPort(*address);
    if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat(option, ": ", parsed.status().message()));
    if (!IsLoopback(parsed->host) && !config.allow_insecure && !config.tls.given()) {
      return absl::FailedPreconditionError(absl::StrCat(
          option, " is ", *address,
          ", beyond loopback, and there is no TLS: anyone who reaches the port could use it and read along. Give "
          "--tls-cert, --tls-key and --tls-ca, or --allow-insecure to accept that, inside a network policy"));
    }
    if (std::string_view(option) == "--data-listen" && !IsLoopback(parsed->host) && config.group_secret_file.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--group-secret-file is needed with --data-listen ", *address, ", beyond loopback"));
    }
    if (config.advertise_host.empty() && IsWildcard(parsed->host)) config.advertise_host = host_name;
  }
  return absl::OkStatus();
}

int MaxLogitRows(const WorkerConfig& config) { return std::max(config.max_running, std::min(config.capacity, 256)); }

int DefaultSlots(const MemoryNeeds& needs, int staging_slots) {
  const int64_t fit = needs.available_bytes / 4 * 3 / needs.expert_bytes;
  return static_cast<int>(std::clamp<int64_t>(fit, staging_slots + 1, needs.experts + staging_slots));
}

int DefaultKvBlocks(const MemoryNeeds& needs, int max_running) {
  const int64_t bytes = std::min<int64_t>(int64_t{1} << 30, needs.available_bytes / 8);
  const int64_t least = needs.kv_blocks_per_request;
  return static_cast<int>(std::clamp<int64_t>(bytes / needs.kv_block_bytes, least, least * max_running));
}

}  // namespace ballast
