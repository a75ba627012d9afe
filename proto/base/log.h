// Structured logs on stderr: one line an entry, text or JSON, with the ids that operators search by.
//
//   Log(Severity::kInfo, "wave committed", {{"group", group}, {"epoch", epoch}});
#ifndef BALLAST_PROTO_BASE_LOG_H_
#define BALLAST_PROTO_BASE_LOG_H_

#include <initializer_list>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace ballast {

enum class Severity { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

struct LogField {
  // Anything that streams. Numbers and text look alike in a line of text; JSON quotes every value.
  template <typename T>
  LogField(std::string_view key_in, const T& value_in) : key(key_in) {
    std::ostringstream out;
    out << value_in;
    value = std::move(out).str();
  }
  std::string key;
  std::string value;
};

// Process-wide; call before other threads start. `minimum` is the least severity that is written.
void SetLogging(LogFormat format, Severity minimum);

// Thread-safe; a line is written whole.
void Log(Severity severity, std::string_view message, std::initializer_list<LogField> fields = {});

// One entry as it would be written, without the newline; `at` is the RFC 3339 time.
std::string FormatLog(LogFormat format, std::string_view at, Severity severity, std::string_view message,
                      std::initializer_list<LogField> fields);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_LOG_H_
