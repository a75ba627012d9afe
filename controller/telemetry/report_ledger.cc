#include "controller/telemetry/report_ledger.h"

#include <algorithm>
#include <utility>

namespace ballast {

void ReportLedger::BeginStream(const std::string& worker, uint64_t report_stream) {
  Mark& mark = marks_[worker];
  if (mark.report_stream != report_stream) mark = Mark{.report_stream = report_stream};
}

ReportLedger::Verdict ReportLedger::Accept(const std::string& worker, uint64_t report_stream,
                                           const v1::LoadReport& report) {
  Mark& mark = marks_[worker];
  if (mark.report_stream != report_stream) return Verdict::kDuplicate;
  // Absent: the report covers its own sequence number alone.
  const uint64_t first = report.first_sequence() == 0 ? report.sequence() : report.first_sequence();
  if (first == 0 || first > report.sequence()) return Verdict::kInvalid;
  if (report.sequence() <= mark.counted) return Verdict::kDuplicate;
  const uint64_t before = std::exchange(mark.counted, report.sequence());
  if (first <= before) return Verdict::kOverlap;
  return first == before + 1 ? Verdict::kNew : Verdict::kAfterGap;
}

bool ReportLedger::Knows(const std::string& worker, uint64_t report_stream) const {
  const auto it = marks_.find(worker);
  return it != marks_.end() && it->second.report_stream == report_stream;
}

uint64_t ReportLedger::stored(const std::string& worker) const {
  const auto it = marks_.find(worker);
  return it == marks_.end() ? 0 : it->second.stored;
}

bool ReportLedger::dirty() const {
  return std::any_of(marks_.begin(), marks_.end(),
                     [](const auto& entry) { return entry.second.counted != entry.second.stored; });
}

store::ReportMarks ReportLedger::Pending() const {
  store::ReportMarks marks;
  for (const auto& [worker, mark] : marks_) {
    store::ReportMark& record = (*marks.mutable_workers())[worker];
    record.set_report_stream(mark.report_stream);
    record.set_sequence(mark.counted);
  }
  return marks;
}

std::vector<ReportLedger::Ack> ReportLedger::Stored(const store::ReportMarks& pending) {
  std::vector<Ack> acks;
  for (const auto& [worker, record] : pending.workers()) {
    Mark& mark = marks_[worker];
    if (mark.report_stream != record.report_stream() || mark.stored >= record.sequence()) continue;
    mark.stored = record.sequence();
    acks.push_back({worker, record.report_stream(), record.sequence()});
  }
  std::sort(acks.begin(), acks.end(), [](const Ack& a, const Ack& b) { return a.worker < b.worker; });
  return acks;
}

void ReportLedger::Load(const store::ReportMarks& marks) {
  for (const auto& [worker, record] : marks.workers()) {
    marks_[worker] = {record.report_stream(), record.sequence(), record.sequence()};
  }
}

}  // namespace ballast
