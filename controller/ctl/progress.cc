#include "controller/ctl/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ballast {
namespace {

constexpr absl::Duration kBeforeFirst = absl::Milliseconds(500);
constexpr absl::Duration kBetween = absl::Milliseconds(100);
constexpr int kLongestBar = 40;
constexpr int kShortestBar = 4;

// "7 s", "3 min 07 s", "2 h 05 min".
std::string Rough(absl::Duration duration) {
  const int64_t seconds = absl::ToInt64Seconds(duration);
  if (seconds < 60) return absl::StrCat(seconds, " s");
  if (seconds < 3600) return absl::StrFormat("%d min %02d s", seconds / 60, seconds % 60);
  return absl::StrFormat("%d h %02d min", seconds / 3600, seconds / 60 % 60);
}

}  // namespace

std::string ProgressText(std::string_view what, int64_t done, int64_t total, absl::Duration elapsed, int columns) {
  std::string text(what);
  std::string times = absl::StrCat("  ", Rough(elapsed));
  if (total > 0) {
    const double part = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
    // Before a hundredth is done the time that is left would be a guess.
    if (part >= 0.01 && part < 1) absl::StrAppend(&times, ", about ", Rough(elapsed * ((1 - part) / part)), " left");
    times = absl::StrFormat("%3d %%%s", static_cast<int>(100 * part), times);
    // Two brackets, and a space before and behind.
    const int room = columns - static_cast<int>(text.size() + times.size()) - 4;
    if (room >= kShortestBar) {
      const int bar = std::min(room, kLongestBar);
      const auto filled = static_cast<int>(part * bar);
      absl::StrAppend(&text, " [", std::string(filled, '#'), std::string(bar - filled, ' '), "]");
    }
    text += ' ';
  }
  text += times;
  return text.substr(0, std::max(columns, 0));
}

ProgressLine ProgressLineOf(const CtlContext& context) {
  ProgressLine line;
  if (context.progress == ProgressMode::kNever || &context.err != &std::cerr || isatty(STDERR_FILENO) == 0) return line;
  line.out = &std::cerr;
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) line.columns = size.ws_col;
  // The last column would make some terminals go on to the next line.
  --line.columns;
  return line;
}

Progress::Progress(const ProgressLine& line, Clock& clock, std::string what, int64_t total)
    : line_(line), clock_(clock), what_(std::move(what)), total_(total), start_(clock.Now()) {
  if (line_.out != nullptr) thread_ = std::thread([this] { Draw(); });
}

Progress::~Progress() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(mu_);
    ended_ = true;
    ended_changed_.NotifyAll();
  }
  thread_.join();
  MutexLock lock(mu_);
  Clear();
}

void Progress::Draw() {
  MutexLock lock(mu_);
  absl::Time next = start_ + kBeforeFirst;
  while (!ended_) {
    clock_.WaitUntil(ended_changed_, mu_, next);
    const absl::Time now = clock_.Now();
    if (ended_ || now < next) continue;
    *line_.out << "\r"
               << ProgressText(what_, done_.load(std::memory_order_relaxed), total_, now - start_, line_.columns)
               << "\033[K" << std::flush;
    drawn_ = true;
    next = now + kBetween;
  }
}

void Progress::Clear() {
  if (drawn_) *line_.out << "\r\033[K" << std::flush;
  drawn_ = false;
}

void Progress::Print(std::ostream& out, std::string_view text) {
  MutexLock lock(mu_);
  Clear();
  out << text << std::flush;
}

}  // namespace ballast
