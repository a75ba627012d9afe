// Load over time, as a simulator's truth: what share of a step's pairs each expert gets, step after step.
//
// Pure: the same source gives the same load at the same step, in any order of asking. Any thread.
#ifndef BALLAST_CONTROLLER_SIM_LOAD_SOURCE_H_
#define BALLAST_CONTROLLER_SIM_LOAD_SOURCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/load.h"

namespace ballast {

class LoadSource {
 public:
  virtual ~LoadSource() = default;
  virtual int32_t layers() const = 0;
  virtual int32_t experts() const = 0;
  // What telemetry calls the load of step `step` (from 0): "prefill".
  virtual std::string phase(int64_t step) const = 0;
  // Each expert's part of its layer's pairs, a layer's summing to 1; layers without load are 0. `parts` has the
  // source's shape.
  virtual void Parts(int64_t step, LoadMatrix& parts) const = 0;
};

// One phase of a day: loads whose mixture drifts.
struct DayPhase {
  std::string name;
  // How many steps it runs at a stretch.
  int64_t steps = 1;
  // At least one, of one shape. Each is brought to a sum of 1 a layer first.
  std::vector<LoadMatrix> loads;
};

// Phases that take turns, each a mixture of its loads: load i of n weighs (1 + cos(2 pi (t / day - i / n)))^sharpness,
// so that hours of one are followed by hours of the next, and a day ends as it began.
class DaySource final : public LoadSource {
 public:
  // InvalidArgument names the phase unless there is one, all have steps and loads of one shape, and day_steps is at
  // least 1.
  static absl::StatusOr<DaySource> Make(std::vector<DayPhase> phases, int64_t day_steps, double sharpness = 4);

  int32_t layers() const override { return phases_[0].loads[0].layers; }
  int32_t experts() const override { return phases_[0].loads[0].experts; }
  std::string phase(int64_t step) const override { return PhaseOf(step).name; }
  void Parts(int64_t step, LoadMatrix& parts) const override;

 private:
  DaySource(std::vector<DayPhase> phases, int64_t day_steps, double sharpness)
      : phases_(std::move(phases)), day_steps_(day_steps), sharpness_(sharpness) {}
  const DayPhase& PhaseOf(int64_t step) const;

  std::vector<DayPhase> phases_;
  int64_t day_steps_;
  double sharpness_;
};

// Recorded windows one after the other, each for as many steps as it lasted; after the last the first again.
class TraceSource final : public LoadSource {
 public:
  struct Window {
    std::string phase;
    int64_t steps = 1;
    LoadMatrix load;
  };
  // InvalidArgument names the window unless there is one and all have steps and one shape.
  static absl::StatusOr<TraceSource> Make(std::vector<Window> windows);

  int32_t layers() const override { return windows_[0].load.layers; }
  int32_t experts() const override { return windows_[0].load.experts; }
  std::string phase(int64_t step) const override { return WindowOf(step).phase; }
  void Parts(int64_t step, LoadMatrix& parts) const override;

 private:
  explicit TraceSource(std::vector<Window> windows);
  const Window& WindowOf(int64_t step) const;

  std::vector<Window> windows_;
  // Steps up to and with each window.
  std::vector<int64_t> ends_;
};

// Zipf popularity, parts proportional to 1 / (rank + 1)^exponent, over ranks that drift: in each layer every
// `swap_every` steps two experts change ranks, and every jump_every steps (0: never) half of the experts at once do.
// For loads that no file has shown.
struct ZipfOptions {
  int32_t layers = 1;
  int32_t experts = 64;
  double exponent = 1;
  int64_t swap_every = 1000;
  int64_t jump_every = 0;
  uint64_t seed = 1;
};
class ZipfSource final : public LoadSource {
 public:
  explicit ZipfSource(const ZipfOptions& options) : options_(options) {}
  int32_t layers() const override { return options_.layers; }
  int32_t experts() const override { return options_.experts; }
  std::string phase(int64_t) const override { return "load"; }
  void Parts(int64_t step, LoadMatrix& parts) const override;

 private:
  const ZipfOptions options_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SIM_LOAD_SOURCE_H_
