#include "lib/base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/base/sync.h"

namespace cox {
namespace {

struct LogState {
  Mutex mutex;
  std::string role ABSL_GUARDED_BY(mutex) = "-";
  std::atomic<LogLevel> minimum{LogLevel::kInfo};
};

LogState& State() {
  // Never destroyed: threads may log while static objects are torn down.
  static LogState* const state = new LogState;
  return *state;
}

std::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "unknown";
}

bool NeedsQuotes(std::string_view value) {
  if (value.empty()) return true;
  for (const char c : value) {
    const auto u = static_cast<unsigned char>(c);
    if (u <= ' ' || u == 0x7f || c == '"' || c == '=' || c == '\\') return true;
  }
  return false;
}

void AppendQuoted(std::string_view value, std::string& out) {
  out += '"';
  for (const char c : value) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (u < ' ' || u == 0x7f) {
      char buffer[8];
      std::snprintf(buffer, sizeof(buffer), "\\u%04x", u);
      out += buffer;
    } else {
      out += c;
    }
  }
  out += '"';
}

void AppendField(std::string_view key, std::string_view value,
                 std::string& out) {
  out += ' ';
  out += key;
  out += '=';
  if (NeedsQuotes(value)) {
    AppendQuoted(value, out);
  } else {
    out += value;
  }
}

void WriteAll(std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = write(STDERR_FILENO, data.data(), data.size());
    if (n <= 0) return;  // nowhere left to report it
    data.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace

void InitLog(std::string_view role, LogLevel minimum) {
  LogState& state = State();
  state.minimum.store(minimum, std::memory_order_relaxed);
  MutexLock lock(&state.mutex);
  state.role = std::string(role);
}

std::string FormatLogLine(LogLevel level, std::string_view role,
                          std::string_view message,
                          std::initializer_list<LogField> fields) {
  std::string line = "level=";
  line += LevelName(level);
  AppendField("role", role, line);
  line += " msg=";
  AppendQuoted(message, line);
  for (const auto& [key, value] : fields) AppendField(key, value, line);
  return line;
}

void Log(LogLevel level, std::string_view message,
         std::initializer_list<LogField> fields) {
  LogState& state = State();
  if (level < state.minimum.load(std::memory_order_relaxed)) return;
  std::string role;
  {
    MutexLock lock(&state.mutex);
    role = state.role;
  }
  std::string line =
      absl::StrCat("ts=",
                   absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(),
                                    absl::UTCTimeZone()),
                   " ");
  line += FormatLogLine(level, role, message, fields);
  line += '\n';
  // The lock keeps lines whole when write() is cut short (a full pipe).
  MutexLock lock(&state.mutex);
  WriteAll(line);
}

}  // namespace cox
