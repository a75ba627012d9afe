#include "proto/base/log.h"

#include <unistd.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

namespace ballast {
namespace {

std::atomic<LogFormat> log_format{LogFormat::kText};
std::atomic<Severity> log_minimum{Severity::kInfo};

constexpr const char* kNames[] = {"DEBUG", "INFO", "WARNING", "ERROR"};

bool NeedsQuotes(std::string_view value) { return value.empty() || value.find_first_of(" \"=\n\t") != value.npos; }

}  // namespace

void SetLogging(LogFormat format, Severity minimum) {
  log_format = format;
  log_minimum = minimum;
}

std::string FormatLog(LogFormat format, std::string_view at, Severity severity, std::string_view message,
                      std::initializer_list<LogField> fields) {
  const char* name = kNames[static_cast<int>(severity)];
  constexpr auto kReplace = nlohmann::json::error_handler_t::replace;
  if (format == LogFormat::kJson) {
    nlohmann::ordered_json entry;
    entry["time"] = at;
    entry["severity"] = name;
    entry["message"] = message;
    for (const LogField& f : fields) entry[f.key] = f.value;
    return entry.dump(-1, ' ', false, kReplace);
  }
  std::string line = absl::StrCat(std::string(at), " ", name, " ", std::string(message));
  for (const LogField& f : fields) {
    absl::StrAppend(&line, " ", f.key, "=",
                    NeedsQuotes(f.value) ? nlohmann::json(f.value).dump(-1, ' ', false, kReplace) : f.value);
  }
  return line;
}

void Log(Severity severity, std::string_view message, std::initializer_list<LogField> fields) {
  if (severity < log_minimum.load(std::memory_order_relaxed)) return;
  const std::string at = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  std::string line = FormatLog(log_format, at, severity, message, fields);
  line += '\n';
  // One write a line keeps lines whole. A full or closed stderr is nothing that a daemon should die of.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace ballast
