#ifndef COX_CLI_PROGRESS_VIEW_H_
#define COX_CLI_PROGRESS_VIEW_H_

#include <string>

#include "cox/v1/monitor.pb.h"
#include "lib/base/clock.h"

namespace cox {

// What `cox run` shows while it works: on a terminal one live line per stage
// with bar and ETA, elsewhere a logfmt line every `every_s`. Thread-compatible.
class ProgressView {
 public:
  ProgressView(bool terminal, bool quiet, double every_s);
  // A line of its own, e.g. a restart. Shown even when quiet.
  void Note(const std::string& text);
  // True when the next Show() is due.
  bool Due() const;
  void Show(const cox::v1::StatusResponse& status);
  // Leaves the live line.
  void End();

 private:
  const bool terminal_;
  const bool quiet_;
  const absl::Duration interval_;
  MonoTime next_{0};
  int stage_ = -1;
  MonoTime stage_started_{0};
  int64_t stage_first_step_ = 0;
  std::string last_line_;
  bool live_ = false;
};

}  // namespace cox

#endif  // COX_CLI_PROGRESS_VIEW_H_
