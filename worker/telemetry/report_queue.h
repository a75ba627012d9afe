// Load reports on their way to the controller: numbered, kept until they are stored there, merged when they pile up.
#ifndef BALLAST_WORKER_TELEMETRY_REPORT_QUEUE_H_
#define BALLAST_WORKER_TELEMETRY_REPORT_QUEUE_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/time/time.h"
#include "ballast/v1/worker_session.pb.h"
#include "worker/moe/load_counters.h"

namespace ballast {

// A window as a report without numbers; tasks without tokens are left out.
v1::LoadReport MakeReport(const LoadWindow& window, absl::Time start, absl::Time end);

// Whether nothing was counted in it.
bool IsEmpty(const LoadWindow& window);

// Adds `from`, the later of two adjacent numbered reports, to `to`. Of two samples of a task's routes it keeps as many
// tokens as either has, each in the proportion of the tokens that it stands for.
void MergeReport(const v1::LoadReport& from, v1::LoadReport& to);

// Each report is counted once at the controller however often the session breaks:
//   * sequences count from 1 without gaps; a report is repeated under its sequence until it is stored;
//   * only reports that were never sent are merged, so that a sequence always means the same counts to whoever may have
//     seen it. At most `max_sent` reports are sent and not stored; what comes after that waits, and merges in pairs,
//     the shortest first, into at most `max_waiting` reports.
// Pure; one thread.
class ReportQueue {
 public:
  struct Options {
    int max_sent = 16;
    int max_waiting = 16;
  };
  explicit ReportQueue(const Options& options);

  void Add(v1::LoadReport report);
  // What can be sent now, oldest first; counts as sent.
  std::vector<v1::LoadReport> TakeUnsent();
  // A new session: everything sent and not stored is to be sent again. Followed by TakeUnsent.
  std::vector<v1::LoadReport> Sent() const { return {sent_.begin(), sent_.end()}; }
  // Reports up to `sequence` are stored.
  void Stored(uint64_t sequence);

  size_t size() const { return sent_.size() + waiting_.size(); }

 private:
  const Options options_;
  uint64_t last_sequence_ = 0;
  std::deque<v1::LoadReport> sent_;
  std::deque<v1::LoadReport> waiting_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TELEMETRY_REPORT_QUEUE_H_
