// How far long work has come, as one line on stderr that is drawn over itself and gone when the work has ended. Only
// where stderr is a terminal.
#ifndef BALLAST_CONTROLLER_CTL_PROGRESS_H_
#define BALLAST_CONTROLLER_CTL_PROGRESS_H_

#include <atomic>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <thread>

#include "absl/time/time.h"
#include "controller/ctl/context.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"

namespace ballast {

// "planning [####    ]  50 %  10 s, about 10 s left" in at most `columns`; `total` 0: nobody knows how much there is,
// and it is "planning  10 s".
std::string ProgressText(std::string_view what, int64_t done, int64_t total, absl::Duration elapsed, int columns);

// Where progress is drawn.
struct ProgressLine {
  // Null: nowhere, and a Progress does nothing.
  std::ostream* out = nullptr;
  int columns = 80;
};
// stderr, if it is a terminal and the command line does not say --progress never.
ProgressLine ProgressLineOf(const CtlContext& context);

// From its construction to its end. Work that is done within half a second shows nothing. Thread-safe.
class Progress {
 public:
  Progress(const ProgressLine& line, Clock& clock, std::string what, int64_t total);
  // Takes the line away.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // So much of `total` is done. Cheap: for inner loops.
  void Set(int64_t done) { done_.store(done, std::memory_order_relaxed); }

  // Writes `text`, whole lines, where the line may be in the way.
  void Print(std::ostream& out, std::string_view text) BALLAST_EXCLUDES(mu_);

 private:
  void Draw() BALLAST_EXCLUDES(mu_);
  void Clear() BALLAST_REQUIRES(mu_);

  const ProgressLine line_;
  Clock& clock_;
  const std::string what_;
  const int64_t total_;
  const absl::Time start_;
  std::atomic<int64_t> done_ = 0;
  Mutex mu_;
  CondVar ended_changed_;
  bool ended_ BALLAST_GUARDED_BY(mu_) = false;
  bool drawn_ BALLAST_GUARDED_BY(mu_) = false;
  // Last: it uses the others. None where nothing is drawn.
  std::thread thread_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_PROGRESS_H_
