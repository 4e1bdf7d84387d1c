#include "lib/config/check_algorithms.h"

#include <string>
#include <utility>

namespace cox::config {
namespace {

using cox::v1::RunConfig;

class AlgorithmChecker {
 public:
  explicit AlgorithmChecker(const RunConfig& config) : c_(config) {}

  std::vector<ConfigIssue> Run() {
    CheckRft();
    CheckDpo();
    CheckKto();
    if (HasStage(c_, "ppo")) {
      CheckImportance();
      CheckProx();
      CheckSelection();
      CheckOverlong();
      CheckKlFloor();
    }
    return std::move(issues_);
  }

 private:
  template <typename... Args>
  void Issue(std::string field, const Args&... message) {
    issues_.push_back({std::move(field), absl::StrCat(message...)});
  }

  // Comparisons come from files or from stage collect.
  void CheckSource(const char* stage, const char* field, bool has_files) {
    if (HasStage(c_, stage) && !has_files && !HasStage(c_, "collect")) {
      Issue(field, "stage ", stage,
            " needs stage collect before it, or files here");
    }
  }

  void CheckRft() {
    CheckSource("rft", "rft.comparisons", c_.rft().comparisons_size() > 0);
    if (!HasStage(c_, "rft") || c_.rft().select() != "reward") return;
    const bool folder =
        c_.reward().kind() == "rm" && !c_.reward().path().empty();
    if (!HasStage(c_, "rm") && !folder) {
      Issue("rft.select",
            "reward needs stage rm before rft, or a reward model folder in "
            "reward.path");
    }
  }

  void CheckDpo() {
    CheckSource("dpo", "dpo.comparisons", c_.dpo().comparisons_size() > 0);
    if (!HasStage(c_, "dpo")) return;
    if (c_.dpo().kind() != "dpo" && c_.dpo().label_smoothing() > 0) {
      Issue("dpo.label_smoothing", "belongs to kind dpo, not to ",
            c_.dpo().kind());
    }
  }

  void CheckKto() {
    CheckSource("kto", "kto.train", c_.kto().train_size() > 0);
    if (!HasStage(c_, "kto")) return;
    if (c_.kto().lambda_desirable() == 0 &&
        c_.kto().lambda_undesirable() == 0) {
      Issue("kto.lambda_desirable",
            "both weights are 0, so there is nothing to learn");
    }
  }

  void CheckImportance() {
    const auto& p = c_.ppo();
    const bool masks = p.is_mode() == "token_mask" ||
                       p.is_mode() == "seq_mask" ||
                       p.is_mode() == "geometric_mask";
    if (p.is_low() > 0 && !masks) {
      Issue("ppo.is_low",
            "belongs to is_mode token_mask, seq_mask and "
            "geometric_mask, not to ",
            p.is_mode());
    }
    if (p.is_low() > p.is_high()) {
      Issue("ppo.is_low", p.is_low(), " exceeds ppo.is_high ", p.is_high());
    }
    // The mask needs the behaviour log-probs, and with them comes the weight.
    if (p.off_policy_delta() > 0 && p.is_mode() == "none" &&
        c_.schedule().mode() != "sync" && p.prox() != "behaviour") {
      Issue("ppo.off_policy_delta",
            "with is_mode none the weights of older "
            "answers would be unbounded; choose an is_mode or prox behaviour");
    }
    if (p.is_high() == 0 && p.is_mode() != "none") {
      Issue("ppo.is_high", "0 gives every token the weight 0");
    }
    // Its ratio is that to the behaviour policy already.
    if (p.loss() == "prob_diff" && p.is_mode() != "auto" &&
        p.is_mode() != "none") {
      Issue("ppo.is_mode",
            "loss prob_diff takes its ratio to the behaviour "
            "policy itself; set it to none");
    }
  }

  void CheckProx() {
    const auto& p = c_.ppo();
    const bool sync = c_.schedule().mode() == "sync";
    if (p.prox() == "interpolate" && sync) {
      Issue("ppo.prox",
            "interpolate is for answers of older versions; in "
            "schedule.mode sync there are none");
    }
    if (p.prox() == "behaviour" && p.is_mode() != "auto" &&
        p.is_mode() != "none") {
      Issue("ppo.is_mode", p.is_mode(),
            " has no effect with prox behaviour: "
            "the weight proximal / behaviour is 1");
    }
  }

  void CheckSelection() {
    const auto& p = c_.ppo();
    if (p.dynamic_sampling() && p.samples_per_prompt() < 2) {
      Issue("ppo.dynamic_sampling",
            "compares the answers to one prompt; "
            "ppo.samples_per_prompt must be at least 2");
    }
    if (p.train_prompts() > 0 && !p.dynamic_sampling()) {
      Issue("ppo.train_prompts", "has no effect without ppo.dynamic_sampling");
    }
    if (p.train_prompts() > p.prompts_per_step()) {
      Issue("ppo.train_prompts", p.train_prompts(),
            " exceeds ppo.prompts_per_step ", p.prompts_per_step());
    }
  }

  void CheckOverlong() {
    const auto& p = c_.ppo();
    const int64_t longest = c_.generation().max_new_tokens();
    const int64_t maximum = p.overlong_max() > 0 ? p.overlong_max() : longest;
    if (p.overlong_cache() == 0) {
      if (p.overlong_max() > 0) {
        Issue("ppo.overlong_max", "has no effect with ppo.overlong_cache 0");
      }
      return;
    }
    if (p.overlong_cache() > maximum) {
      Issue("ppo.overlong_cache", p.overlong_cache(), " exceeds the ", maximum,
            " tokens of the full penalty");
    } else if (maximum - p.overlong_cache() >= longest) {
      Issue("ppo.overlong_max", "the penalty begins after ",
            maximum - p.overlong_cache(),
            " tokens, no answer is longer than "
            "generation.max_new_tokens ",
            longest);
    }
  }

  void CheckKlFloor() {
    const auto& p = c_.ppo();
    if (p.kl_min() > 0 && p.kl_control() != "adaptive") {
      Issue("ppo.kl_min", "belongs to kl_control adaptive");
    } else if (p.kl_min() > p.kl_coef()) {
      Issue("ppo.kl_min", p.kl_min(), " exceeds ppo.kl_coef ", p.kl_coef());
    }
  }

  const RunConfig& c_;
  std::vector<ConfigIssue> issues_;
};

}  // namespace

std::vector<ConfigIssue> CheckAlgorithms(const RunConfig& config) {
  return AlgorithmChecker(config).Run();
}

}  // namespace cox::config
