// Which load reports have been counted, so that each counts once however often it is sent.
#ifndef BALLAST_CONTROLLER_TELEMETRY_REPORT_LEDGER_H_
#define BALLAST_CONTROLLER_TELEMETRY_REPORT_LEDGER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ballast/v1/worker_session.pb.h"
#include "controller/store/records.pb.h"

namespace ballast {

// Two marks a worker: reports counted (in memory) and reports stored (what a restart remembers, and what the worker may
// forget). Not thread-safe.
class ReportLedger {
 public:
  enum class Verdict {
    // Count it.
    kNew,
    // Counted before, all of it.
    kDuplicate,
    // Count it; reports before it are missing.
    kAfterGap,
    // Counted before in part and cannot be told apart; not to be counted. Workers never merge a report that they have
    // sent, so only a faulty one gets here.
    kOverlap,
    // sequence or first_sequence is out of range; not to be counted.
    kInvalid,
  };

  // A hello with another stream than before: a new process, whose reports count from 1.
  void BeginStream(const std::string& worker, uint64_t report_stream);

  // Decides on a report and moves the counted mark. A stream that is not the worker's current one gives kDuplicate.
  Verdict Accept(const std::string& worker, uint64_t report_stream, const v1::LoadReport& report);

  // Whether the stream is the worker's current one.
  bool Knows(const std::string& worker, uint64_t report_stream) const;

  // Of the worker's current stream; 0: none.
  uint64_t stored(const std::string& worker) const;
  bool dirty() const;

  // The marks to store together with everything counted so far; once that is durable, Stored moves the stored marks.
  store::ReportMarks Pending() const;
  struct Ack {
    std::string worker;
    uint64_t report_stream = 0;
    uint64_t sequence = 0;
  };
  // Returns the acknowledgements that became due.
  std::vector<Ack> Stored(const store::ReportMarks& pending);

  void Load(const store::ReportMarks& marks);

 private:
  struct Mark {
    uint64_t report_stream = 0;
    uint64_t counted = 0;
    uint64_t stored = 0;
  };
  std::map<std::string, Mark> marks_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_REPORT_LEDGER_H_
