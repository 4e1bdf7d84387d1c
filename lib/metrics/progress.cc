#include "lib/metrics/progress.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace cox {
namespace {

constexpr int kBarCells = 20;

// Columns of a text whose wide characters are all one column (our own bar and
// labels): the number of UTF-8 lead bytes.
int Columns(std::string_view text) {
  return static_cast<int>(std::count_if(
      text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string Cut(const std::string& text, int columns) {
  if (Columns(text) <= columns) return text;
  size_t end = 0;
  for (int seen = 0; end < text.size(); ++end) {
    if ((text[end] & 0xc0) != 0x80 && seen++ == columns) break;
  }
  return text.substr(0, end);
}

std::string Bar(double fraction, bool utf8) {
  const int full =
      static_cast<int>(std::lround(std::clamp(fraction, 0.0, 1.0) * kBarCells));
  std::string bar = utf8 ? "▕" : "[";
  for (int i = 0; i < kBarCells; ++i) {
    bar += i < full ? (utf8 ? "█" : "#") : (utf8 ? "░" : "-");
  }
  return bar + (utf8 ? "▏" : "]");
}

std::string TtyLine(const ProgressState& s, const ProgressOptions& options) {
  std::string line = s.stage;
  if (s.total_steps > 0) {
    const double fraction =
        static_cast<double>(s.step) / static_cast<double>(s.total_steps);
    absl::StrAppend(
        &line, " ", Bar(fraction, options.utf8), " ", s.step, "/",
        s.total_steps,
        absl::StrFormat(" %d%%", static_cast<int>(std::floor(100 * fraction))),
        " eta ", ShortDuration(EstimateRemaining(s)));
  } else {
    absl::StrAppend(&line, " step ", s.step, " ", ShortDuration(s.elapsed));
  }
  for (const auto& [name, label] : KeyMetrics(s.stage)) {
    const auto it = s.metrics.find(std::string(name));
    if (it == s.metrics.end()) continue;
    const std::string item =
        absl::StrCat("  ", std::string(label), " ", ShortNumber(it->second));
    // A whole metric or none: half a number misleads.
    if (Columns(line) + Columns(item) > options.columns) break;
    line += item;
  }
  return Cut(line, options.columns);
}

std::string LogfmtLine(const ProgressState& s) {
  std::string line = absl::StrCat("stage=", s.stage, " step=", s.step);
  if (s.total_steps > 0) {
    absl::StrAppend(&line, " total=", s.total_steps);
    const absl::Duration remaining = EstimateRemaining(s);
    if (remaining != absl::InfiniteDuration()) {
      absl::StrAppend(
          &line, " eta_s=",
          static_cast<int64_t>(std::lround(absl::ToDoubleSeconds(remaining))));
    }
  }
  for (const auto& [name, label] : KeyMetrics(s.stage)) {
    const auto it = s.metrics.find(std::string(name));
    if (it == s.metrics.end()) continue;
    absl::StrAppend(&line, " ", std::string(name), "=",
                    ShortNumber(it->second));
  }
  return line;
}

}  // namespace

std::string FormatProgress(const ProgressState& state,
                           const ProgressOptions& options) {
  return options.tty ? TtyLine(state, options) : LogfmtLine(state);
}

absl::Duration EstimateRemaining(const ProgressState& state) {
  if (state.step >= state.total_steps) return absl::ZeroDuration();
  const int64_t done = state.step - state.first_step;
  if (done <= 0) return absl::InfiniteDuration();
  return state.elapsed * (static_cast<double>(state.total_steps - state.step) /
                          static_cast<double>(done));
}

std::string ShortDuration(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "?";
  const int64_t s = static_cast<int64_t>(
      std::lround(std::max(0.0, absl::ToDoubleSeconds(duration))));
  if (s < 60) return absl::StrCat(s, "s");
  if (s < 3600) return absl::StrFormat("%dm%02ds", s / 60, s % 60);
  if (s < 86400) return absl::StrFormat("%dh%02dm", s / 3600, s / 60 % 60);
  return absl::StrFormat("%dd%02dh", s / 86400, s / 3600 % 24);
}

std::string ShortNumber(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Inf" : "-Inf";
  return absl::StrFormat("%.4g", value);
}

std::vector<std::pair<std::string_view, std::string_view>> KeyMetrics(
    std::string_view stage) {
  if (stage == "pretrain" || stage == "sft" || stage == "rft") {
    return {{"loss/lm", "loss"},
            {"text/heldout_ppl", "ppl"},
            {"lr", "lr"},
            {"tokens_s", "tok/s"}};
  }
  if (stage == "rm") {
    return {{"loss/rm", "loss"},
            {"rm/accuracy", "acc"},
            {"rm/heldout_accuracy", "held-out"},
            {"lr", "lr"}};
  }
  if (stage == "dpo") {
    return {{"loss/dpo", "loss"},
            {"dpo/accuracy", "acc"},
            {"dpo/margin", "margin"},
            {"dpo/heldout_accuracy", "held-out"},
            {"lr", "lr"}};
  }
  if (stage == "kto") {
    return {{"loss/kto", "loss"},
            {"kto/accuracy", "acc"},
            {"kto/margin", "margin"},
            {"kto/z0", "z0"},
            {"lr", "lr"}};
  }
  if (stage == "ppo") {
    return {{"objective/scores", "score"},
            {"objective/gold", "gold"},
            {"objective/kl", "kl"},
            {"rollout/length", "len"},
            {"loss/policy", "loss"},
            {"policy/entropy", "ent"},
            {"eps", "ans/s"}};
  }
  return {{"objective/scores", "score"},
          {"objective/gold", "gold"},
          {"rollout/length", "len"},
          {"eps", "ans/s"}};
}

}  // namespace cox
