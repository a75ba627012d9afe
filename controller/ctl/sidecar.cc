#include "controller/ctl/sidecar.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "controller/ctl/files.h"
#include "controller/formats/plan_file.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

namespace fs = std::filesystem;

constexpr char kStateFormat[] = "ballast.sidecar/v1";

absl::Status Bad(std::string_view name, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(name), ": ", what));
}

bool Unsigned(const nlohmann::json& json, const char* key, uint64_t most, uint64_t& out) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number_unsigned() || found->get<uint64_t>() > most) return false;
  out = found->get<uint64_t>();
  return true;
}

// A time before 1970 is negative.
bool Signed(const nlohmann::json& json, const char* key, int64_t& out) {
  const auto found = json.find(key);
  constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (found == json.end() || !found->is_number_integer()) return false;
  if (found->is_number_unsigned() && found->get<uint64_t>() > kMost) return false;
  out = found->get<int64_t>();
  return true;
}

// The version that `path` is now; nothing where it is no regular file, or gone.
std::optional<DumpFile> VersionOf(const fs::path& path) {
  std::error_code gone;
  if (!fs::is_regular_file(path, gone) || gone) return std::nullopt;
  const auto bytes = fs::file_size(path, gone);
  if (gone) return std::nullopt;
  const auto modified = fs::last_write_time(path, gone);
  if (gone) return std::nullopt;
  return DumpFile{
      path.filename().string(), static_cast<int64_t>(bytes),
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::file_clock::to_sys(modified).time_since_epoch())
          .count()};
}

// Regular files that may be dumps, oldest first.
absl::StatusOr<std::vector<DumpFile>> List(const SidecarOptions& options) {
  std::vector<DumpFile> files;
  std::error_code error;
  for (fs::directory_iterator entry(options.folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    // Hidden files, those that this program writes among them, and others that are being written.
    if (name.empty() || name[0] == '.' || name.ends_with(".partial")) continue;
    std::error_code gone;
    if (fs::equivalent(entry->path(), options.placement_file, gone)) continue;
    if (fs::equivalent(entry->path(), options.state_file, gone)) continue;
    if (std::optional<DumpFile> file = VersionOf(entry->path())) files.push_back(*std::move(file));
  }
  if (error) return absl::NotFoundError(absl::StrCat(options.folder, ": cannot be read: ", error.message()));
  std::sort(files.begin(), files.end(), [](const DumpFile& a, const DumpFile& b) {
    return std::tie(a.modified_ns, a.name, a.bytes) < std::tie(b.modified_ns, b.name, b.bytes);
  });
  return files;
}

}  // namespace

std::string FormatSidecarState(const SidecarState& state) {
  nlohmann::ordered_json json = {{"format", kStateFormat},
                                 {"stream", state.stream},
                                 {"next_sequence", state.next_sequence},
                                 {"rows", state.rows},
                                 {"experts", state.experts},
                                 {"row_of_layer", state.row_of_layer},
                                 {"written_epoch", state.written_epoch}};
  nlohmann::ordered_json& dumps = json["dumps"] = nlohmann::ordered_json::array();
  // File names can be any bytes, JSON cannot.
  for (const auto& [dump, sequence] : state.dumps) {
    dumps.push_back({{"name", absl::CEscape(dump.name)},
                     {"bytes", dump.bytes},
                     {"modified_ns", dump.modified_ns},
                     {"sequence", sequence}});
    const auto missing = state.missing_since.find(dump);
    if (missing != state.missing_since.end()) dumps.back()["missing_since"] = absl::ToUnixSeconds(missing->second);
  }
  return json.dump(1) + "\n";
}

absl::StatusOr<SidecarState> ParseSidecarState(std::string_view bytes, std::string_view name) {
  const absl::StatusOr<nlohmann::json> json = ParseJson(bytes);
  if (!json.ok()) return Bad(name, std::string(json.status().message()));
  if (!json->is_object() || json->value("format", nlohmann::json()) != kStateFormat) {
    return Bad(name, absl::StrCat("format: must be \"", kStateFormat, "\""));
  }
  SidecarState state;
  uint64_t rows = 0;
  uint64_t experts = 0;
  constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();
  for (const auto& [key, most, out] :
       {std::tuple("stream", kAny, &state.stream), std::tuple("next_sequence", kAny, &state.next_sequence),
        std::tuple("rows", static_cast<uint64_t>(kMaxLoadRows), &rows),
        std::tuple("experts", static_cast<uint64_t>(kMaxLoadExperts), &experts),
        std::tuple("written_epoch", kAny, &state.written_epoch)}) {
    if (!Unsigned(*json, key, most, *out)) return Bad(name, absl::StrCat(key, ": must be a whole number, 0 to ", most));
  }
  state.rows = static_cast<int32_t>(rows);
  state.experts = static_cast<int32_t>(experts);
  const auto row_of_layer = json->find("row_of_layer");
  if (row_of_layer == json->end() || !row_of_layer->is_array()) return Bad(name, "row_of_layer: must be a list");
  for (const nlohmann::json& row : *row_of_layer) {
    const int64_t least = state.row_of_layer.empty() ? 0 : state.row_of_layer.back() + 1;
    if (!row.is_number_integer() || row < least || row >= state.rows) {
      return Bad(name, absl::StrCat("row_of_layer: ", QuoteJson(row), "; must be ", least, " to ", state.rows - 1));
    }
    state.row_of_layer.push_back(row.get<int32_t>());
  }
  const auto dumps = json->find("dumps");
  if (dumps == json->end() || !dumps->is_array()) return Bad(name, "dumps: must be a list");
  for (size_t i = 0; i < dumps->size(); ++i) {
    const nlohmann::json& entry = (*dumps)[i];
    uint64_t size = 0;
    uint64_t sequence = 0;
    constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    DumpFile dump;
    if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string() ||
        !absl::CUnescape(entry["name"].get<std::string>(), &dump.name) || !Unsigned(entry, "bytes", kMost, size) ||
        !Signed(entry, "modified_ns", dump.modified_ns) || !Unsigned(entry, "sequence", kAny, sequence)) {
      return Bad(name, absl::StrCat("dumps[", i, "]: must have name, bytes, modified_ns and sequence"));
    }
    dump.bytes = static_cast<int64_t>(size);
    state.dumps[dump] = sequence;
    if (!entry.contains("missing_since")) continue;
    int64_t missing_since = 0;
    if (!Signed(entry, "missing_since", missing_since)) {
      return Bad(name, absl::StrCat("dumps[", i, "].missing_since: must be a whole number"));
    }
    state.missing_since[dump] = absl::FromUnixSeconds(missing_since);
  }
  return state;
}

void ForgetDumps(std::span<const DumpFile> in_folder, uint64_t stored, absl::Time now, SidecarState& state) {
  const std::set<DumpFile> there(in_folder.begin(), in_folder.end());
  std::erase_if(state.dumps, [&](const auto& entry) {
    const auto& [dump, sequence] = entry;
    if (sequence > stored || there.contains(dump)) {
      state.missing_since.erase(dump);
      return false;
    }
    const auto missing = state.missing_since.emplace(dump, now).first;
    if (now - missing->second < kForgetDumpsAfter) return false;
    state.missing_since.erase(missing);
    return true;
  });
}

std::vector<DumpFile> DumpsToSend(std::span<const DumpFile> before, std::span<const DumpFile> now,
                                  const SidecarState& state, uint64_t stored) {
  std::vector<DumpFile> send;
  for (const DumpFile& dump : now) {
    const auto known = state.dumps.find(dump);
    if (known != state.dumps.end() ? known->second > stored
                                   : std::find(before.begin(), before.end(), dump) != before.end()) {
      send.push_back(dump);
    }
  }
  // Numbers in their order first: a number behind a gap would make those before it duplicates.
  std::stable_sort(send.begin(), send.end(), [&](const DumpFile& a, const DumpFile& b) {
    const auto rank = [&](const DumpFile& dump) {
      const auto known = state.dumps.find(dump);
      return known == state.dumps.end() ? std::numeric_limits<uint64_t>::max() : known->second;
    };
    return rank(a) < rank(b);
  });
  return send;
}

absl::StatusOr<v1::LoadReport> MakeReport(const LoadFile& load, const SidecarState& state,
                                          const SidecarOptions& options) {
  v1::LoadReport report;
  double entered = 0;
  LoadMatrix sum(state.rows, state.experts);
  for (const LoadPart& part : load.parts) {
    // Routes show only what was used.
    const bool grows = load.format == "routes";
    if (part.load.layers > state.rows || part.load.experts > state.experts ||
        (!grows && (part.load.layers != state.rows || part.load.experts != state.experts))) {
      return absl::InvalidArgumentError(absl::StrCat(part.load.layers, " rows of ", part.load.experts,
                                                     " experts; the first dump had ", state.rows, " of ",
                                                     state.experts));
    }
    for (int32_t l = 0; l < part.load.layers; ++l) {
      for (int32_t e = 0; e < part.load.experts; ++e) sum.layer(l)[e] += part.load.layer(l)[e];
    }
  }
  for (int32_t row = 0; row < state.rows; ++row) {
    const auto layer = std::lower_bound(state.row_of_layer.begin(), state.row_of_layer.end(), row);
    const bool moe = layer != state.row_of_layer.end() && *layer == row;
    double total = 0;
    for (int32_t e = 0; e < state.experts; ++e) {
      const double tokens = sum.layer(row)[e];
      if (tokens == 0) continue;
      if (!moe) {
        return absl::InvalidArgumentError(
            absl::StrCat("row ", row, " expert ", e, ": ", tokens, " tokens, and in the first dump the row was dense"));
      }
      v1::LoadCount& count = *report.add_counts();
      count.set_layer(static_cast<int32_t>(layer - state.row_of_layer.begin()));
      count.set_expert(e);
      count.set_phase(options.phase);
      count.set_tokens(std::llround(tokens));
      total += tokens;
    }
    entered = std::max(entered, total / options.experts_per_token);
  }
  if (report.counts_size() == 0) return absl::InvalidArgumentError("holds no tokens");
  v1::TaskTokens& task = *report.add_task_tokens();
  task.set_task(options.task);
  const int64_t tokens = std::max<int64_t>(1, std::llround(entered));
  options.phase == v1::PHASE_PREFILL ? task.set_prefill_tokens(tokens) : task.set_decode_tokens(tokens);
  return report;
}

absl::StatusOr<Sidecar> Sidecar::Open(SidecarOptions options, EngineReporter& reporter, uint64_t new_stream) {
  Sidecar sidecar(std::move(options), reporter);
  const std::string& path = sidecar.options_.state_file;
  const absl::StatusOr<std::string> bytes = ReadBytes(path);
  if (absl::IsNotFound(bytes.status())) {
    sidecar.state_.stream = new_stream;
    return sidecar;
  }
  if (!bytes.ok()) return bytes.status();
  BALLAST_ASSIGN_OR_RETURN(sidecar.state_, ParseSidecarState(*bytes, path));
  return sidecar;
}

absl::Status Sidecar::Save() const { return WriteFile(options_.state_file, FormatSidecarState(state_)); }

absl::Status Sidecar::Register(std::vector<std::string>& remarks) {
  v1::RegisterEngineRequest request;
  v1::Engine& engine = *request.mutable_engine();
  engine.set_name(options_.engine);
  engine.set_model(options_.model);
  engine.set_num_layers(static_cast<int32_t>(state_.row_of_layer.size()));
  engine.set_num_experts(state_.experts);
  engine.set_slots_per_layer(options_.slots_per_gpu);
  engine.set_expert_bytes(options_.expert_bytes);
  for (const TopologyWorker& worker : UniformTopology(options_.gpus, options_.nodes, 1).workers) {
    v1::EngineWorker& gpu = *engine.add_workers();
    gpu.set_name(worker.name);
    gpu.set_node(absl::StrCat("node", worker.node));
  }
  request.set_replace(options_.replace);
  request.set_reporter(options_.reporter);
  request.set_report_stream(state_.stream);
  BALLAST_ASSIGN_OR_RETURN(const v1::RegisterEngineResponse response, reporter_->Register(request));
  registered_ = true;
  stored_ = response.reports_stored();
  if (response.status().epoch() < state_.written_epoch) {
    remarks.push_back(absl::StrCat("the controller's newest placement has epoch ", response.status().epoch(),
                                   ", the one written ", state_.written_epoch, ": it has begun anew, and so do we"));
    state_.written_epoch = response.status().epoch();
    BALLAST_RETURN_IF_ERROR(Save());
  }
  return absl::OkStatus();
}

absl::Status Sidecar::FreeNumbersBelow(uint64_t number) {
  // They come in their order, so whoever has one of these was not in the folder.
  const size_t freed = std::erase_if(state_.dumps, [&](const auto& entry) {
    if (entry.second <= stored_ || entry.second >= number) return false;
    state_.missing_since.erase(entry.first);
    return true;
  });
  return freed > 0 ? Save() : absl::OkStatus();
}

absl::Status Sidecar::Send(const DumpFile& dump, std::vector<std::string>& remarks) {
  const std::string path = absl::StrCat(options_.folder, "/", dump.name);
  const auto refuse = [&](const absl::Status& status) {
    remarks.push_back(absl::StrCat(status.message(), "; passed over"));
    state_.dumps[dump] = 0;
    return Save();
  };
  const absl::StatusOr<std::string> bytes = ReadBytes(path);
  // Gone, or written to meanwhile: then it is another dump, which the next look finds.
  if (absl::IsNotFound(bytes.status()) || VersionOf(path) != dump) return absl::OkStatus();
  if (absl::IsPermissionDenied(bytes.status()) || absl::IsUnavailable(bytes.status())) {
    const std::string what(bytes.status().message());
    // Numbers behind its own would make it a duplicate, so they wait.
    if (state_.dumps.contains(dump)) return absl::UnavailableError(what);
    std::string& told = unread_[dump];
    if (told != what) remarks.push_back(absl::StrCat(what, "; trying again at every look"));
    told = what;
    return absl::OkStatus();
  }
  unread_.erase(dump);
  const absl::StatusOr<LoadFile> load = bytes.ok() ? ParseLoad(*bytes, path) : bytes.status();
  if (!load.ok()) return refuse(load.status());
  if (state_.rows == 0) {
    const NamedLoads loads[] = {{dump.name, {*load}}};
    const absl::StatusOr<LoadSet> set = MakeLoadSet(loads);
    if (!set.ok()) return refuse(set.status());
    const auto& tokens = set->scenarios[0].load.tokens;
    if (std::all_of(tokens.begin(), tokens.end(), [](double t) { return t == 0; })) {
      return refuse(Bad(path, "holds no tokens"));
    }
    state_.rows = set->rows;
    state_.experts = set->scenarios[0].load.experts;
    state_.row_of_layer = set->row_of_layer;
  }
  absl::StatusOr<v1::LoadReport> report = MakeReport(*load, state_, options_);
  if (!report.ok()) return refuse(Bad(path, std::string(report.status().message())));
  const auto [numbered, first] = state_.dumps.emplace(dump, state_.next_sequence);
  if (first) ++state_.next_sequence;
  BALLAST_RETURN_IF_ERROR(Save());
  report->set_sequence(numbered->second);
  report->mutable_end()->set_seconds(dump.modified_ns / 1'000'000'000);
  v1::ReportLoadRequest request;
  request.set_engine(options_.engine);
  request.set_reporter(options_.reporter);
  request.set_report_stream(state_.stream);
  *request.mutable_report() = *std::move(report);
  if (!registered_) BALLAST_RETURN_IF_ERROR(Register(remarks));
  BALLAST_RETURN_IF_ERROR(FreeNumbersBelow(numbered->second));
  absl::StatusOr<v1::ReportLoadResponse> response = reporter_->Report(request);
  if (absl::IsFailedPrecondition(response.status()) || absl::IsNotFound(response.status())) {
    // A controller that forgot the stream or the engine.
    BALLAST_RETURN_IF_ERROR(Register(remarks));
    response = reporter_->Report(request);
  }
  if (!response.ok()) {
    // It may have counted the report all the same: to register anew says.
    registered_ = false;
    return response.status();
  }
  stored_ = response->reports_stored();
  remarks.push_back(absl::StrCat(path, ": reported"));
  return absl::OkStatus();
}

absl::Status Sidecar::FetchPlacement(absl::Duration wait, std::vector<std::string>& remarks) {
  v1::GetEnginePlacementRequest request;
  request.set_engine(options_.engine);
  request.set_after_epoch(state_.written_epoch);
  request.mutable_wait()->set_seconds(absl::ToInt64Seconds(wait));
  BALLAST_ASSIGN_OR_RETURN(const v1::GetEnginePlacementResponse response, reporter_->Placement(request));
  if (!response.has_placement()) return absl::OkStatus();
  PlanFile plan;
  BALLAST_ASSIGN_OR_RETURN(plan.placement, FromProto(response.placement()));
  if (plan.placement.num_layers != static_cast<int32_t>(state_.row_of_layer.size()) ||
      plan.placement.num_experts != state_.experts ||
      static_cast<int32_t>(plan.placement.workers.size()) != options_.gpus) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the controller's placement of '", options_.engine, "' is for another engine: ", plan.placement.num_layers,
        " layers, ", plan.placement.num_experts, " experts, ", plan.placement.workers.size(), " GPUs"));
  }
  plan.rows = state_.rows;
  plan.row_of_layer = state_.row_of_layer;
  BALLAST_ASSIGN_OR_RETURN(const SlotMap map, ToSlotMap(plan));
  BALLAST_RETURN_IF_ERROR(WriteFile(options_.placement_file, FormatEngineFile(options_.format, map, options_.file)));
  state_.written_epoch = response.placement().epoch();
  remarks.push_back(
      absl::StrCat(options_.placement_file, ": epoch ", state_.written_epoch, ", ", response.status().reason()));
  return Save();
}

absl::Status Sidecar::Step(bool settled, absl::Duration wait, absl::Time now, std::vector<std::string>& remarks) {
  BALLAST_ASSIGN_OR_RETURN(std::vector<DumpFile> dumps, List(options_));
  if (settled) before_ = dumps;
  if (!registered_ && state_.rows > 0) BALLAST_RETURN_IF_ERROR(Register(remarks));
  if (registered_) ForgetDumps(dumps, stored_, now, state_);
  for (const DumpFile& dump : DumpsToSend(before_, dumps, state_, stored_)) {
    BALLAST_RETURN_IF_ERROR(Send(dump, remarks));
  }
  std::erase_if(unread_,
                [&](const auto& entry) { return std::find(dumps.begin(), dumps.end(), entry.first) == dumps.end(); });
  before_ = std::move(dumps);
  return registered_ ? FetchPlacement(wait, remarks) : absl::OkStatus();
}

}  // namespace ballast
