#include "lib/data/stop_strings.h"

#include <algorithm>
#include <utility>

namespace cox {

absl::Status ValidateStopStrings(const std::vector<std::string>& stops) {
  constexpr size_t kMaxBytes = 1024;
  for (const std::string& stop : stops) {
    if (stop.empty() || stop.size() > kMaxBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop string: expected 1 to ", kMaxBytes,
                       " bytes, found ", stop.size()));
    }
  }
  return absl::OkStatus();
}

std::string StopScanner::Push(std::string_view piece, bool may_stop) {
  if (stopped_) return std::string();
  std::string text = std::exchange(waiting_, std::string());
  text += piece;
  if (may_stop) {
    size_t first = std::string::npos;
    for (const std::string& stop : stops_) {
      first = std::min(first, text.find(stop));
    }
    if (first != std::string::npos) {
      stopped_ = true;
      return text.substr(0, first);
    }
  }
  size_t wait = 0;  // longest end that begins a stop string
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, text.size()); n > wait; --n) {
      if (std::string_view(text).ends_with(
              std::string_view(stop).substr(0, n))) {
        wait = n;
      }
    }
  }
  waiting_ = text.substr(text.size() - wait);
  text.resize(text.size() - wait);
  return text;
}

std::string StopScanner::Finish() {
  return std::exchange(waiting_, std::string());
}

}  // namespace cox
