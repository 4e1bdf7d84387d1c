// CheckConfig: ranges and choices from the schema, then rules between fields.

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "lib/config/check_algorithms.h"
#include "lib/config/config.h"
#include "lib/config/schema.h"

namespace cox {
namespace {

using cox::v1::RunConfig;

// "pretrain" < ... < "eval": the only order in which stages make sense,
// because each one starts from what the earlier ones wrote. rft, dpo and kto
// all take a policy and comparisons: any order among them.
constexpr std::pair<const char*, int> kStageOrder[] = {
    {"pretrain", 0}, {"sft", 1}, {"collect", 2}, {"rm", 3},  {"rft", 4},
    {"dpo", 4},      {"kto", 4}, {"ppo", 5},     {"eval", 6}};

int StageRank(std::string_view stage) {
  for (const auto& [name, rank] : kStageOrder) {
    if (name == stage) return rank;
  }
  return -1;
}

class Checker {
 public:
  explicit Checker(const RunConfig& config) : c_(config) {}

  std::vector<ConfigIssue> Run() {
    CheckSchema();
    // The rules below divide by these fields and assume known choices.
    if (!issues_.empty()) return std::move(issues_);
    CheckName();
    CheckStages();
    CheckShards();
    CheckModel();
    CheckTokenizer();
    CheckLengths();
    CheckReward();
    CheckLm(c_.pretrain(), "pretrain");
    CheckLm(c_.sft(), "sft");
    CheckCollectAndRm();
    if (HasStage(c_, "ppo")) {
      CheckTruncation();
      CheckPpoBatch();
      CheckPpoLoss();
      CheckPpoKl();
      CheckPtx();
    }
    if (HasStage(c_, "eval") && c_.eval().prompts().empty()) {
      Issue("eval.prompts", "stage eval needs prompt files");
    }
    CheckLimits();
    for (ConfigIssue& issue : config::CheckAlgorithms(c_)) {
      issues_.push_back(std::move(issue));
    }
    return std::move(issues_);
  }

 private:
  template <typename... Args>
  void Issue(std::string field, const Args&... message) {
    issues_.push_back({std::move(field), absl::StrCat(message...)});
  }

  void CheckSchema() {
    config::ForEachLeaf(c_, [this](const config::Leaf& leaf) {
      for (int i = 0; i < config::CountOf(*leaf.message, *leaf.field); ++i) {
        CheckElement(leaf, i);
      }
    });
  }

  void CheckElement(const config::Leaf& leaf, int index) {
    const cox::v1::Setting& setting = config::SettingOf(*leaf.field);
    const std::string name = leaf.field->is_repeated()
                                 ? absl::StrCat(leaf.path, "[", index, "]")
                                 : leaf.path;
    if (config::IsNumber(*leaf.field)) {
      const double value = config::NumberAt(*leaf.message, *leaf.field, index);
      if (!std::isfinite(value)) Issue(name, "must be finite");
      if (setting.has_min() && value < setting.min()) {
        Issue(name, "must be at least ", setting.min(), ", is ", value);
      }
      if (setting.has_max() && value > setting.max()) {
        Issue(name, "must be at most ", setting.max(), ", is ", value);
      }
    } else if (!setting.choices().empty()) {
      const std::string value =
          config::TextAt(*leaf.message, *leaf.field, index);
      if (name == "ppo.kl_loss" && value == "k1") {
        Issue(name,
              "k1 as a loss has a gradient of expectation 0 and "
              "regularises nothing (docs/algorithms.md §5.1); use k2 or k3, "
              "or ppo.kl_coef for k1 in the reward");
        return;
      }
      for (const absl::string_view choice :
           absl::StrSplit(setting.choices(), '|')) {
        if (choice == value) return;
      }
      Issue(name, "must be one of ",
            absl::StrReplaceAll(setting.choices(), {{"|", ", "}}), ", is '",
            value, "'");
    }
  }

  void CheckName() {
    const std::string& name = c_.name();
    bool good =
        !name.empty() && name.size() <= 100 && name[0] != '.' && name[0] != '-';
    for (const char c : name) {
      good =
          good && ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                   (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-');
    }
    if (!good) {
      Issue("name", "'", name,
            "' cannot name a folder: 1 to 100 letters, "
            "digits, '.', '_' or '-', the first a letter, digit or '_'");
    }
  }

  void CheckStages() {
    if (c_.stages().empty()) {
      std::vector<std::string> names;
      for (const auto& [name, rank] : kStageOrder) names.emplace_back(name);
      Issue("stages", "at least one of ", absl::StrJoin(names, ", "),
            " is needed");
    }
    for (int i = 1; i < c_.stages_size(); ++i) {
      const std::string& before = c_.stages(i - 1);
      const std::string& stage = c_.stages(i);
      const std::string field = absl::StrCat("stages[", i, "]");
      bool repeated = false;
      for (int k = 0; k < i; ++k) repeated |= c_.stages(k) == stage;
      if (repeated) {
        Issue(field, "'", stage, "' is already listed");
      } else if (StageRank(stage) < StageRank(before)) {
        Issue(field, "'", stage, "' must come before '", before, "'");
      }
    }
  }

  void CheckModel() {
    const auto& m = c_.model();
    // A model folder brings its own shape.
    if (!m.init().empty()) return;
    if (m.hidden() % m.heads() != 0) {
      Issue("model.heads", m.heads(), " does not divide model.hidden ",
            m.hidden());
      return;
    }
    const bool rotary =
        m.type() == "llama" || m.type() == "qwen2" || m.type() == "qwen3";
    if (rotary && (m.hidden() / m.heads()) % 2 != 0) {
      Issue("model.heads", "hidden / heads = ", m.hidden() / m.heads(),
            " must be even for the rotary positions of ", m.type());
    }
    if (m.kv_heads() > 0 && m.heads() % m.kv_heads() != 0) {
      Issue("model.kv_heads", m.kv_heads(), " does not divide model.heads ",
            m.heads());
    } else if (m.kv_heads() > 0 && m.kv_heads() != m.heads() && !rotary) {
      Issue("model.kv_heads", m.type(), " has as many key heads as heads");
    }
    if (m.encoder_layers() > 0 && m.type() != "instruct_encdec") {
      Issue("model.encoder_layers", m.type(), " has no encoder");
    }
  }

  void CheckTokenizer() {
    const auto& t = c_.tokenizer();
    if (t.kind() == "none") {
      if (t.pad_id() >= t.vocab_size()) {
        Issue("tokenizer.pad_id", t.pad_id(), " is outside the vocabulary of ",
              t.vocab_size());
      }
      if (t.eos_ids().empty()) {
        Issue("tokenizer.eos_ids",
              "kind none needs the ids that end an "
              "answer");
      }
      for (int i = 0; i < t.eos_ids_size(); ++i) {
        const std::string field = absl::StrCat("tokenizer.eos_ids[", i, "]");
        if (t.eos_ids(i) < 0 || t.eos_ids(i) >= t.vocab_size()) {
          Issue(field, t.eos_ids(i), " is outside the vocabulary of ",
                t.vocab_size());
        }
        if (t.eos_ids(i) == t.pad_id()) {
          Issue(field,
                "must differ from tokenizer.pad_id, or stopping is "
                "never learned");
        }
      }
      return;
    }
    if (t.eos_token().empty()) Issue("tokenizer.eos_token", "is empty");
    if (t.pad_token().empty()) Issue("tokenizer.pad_token", "is empty");
    if (!t.eos_token().empty() && t.eos_token() == t.pad_token()) {
      Issue("tokenizer.pad_token",
            "must differ from tokenizer.eos_token, or stopping is never "
            "learned");
    }
    if (t.kind() == "file" && t.path().empty() && c_.model().init().empty()) {
      Issue("tokenizer.path",
            "kind file needs a tokenizer.json, or the one of model.init");
    }
    // A model folder may bring its tokenizer along.
    if (t.kind() == "train" && c_.model().init().empty()) {
      if (t.files().empty()) {
        Issue("tokenizer.files", "kind train needs files to train on");
      }
      if (t.vocab_size() < 258) {
        Issue("tokenizer.vocab_size",
              "must be at least 258 (256 bytes, "
              "eos_token and pad_token), is ",
              t.vocab_size());
      }
    }
  }

  // Sequence lengths against the model's positions.
  void CheckLengths() {
    const auto& g = c_.generation();
    if (!g.stop().empty() && c_.tokenizer().kind() == "none") {
      Issue("generation.stop",
            "stop texts need a tokenizer; with kind none use stop_ids");
    }
    for (int i = 0; i < g.stop_size(); ++i) {
      if (g.stop(i).empty() || g.stop(i).size() > 1024) {
        Issue(absl::StrCat("generation.stop[", i, "]"),
              "must have 1 to 1024 bytes, has ", g.stop(i).size());
      }
    }
    if (g.min_new_tokens() > g.max_new_tokens()) {
      Issue("generation.min_new_tokens", g.min_new_tokens(),
            " exceeds generation.max_new_tokens ", g.max_new_tokens());
    }
    if (!c_.model().init().empty()) return;
    const int64_t positions = c_.model().max_positions();
    const bool generates =
        HasStage(c_, "collect") || HasStage(c_, "ppo") || HasStage(c_, "eval");
    // Written as a difference: the sum could overflow.
    if (generates && (g.max_prompt_tokens() > positions ||
                      g.max_new_tokens() > positions - g.max_prompt_tokens())) {
      Issue("generation.max_new_tokens", "max_prompt_tokens ",
            g.max_prompt_tokens(), " + max_new_tokens ", g.max_new_tokens(),
            " exceed model.max_positions ", positions);
    }
    const auto check = [&](std::string_view section, int64_t length) {
      if (length > positions) {
        Issue(absl::StrCat(std::string(section), ".sequence_length"), length,
              " exceeds model.max_positions ", positions);
      }
    };
    if (HasStage(c_, "pretrain")) {
      check("pretrain", c_.pretrain().sequence_length());
    }
    if (HasStage(c_, "sft")) check("sft", c_.sft().sequence_length());
    if (HasStage(c_, "ppo") && c_.ppo().ptx().coef() > 0) {
      check("ppo.ptx", c_.ppo().ptx().sequence_length());
    }
  }

  void CheckReward() {
    if (!HasStage(c_, "ppo")) return;
    const auto& r = c_.reward();
    if (r.kind() == "rm" && r.path().empty() && !HasStage(c_, "rm")) {
      Issue("reward.path",
            "kind rm needs stage rm before ppo, or a reward model folder here");
    }
    if (r.kind() == "table" && r.path().empty()) {
      Issue("reward.path", "kind table needs a table file");
    }
    if (r.kind() == "lexicon" && r.lexicon().empty()) {
      Issue("reward.lexicon", "kind lexicon needs a lexicon file");
    }
    if (r.kind() == "lexicon" && c_.tokenizer().kind() == "none") {
      Issue("reward.kind", "lexicon scores text; tokenizer.kind none has none");
    }
    if (r.kind() != "grpc") return;
    const size_t colon = r.address().rfind(':');
    const bool port = colon != std::string::npos && colon > 0 &&
                      colon + 1 < r.address().size() &&
                      r.address().find_first_not_of("0123456789", colon + 1) ==
                          std::string::npos;
    if (!port) {
      Issue("reward.address", "kind grpc needs host:port, found '", r.address(),
            "'");
    }
  }

  void CheckLm(const cox::v1::LmSettings& lm, const std::string& stage) {
    if (!HasStage(c_, stage)) return;
    if (lm.train().empty()) {
      Issue(stage + ".train", "stage ", stage, " needs training files");
    }
    if (lm.optimizer().warmup_steps() > lm.steps()) {
      Issue(stage + ".optimizer.warmup_steps", lm.optimizer().warmup_steps(),
            " exceeds ", stage, ".steps ", lm.steps());
    }
  }

  void CheckCollectAndRm() {
    if (HasStage(c_, "collect")) {
      if (c_.collect().prompts().empty()) {
        Issue("collect.prompts", "stage collect needs prompt files");
      }
      if (c_.collect().labeller() == "simulated" &&
          c_.reward().lexicon().empty()) {
        Issue("reward.lexicon",
              "the simulated labeller of stage collect "
              "needs a lexicon file");
      }
      if (c_.collect().labeller() == "simulated" &&
          c_.tokenizer().kind() == "none") {
        Issue("collect.labeller",
              "simulated scores text; tokenizer.kind none "
              "has none");
      }
    }
    if (!HasStage(c_, "rm")) return;
    if (c_.rm().comparisons().empty() && !HasStage(c_, "collect")) {
      Issue("rm.comparisons",
            "stage rm needs stage collect before it, or comparison files here");
    }
    if (c_.rm().normalize() != "none" && c_.rm().demonstrations().empty() &&
        c_.sft().train().empty()) {
      Issue("rm.normalize", c_.rm().normalize(),
            " needs rm.demonstrations or "
            "sft.train; or set it to none");
    }
  }

  void CheckTruncation() {
    const auto& g = c_.generation();
    constexpr std::string_view kWhy =
        " with stage ppo: answers would be drawn from a truncated "
        "distribution, while the trainer takes log-probs over the whole "
        "vocabulary, so ratios and KL would be wrong (docs/algorithms.md "
        "§10); set it to ";
    const std::string why(kWhy);
    if (g.top_k() != 0) Issue("generation.top_k", g.top_k(), why, "0");
    if (g.top_p() != 1) Issue("generation.top_p", g.top_p(), why, "1");
    if (g.min_p() != 0) Issue("generation.min_p", g.min_p(), why, "0");
    // It takes the end ids out of the first draws.
    if (g.min_new_tokens() != 0) {
      Issue("generation.min_new_tokens", g.min_new_tokens(), why, "0");
    }
    if (!g.forbid_ids().empty()) {
      Issue("generation.forbid_ids", g.forbid_ids_size(), " ids", why, "[]");
    }
    if (g.repetition_penalty() != 1) {
      Issue("generation.repetition_penalty", g.repetition_penalty(),
            " with stage ppo: the penalty is for evaluation only; the trainer "
            "takes log-probs of the policy itself, not of one whose logits "
            "depend on the tokens before, so ratios and KL would be wrong "
            "(docs/algorithms.md §10); set it to 1");
    }
  }

  void CheckPpoBatch() {
    const auto& p = c_.ppo();
    if (p.prompts().empty()) {
      Issue("ppo.prompts", "stage ppo needs prompt files");
    }
    if (p.prompts_per_step() % p.unit_prompts() != 0) {
      Issue("ppo.unit_prompts", p.unit_prompts(),
            " does not divide ppo.prompts_per_step ", p.prompts_per_step());
    }
    const int64_t answers =
        static_cast<int64_t>(p.prompts_per_step()) * p.samples_per_prompt();
    if (answers < p.minibatches()) {
      Issue("ppo.minibatches", p.minibatches(), " exceeds the ", answers,
            " answers of a step (prompts_per_step x samples_per_prompt)");
    }
    const bool grouped = p.estimator() == "rloo" || p.estimator() == "grpo" ||
                         p.estimator() == "dr_grpo" ||
                         p.estimator() == "reinforce_pp_baseline";
    if (grouped && p.samples_per_prompt() < 2) {
      Issue("ppo.samples_per_prompt", "must be at least 2 for estimator ",
            p.estimator(), ", which compares the answers to one prompt");
    }
    const double optimizer_steps =
        static_cast<double>(p.steps()) * p.epochs() * p.minibatches();
    if (static_cast<double>(p.optimizer().warmup_steps()) > optimizer_steps) {
      Issue("ppo.optimizer.warmup_steps", p.optimizer().warmup_steps(),
            " exceeds the ", optimizer_steps,
            " optimizer steps (steps x epochs x minibatches)");
    }
    if (p.value_warmup_steps() > 0 && p.estimator() != "gae") {
      Issue("ppo.value_warmup_steps", "estimator ", p.estimator(),
            " has no critic");
    } else if (p.value_warmup_steps() >= p.steps()) {
      Issue("ppo.value_warmup_steps", p.value_warmup_steps(),
            " leaves none of the ", p.steps(), " steps to the policy");
    }
  }

  void CheckPpoLoss() {
    const auto& p = c_.ppo();
    if (p.dual_clip() != 0 && p.dual_clip() < 1) {
      Issue("ppo.dual_clip", "must be 0 (off) or at least 1, is ",
            p.dual_clip());
    }
    if (p.dual_clip() != 0 && p.loss() != "ppo") {
      Issue("ppo.dual_clip", "belongs to loss ppo, not to ", p.loss());
    }
    if ((p.loss() == "ppo" || p.loss() == "gspo") && p.clip_low() >= 1) {
      Issue("ppo.clip_low", "must be below 1, is ", p.clip_low(),
            ": the lower bound of the ratio is 1 - clip_low");
    }
    // Their advantages differ from token to token; one ratio per answer wants
    // one advantage per answer (docs/algorithms.md §6).
    if (p.loss() == "gspo" &&
        (p.estimator() == "gae" || p.estimator() == "reinforce_pp")) {
      Issue("ppo.loss", "gspo needs one advantage per answer, estimator ",
            p.estimator(),
            " gives one per token; use estimator rloo, grpo, "
            "dr_grpo or reinforce_pp_baseline");
    }
    if (p.score_position() == "after_last" && p.estimator() != "gae") {
      Issue("ppo.score_position",
            "after_last adds a position for the critic; estimator ",
            p.estimator(), " has none");
    }
    if (p.max_new_tokens_const() > 0 && p.loss_agg() != "const") {
      Issue("ppo.max_new_tokens_const", "belongs to loss_agg const, not to ",
            p.loss_agg());
    }
    if (p.missing_eos() != "none" && !std::isfinite(p.missing_eos_value())) {
      Issue("ppo.missing_eos_value", "must be finite");
    }
  }

  void CheckPpoKl() {
    const auto& p = c_.ppo();
    if (p.kl_control() == "adaptive" && p.kl_coef() <= 0) {
      Issue("ppo.kl_coef",
            "kl_control adaptive multiplies it, so it must not "
            "be 0");
    }
    if (p.kl_control() == "adaptive" && p.kl_target() <= 0) {
      Issue("ppo.kl_target",
            "kl_control adaptive divides by it, so it must "
            "not be 0");
    }
    // One update multiplies by 1 ± .2 · answers / horizon at most
    // (docs/algorithms.md §5.2): beyond 1 the coefficient turns negative.
    const int64_t answers =
        static_cast<int64_t>(p.prompts_per_step()) * p.samples_per_prompt();
    if (p.kl_control() == "adaptive" &&
        0.2 * static_cast<double>(answers) > p.kl_horizon()) {
      Issue("ppo.kl_horizon", "must be at least a fifth of the ", answers,
            " answers of a step (prompts_per_step x samples_per_prompt) with "
            "kl_control adaptive, is ",
            p.kl_horizon(), ": the coefficient could turn negative");
    }
    if (p.kl_loss() == "none" && p.kl_loss_coef() > 0) {
      Issue("ppo.kl_loss_coef", "has no effect with kl_loss none");
    }
    if (p.kl_loss() != "none" && p.kl_loss_coef() <= 0) {
      Issue("ppo.kl_loss_coef", "kl_loss ", p.kl_loss(),
            " has no effect with coefficient 0");
    }
  }

  void CheckPtx() {
    const auto& p = c_.ppo();
    if (p.ptx().coef() > 0 && p.ptx().train().empty() &&
        c_.pretrain().train().empty()) {
      Issue("ppo.ptx.train",
            "ptx.coef above 0 needs files here or in "
            "pretrain.train");
    }
  }

  void CheckShards() {
    const int32_t shards = c_.numerics().shards();
    if ((shards & (shards - 1)) != 0) {
      Issue("numerics.shards", shards, " is not a power of two");
    } else if (c_.roles().learners() > shards) {
      Issue("roles.learners", c_.roles().learners(),
            " ranks are more than numerics.shards ", shards,
            ", so some would have nothing to train on; raise numerics.shards");
    }
  }

  void CheckLimits() {
    const auto& l = c_.limits();
    if (l.suspect_s() <= l.heartbeat_s()) {
      Issue("limits.suspect_s", l.suspect_s(),
            " must exceed limits.heartbeat_s ", l.heartbeat_s(),
            ", or a healthy role counts as dead");
    }
  }

  const RunConfig& c_;
  std::vector<ConfigIssue> issues_;
};

}  // namespace

std::vector<ConfigIssue> CheckConfig(const RunConfig& config) {
  return Checker(config).Run();
}

absl::Status ValidateConfig(const RunConfig& config) {
  std::vector<std::string> lines;
  for (const ConfigIssue& issue : CheckConfig(config)) {
    lines.push_back(absl::StrCat(issue.field, ": ", issue.message));
  }
  if (lines.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
}

}  // namespace cox
