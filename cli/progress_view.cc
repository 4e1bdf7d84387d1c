#include "cli/progress_view.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "lib/metrics/progress.h"

namespace cox {
namespace {

int TerminalColumns() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    return size.ws_col;
  }
  return 80;
}

}  // namespace

ProgressView::ProgressView(bool terminal, bool quiet, double every_s)
    : terminal_(terminal),
      quiet_(quiet),
      interval_(terminal ? absl::Milliseconds(250) : absl::Seconds(every_s)) {}

void ProgressView::Note(const std::string& text) {
  End();
  std::printf("run: %s\n", text.c_str());
  std::fflush(stdout);
}

bool ProgressView::Due() const {
  return !quiet_ && Clock::Real().Now() >= next_;
}

void ProgressView::Show(const cox::v1::StatusResponse& status) {
  const MonoTime now = Clock::Real().Now();
  next_ = now + interval_;
  const int stage = status.current_stage();
  if (stage < 0 || stage >= status.stages_size()) {
    return;
  }
  const cox::v1::StageStatus& current = status.stages(stage);
  if (stage != stage_) {
    End();
    stage_ = stage;
    stage_started_ = now;
    stage_first_step_ = current.step();
  }
  ProgressState state;
  state.stage = current.state() == "running" || current.state().empty()
                    ? current.kind()
                    : current.kind() + " (" + current.state() + ")";
  state.step = current.step();
  state.first_step = stage_first_step_;
  state.total_steps = current.total_steps();
  if (current.kind() == "collect" || current.kind() == "eval") {
    // These stages have no learner steps: units tell how far they are.
    state.step = status.units_submitted();
    state.first_step = 0;
    state.total_steps = status.units_submitted() + status.units_leased() +
                        status.units_pending();
  }
  state.elapsed = now - stage_started_;
  if (current.step() > 0) {
    for (const auto& metric : status.last_metrics()) {
      state.metrics[metric.name()] = metric.value();
    }
  }
  ProgressOptions options;
  options.tty = terminal_;
  options.columns = terminal_ ? TerminalColumns() - 1 : 200;
  const std::string line = FormatProgress(state, options);
  if (terminal_) {
    std::printf("\r%s\033[K", line.c_str());
    live_ = true;
  } else if (line != last_line_) {
    std::printf("%s\n", line.c_str());
  }
  last_line_ = line;
  std::fflush(stdout);
}

void ProgressView::End() {
  if (live_) {
    std::printf("\n");
    std::fflush(stdout);
    live_ = false;
  }
}

}  // namespace cox
