#include "cli/usage_log.h"

#include <algorithm>

#include "nlohmann/json.hpp"

namespace cox {

UsageLog::UsageLog(std::function<ProcessUsage(pid_t)> usage_of)
    : usage_of_(std::move(usage_of)) {}

void UsageLog::Look(const std::vector<std::pair<std::string, pid_t>>& processes,
                    MonoTime now) {
  if (last_.ns != 0 && now - last_ < absl::Seconds(1)) return;
  last_ = now;
  int64_t together = 0;
  for (const auto& [name, pid] : processes) {
    if (pid == 0) continue;
    const ProcessUsage usage = usage_of_(pid);
    together += usage.private_bytes;
    ProcessUsage& largest = largest_[name];
    largest.private_bytes =
        std::max(largest.private_bytes, usage.private_bytes);
    largest.rss_bytes = std::max(largest.rss_bytes, usage.rss_bytes);
  }
  peak_private_bytes_ = std::max(peak_private_bytes_, together);
}

std::string UsageLog::Json() const {
  nlohmann::ordered_json json;
  json["schema"] = "cox.usage/1";
  json["peak_private_bytes"] = peak_private_bytes_;
  json["processes"] = nlohmann::ordered_json::object();
  for (const auto& [name, usage] : largest_) {
    json["processes"][name] = {{"private_bytes", usage.private_bytes},
                               {"resident_bytes", usage.rss_bytes}};
  }
  return json.dump();
}

}  // namespace cox
