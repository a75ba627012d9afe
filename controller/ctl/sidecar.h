// ballastctl sidecar: reads an engine's dumps as they appear in a folder, reports each of them once, and writes the
// placements that come back in the engine's own format.
//
// What has been done is in a state file. A dump gets its number there before it is sent, and the controller counts a
// number once, so a sidecar that is killed anywhere goes on where it was: no dump is lost or counted twice.
#ifndef BALLAST_CONTROLLER_CTL_SIDECAR_H_
#define BALLAST_CONTROLLER_CTL_SIDECAR_H_

#include <compare>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/telemetry_service.pb.h"
#include "controller/formats/engine_file.h"
#include "controller/formats/load_file.h"

namespace ballast {

// One version of one file: written anew it is another dump.
struct DumpFile {
  std::string name;
  int64_t bytes = 0;
  int64_t modified_ns = 0;
  friend auto operator<=>(const DumpFile&, const DumpFile&) = default;
};

struct SidecarState {
  // Of the reports that this state counts.
  uint64_t stream = 0;
  uint64_t next_sequence = 1;
  // Number of each dump's report; 0: it was refused.
  std::map<DumpFile, uint64_t> dumps;
  // Of the dumps that are done with those that were not in the folder, and since when (in whole seconds). They stay
  // known for a while: a folder whose mount comes and goes, or a file that is copied anew as it was, is no new load.
  std::map<DumpFile, absl::Time> missing_since;
  // Of the first dump; 0 rows: there was none yet. Its rows without load are dense.
  int32_t rows = 0;
  int32_t experts = 0;
  std::vector<int32_t> row_of_layer;
  // Of the placement that was written last.
  uint64_t written_epoch = 0;
  friend bool operator==(const SidecarState&, const SidecarState&) = default;
};
std::string FormatSidecarState(const SidecarState& state);
// InvalidArgument names the file and the field.
absl::StatusOr<SidecarState> ParseSidecarState(std::string_view bytes, std::string_view name);

// How long a dump that is done with and gone stays known.
constexpr absl::Duration kForgetDumpsAfter = absl::Hours(24);

// Brings missing_since up to what is in the folder now; what has been missing for long enough is forgotten. Only dumps
// whose number is at most `stored` are done with.
void ForgetDumps(std::span<const DumpFile> in_folder, uint64_t stored, absl::Time now, SidecarState& state);

// The dumps of `now` to send, oldest first: those not known, once they look as they did `before` (who writes one may
// not be done with it), and those whose number is above `stored`.
std::vector<DumpFile> DumpsToSend(std::span<const DumpFile> before, std::span<const DumpFile> now,
                                  const SidecarState& state, uint64_t stored);

struct SidecarOptions {
  std::string folder;
  std::string state_file;
  // The engine's placement file; written whole or not at all.
  std::string placement_file;
  EngineFormat format = EngineFormat::kSglang;
  EngineFileOptions file;
  std::string engine;
  std::string model;
  std::string reporter = "sidecar";
  int32_t gpus = 0;
  int32_t nodes = 1;
  int32_t slots_per_gpu = 0;
  int64_t expert_bytes = 0;
  v1::Phase phase = v1::PHASE_DECODE;
  std::string task;
  int32_t experts_per_token = 1;
  // Take this definition of the engine in place of another.
  bool replace = false;
};

// What a dump's load is as a report. Fractions are rounded. InvalidArgument where its shape is not the state's, a dense
// row has load, or there is no load at all.
absl::StatusOr<v1::LoadReport> MakeReport(const LoadFile& load, const SidecarState& state,
                                          const SidecarOptions& options);

// TelemetryService as the sidecar calls it. Useful for: tests that lose answers.
class EngineReporter {
 public:
  virtual ~EngineReporter() = default;
  virtual absl::StatusOr<v1::RegisterEngineResponse> Register(const v1::RegisterEngineRequest& request) = 0;
  virtual absl::StatusOr<v1::ReportLoadResponse> Report(const v1::ReportLoadRequest& request) = 0;
  virtual absl::StatusOr<v1::GetEnginePlacementResponse> Placement(const v1::GetEnginePlacementRequest& request) = 0;
};

// One thread. `reporter` must outlive it.
class Sidecar {
 public:
  // Takes up the state file, or begins one whose stream is `new_stream` where there is none. An error where there is
  // one that cannot be read: to begin anew would count everything twice.
  static absl::StatusOr<Sidecar> Open(SidecarOptions options, EngineReporter& reporter, uint64_t new_stream);

  // One look at the folder: sends what is to be sent, then writes the placement if there is a newer one, waiting up to
  // `wait` for it. `settled`: files are taken as they are, not only once they have stood still. What is worth telling
  // is added to `remarks`: a dump that is no load, which is passed over from then on, and one that may not be read now,
  // which is tried again at every look and told once. An error says what to try again; the next call does.
  absl::Status Step(bool settled, absl::Duration wait, absl::Time now, std::vector<std::string>& remarks);

  const SidecarState& state() const { return state_; }

 private:
  Sidecar(SidecarOptions options, EngineReporter& reporter) : options_(std::move(options)), reporter_(&reporter) {}
  absl::Status Register(std::vector<std::string>& remarks);
  absl::Status Send(const DumpFile& dump, std::vector<std::string>& remarks);
  // Before `number` is sent: dumps with a smaller one that was never counted lose it, as the controller would take it
  // for a duplicate from then on. When they come back they are new.
  absl::Status FreeNumbersBelow(uint64_t number);
  absl::Status FetchPlacement(absl::Duration wait, std::vector<std::string>& remarks);
  absl::Status Save() const;

  SidecarOptions options_;
  EngineReporter* reporter_;
  SidecarState state_;
  std::vector<DumpFile> before_;
  // Of the dumps that could not be read at the last look, what was told about it.
  std::map<DumpFile, std::string> unread_;
  bool registered_ = false;
  uint64_t stored_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_SIDECAR_H_
