#include "coordinator/stage_steps.h"

#include <vector>

#include "absl/strings/str_split.h"

namespace cox {
namespace {

struct Passes {
  std::vector<std::string> files;
  int64_t epochs = 1;
  int64_t batch = 1;
};

template <typename Files, typename Settings>
Passes MakePasses(const Files& files, const Settings& settings) {
  return {{files.begin(), files.end()}, settings.epochs(), settings.batch()};
}

Passes PassesOf(const cox::v1::RunConfig& config, StageKind kind) {
  switch (kind) {
    case StageKind::kRm:
      return MakePasses(config.rm().comparisons(), config.rm());
    case StageKind::kRft:
      return MakePasses(config.rft().comparisons(), config.rft());
    case StageKind::kDpo:
      return MakePasses(config.dpo().comparisons(), config.dpo());
    case StageKind::kKto:
      return MakePasses(config.kto().train(), config.kto());
    default:
      return {};
  }
}

}  // namespace

bool CountsRows(StageKind kind) {
  return kind == StageKind::kRm || kind == StageKind::kRft ||
         kind == StageKind::kDpo || kind == StageKind::kKto;
}

bool HasOwnRows(const cox::v1::RunConfig& config, StageKind kind) {
  return !PassesOf(config, kind).files.empty();
}

absl::StatusOr<int64_t> StepsOverRows(Fs& fs, const cox::v1::RunConfig& config,
                                      const std::string& run_dir,
                                      StageKind kind) {
  COX_CHECK(CountsRows(kind));
  Passes passes = PassesOf(config, kind);
  if (passes.files.empty()) {
    passes.files = {JoinPath(run_dir, "comparisons.jsonl")};
  }
  int64_t rows = 0;
  for (const std::string& file : passes.files) {
    COX_ASSIGN_OR_RETURN(const std::string text, fs.ReadAll(file));
    for (absl::string_view line : absl::StrSplit(text, '\n')) {
      rows +=
          line.find_first_not_of(" \t\r") == absl::string_view::npos ? 0 : 1;
    }
  }
  if (rows == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(StageKindName(kind)), ": no rows to train on"));
  }
  return passes.epochs * ((rows + passes.batch - 1) / passes.batch);
}

}  // namespace cox
