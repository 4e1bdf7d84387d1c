#include "lib/config/files.h"

#include "lib/config/schema.h"

namespace cox::config {
namespace {

// Whether the run reads the path field `path`.
bool IsRead(const cox::v1::RunConfig& config, std::string_view path) {
  if (path == "tokenizer.path") return config.tokenizer().kind() == "file";
  if (path == "tokenizer.chat_template") return true;
  if (path == "tokenizer.files") return config.tokenizer().kind() == "train";
  if (path.starts_with("model.")) return true;
  if (path == "reward.path") {
    const bool model = config.reward().kind() == "rm";
    const bool reads = HasStage(config, "ppo") || HasStage(config, "eval");
    return (reads && (model || config.reward().kind() == "table")) ||
           (HasStage(config, "rft") && model &&
            config.rft().select() == "reward");
  }
  if (path == "reward.lexicon") {
    return HasStage(config, "ppo") || HasStage(config, "eval") ||
           HasStage(config, "collect");
  }
  if (path == "pretrain.train" && config.ppo().ptx().coef() > 0 &&
      HasStage(config, "ppo") && config.ppo().ptx().train().empty()) {
    return true;
  }
  if (path == "sft.train" && HasStage(config, "rm") &&
      config.rm().normalize() != "none" &&
      config.rm().demonstrations().empty()) {
    return true;
  }
  // These stages measure the first of the two that is set.
  bool measures = false;
  for (const char* stage : {"ppo", "rft", "dpo", "kto"}) {
    measures |= HasStage(config, stage);
  }
  measures = measures && config.tokenizer().kind() != "none";
  if (path == "pretrain.heldout" && measures) return true;
  if (path == "sft.heldout" && measures &&
      config.pretrain().heldout().empty()) {
    return true;
  }
  if (path == "ppo.ptx.train" && config.ppo().ptx().coef() <= 0) return false;
  return HasStage(config, path.substr(0, path.find('.')));
}

}  // namespace

std::vector<ConfigIssue> CheckFiles(const cox::v1::RunConfig& config, Fs& fs) {
  std::vector<ConfigIssue> issues;
  ForEachLeaf(config, [&](const Leaf& leaf) {
    if (!SettingOf(*leaf.field).path() || !IsRead(config, leaf.path)) return;
    for (int i = 0; i < CountOf(*leaf.message, *leaf.field); ++i) {
      const std::string file = TextAt(*leaf.message, *leaf.field, i);
      if (file.empty() || fs.Exists(file)) continue;
      issues.push_back({leaf.field->is_repeated()
                            ? absl::StrCat(leaf.path, "[", i, "]")
                            : leaf.path,
                        absl::StrCat("'", file, "' does not exist")});
    }
  });
  return issues;
}

}  // namespace cox::config
