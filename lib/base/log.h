#ifndef COX_LIB_BASE_LOG_H_
#define COX_LIB_BASE_LOG_H_

// logfmt lines on stderr: `ts=... level=info role=actor-0 msg="..." k=v`.
// Thread-safe. Prompts and answers never go through here: ids do.

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace cox {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Called once from main.cc, before other threads start.
void InitLog(std::string_view role, LogLevel minimum = LogLevel::kInfo);

using LogField = std::pair<std::string_view, std::string>;
void Log(LogLevel level, std::string_view message,
         std::initializer_list<LogField> fields = {});

// The line that Log() writes, without time stamp and end of line. Values with
// blanks, quotes, '=' or control characters are quoted and escaped, so that
// nothing in a value can start a new line or forge a field.
std::string FormatLogLine(LogLevel level, std::string_view role,
                          std::string_view message,
                          std::initializer_list<LogField> fields);

inline void LogInfo(std::string_view message,
                    std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(std::string_view message,
                       std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(std::string_view message,
                     std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, message, fields);
}

// LogInfo("step done", {Field("step", 3), Field("loss", 0.5)});
template <typename T>
LogField Field(std::string_view key, const T& value) {
  return {key, absl::StrCat(value)};
}

}  // namespace cox

#endif  // COX_LIB_BASE_LOG_H_
