#ifndef COX_LIB_METRICS_PROGRESS_H_
#define COX_LIB_METRICS_PROGRESS_H_

// What a person sees while a stage runs: one live line on a terminal, logfmt
// lines elsewhere. Pure: the caller owns clock and screen.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace cox {

struct ProgressState {
  std::string stage;
  int64_t step = 0;         // steps done, a resumed run's earlier ones included
  int64_t first_step = 0;   // steps done before this process began
  int64_t total_steps = 0;  // 0 = unknown
  absl::Duration elapsed;   // since this process began the stage
  std::map<std::string, double> metrics;  // of the last step
};

struct ProgressOptions {
  bool tty = true;
  bool utf8 = true;  // bar of blocks, else of '#' and '-'
  int columns = 80;  // tty: the line is cut to this many
};

// Without a line end; for a terminal also without control characters: the
// caller writes "\r" before and clears the rest of the line.
//   ppo ▕████████░░░░▏ 24/40 60% eta 1m32s  score 0.53  kl 3.2
//   stage=ppo step=24 total=40 eta_s=92 objective/scores=0.53 ...
std::string FormatProgress(const ProgressState& state,
                           const ProgressOptions& options);

// Remaining time from the pace since this process began; InfiniteDuration if
// nothing is known yet.
absl::Duration EstimateRemaining(const ProgressState& state);

// "1h02m", "1m32s", "8s"; "?" for infinite.
std::string ShortDuration(absl::Duration duration);

// Up to 4 significant digits: "0.5312", "12.3", "1.2e-05", "NaN".
std::string ShortNumber(double value);

// The metrics of a stage worth a place on the line, most important first, as
// {name, short label}.
std::vector<std::pair<std::string_view, std::string_view>> KeyMetrics(
    std::string_view stage);

}  // namespace cox

#endif  // COX_LIB_METRICS_PROGRESS_H_
