#include "lib/metrics/registry.h"

#include <algorithm>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace cox {
namespace {

// Sums over t run over sampled tokens (mask 1); "mean" is over all ranks.
constexpr MetricInfo kMetrics[] = {
    {"objective/scores", "",
     "mean over answers of the reward before KL and penalties", "§5",
     "trl:objective/scores_mean openrlhf:reward verl:critic/score/mean"},
    {"objective/score_total", "",
     "mean over answers of score - kl_coef * sum_t k1_t", "§9",
     "trl:objective/rlhf_reward openrlhf:return verl:critic/rewards/mean"},
    {"objective/kl", "nats per answer",
     "mean over answers of sum_t (proximal - reference log-prob)", "§5.1, §9",
     "openrlhf:kl verl:actor/reward_kl_penalty"},
    {"objective/entropy", "nats per answer",
     "mean over answers of sum_t -(behaviour log-prob)", "§9", ""},
    {"objective/gold", "",
     "mean over answers of the labeller's own score; measured only, never "
     "trained on",
     "§4", ""},
    {"objective/non_score_reward", "",
     "mean over answers of -kl_coef * sum_t k1_t", "§5",
     "trl:objective/non_score_reward_mean"},
    {"kl_coef", "",
     "weight beta of the KL penalty after this step's update of the "
     "controller",
     "§5.2", "trl:objective/kl_coef verl:actor/reward_kl_penalty_coeff"},
    {"loss/policy", "", "policy loss of the step's minibatches, mean", "§6",
     "trl:loss/policy_avg openrlhf:policy_loss verl:actor/pg_loss"},
    {"loss/value", "",
     "0.5 * aggregate of max((V-R)^2, (V_clip-R)^2), mean over minibatches",
     "§6.1", "trl:loss/value_avg openrlhf:critic_loss verl:critic/vf_loss"},
    {"loss/kl", "", "KL term of the loss before its weight", "§5.1",
     "verl:actor/kl_loss"},
    {"loss/ptx", "nats per token",
     "mean negative log-likelihood of the pretraining minibatch", "§6.3",
     "openrlhf:ptx_loss"},
    {"loss/lm", "nats per token",
     "mean negative log-likelihood of trained tokens (pretrain, sft, rft)",
     "§3", "trl:loss openrlhf:gpt_loss verl:train/loss"},
    {"loss/rm", "nats per pair",
     "mean over pairs of -log sigmoid(r_w - r_l - margin), plus the "
     "centring term",
     "§4", "openrlhf:preference_loss"},
    {"loss/dpo", "",
     "mean over pairs of -log sigmoid(beta * h), or ipo's (h - 1/(2 beta))^2; "
     "h = chosen - rejected log-ratio to the reference",
     "§8", ""},
    {"loss/kto", "",
     "mean over answers of lambda * sigmoid of the wrong direction of "
     "beta * (log-ratio to the reference - z0)",
     "§8", ""},
    {"policy/approxkl", "nats per token",
     "masked mean of 0.5 * (policy - old log-prob)^2", "§9",
     "trl:policy/approxkl_avg openrlhf:ppo_kl verl:actor/ppo_kl"},
    {"policy/clipfrac", "fraction",
     "share of tokens whose clipped loss is strictly larger", "§6",
     "trl:policy/clipfrac_avg openrlhf:ppo_clip_ratio "
     "verl:actor/pg_clipfrac"},
    {"policy/ratio", "", "masked mean of exp(policy - old log-prob)", "§6",
     "trl:val/ratio"},
    {"policy/entropy", "nats per token",
     "masked mean of logsumexp(z) - sum_v p_v * z_v at the rollout "
     "temperature",
     "§6", "trl:policy/entropy_avg openrlhf:entropy_loss verl:actor/entropy"},
    {"policy/first_ratio_error", "",
     "largest |ratio - 1| of the first minibatch: numerics of trainer "
     "against itself",
     "§6.2", ""},
    {"policy/first_clipfrac", "fraction",
     "policy/clipfrac of the first minibatch: 0 while its ratios are 1", "§6.2",
     ""},
    {"policy/first_approxkl", "nats per token",
     "policy/approxkl of the first minibatch: 0 while its ratios are 1", "§6.2",
     ""},
    {"policy/updates", "updates", "optimizer steps of the policy in the step",
     "§6.2", ""},
    {"val/error", "", "masked mean of (V - R)^2", "§9", ""},
    {"val/clipfrac", "fraction", "share of tokens whose value was clipped",
     "§6.1", "trl:val/clipfrac_avg verl:critic/vf_clipfrac"},
    {"val/explained_var", "", "1 - Var(R - V) / Var(R)", "§9",
     "verl:critic/vf_explained_var"},
    {"val/mean", "", "masked mean of the critic's value V", "§5.3",
     "openrlhf:values verl:critic/values/mean"},
    {"val/return_mean", "", "masked mean of the return R", "§5.3",
     "verl:critic/returns/mean"},
    {"advantage/mean", "", "masked mean of advantages before whitening", "§5.3",
     "verl:critic/advantages/mean"},
    {"advantage/std", "",
     "masked standard deviation of advantages before whitening", "§5.4", ""},
    {"grad_norm/policy", "",
     "global L2 norm of the policy's gradient before clipping, mean over "
     "minibatches",
     "§11", "trl:grad_norm openrlhf:actor_grad_norm verl:actor/grad_norm"},
    {"grad_norm/value", "",
     "global L2 norm of the critic's gradient before clipping, mean over "
     "minibatches",
     "§11", "openrlhf:critic_grad_norm verl:critic/grad_norm"},
    {"grad_norm/lm", "",
     "global L2 norm of the language-model gradient before clipping", "§11",
     ""},
    {"grad_norm/rm", "",
     "global L2 norm of the reward model's gradient before clipping", "§11",
     ""},
    {"optim/skipped", "steps",
     "optimizer steps skipped so far because a gradient was not finite", "§11",
     ""},
    {"lr", "",
     "learning rate of the policy (or of the stage's model) at the last "
     "optimizer step",
     "§11", "trl:learning_rate openrlhf:actor_lr verl:actor/lr"},
    {"lr_value", "", "learning rate of the critic at the last optimizer step",
     "§11", "openrlhf:critic_lr verl:critic/lr"},
    {"episode", "answers", "answers trained on so far", "§2", "trl:episodes"},
    {"eps", "answers/s", "answers of the step / timing_s/step", "coxswain", ""},
    {"tokens_s", "tokens/s",
     "tokens of the step (prompts and answers) / timing_s/step", "coxswain",
     "openrlhf:tokens_per_second verl:perf/throughput"},
    {"rollout/length", "tokens",
     "mean number of tokens of an answer, end token included", "§9",
     "trl:completions/mean_length openrlhf:response_length "
     "verl:response_length/mean"},
    {"rollout/length_max", "tokens", "longest answer of the batch", "§9",
     "trl:completions/max_length verl:response_length/max"},
    {"rollout/prompt_length", "tokens", "mean number of tokens of a prompt",
     "§9", "verl:prompt_length/mean"},
    {"rollout/stop_frac", "fraction",
     "share of answers that ended with a stop token", "§9", ""},
    {"rollout/abort_frac", "fraction",
     "share of answers that were aborted and never train", "§5", ""},
    {"rollout/unscored_frac", "fraction",
     "share of answers that the reward service could not score", "§5.5", ""},
    {"rollout/excluded", "answers",
     "answers of the batch that do not train: aborted, empty or not scored",
     "§5", ""},
    {"rollout/filtered", "answers",
     "answers left out because all answers to their prompt have one score "
     "(ppo.dynamic_sampling)",
     "§6", ""},
    {"rollout/reserve", "answers",
     "answers left out because ppo.train_prompts prompts came before", "§6",
     ""},
    {"rollout/trained_prompts", "prompts",
     "prompts that dynamic sampling left to train on", "§6", ""},
    {"rollout/units", "units", "rollout units of the batch", "coxswain", ""},
    {"rollout/group_std", "",
     "mean over prompts of the standard deviation of the group's scores",
     "§5.5", "trl:reward_std"},
    {"rollout/gen_tokens_s", "tokens/s",
     "sampled tokens per second over all actors", "coxswain",
     "verl:perf/gen_throughput"},
    {"offpolicy/w_mean", "",
     "masked mean of w = exp(proximal - behaviour log-prob)", "§7", ""},
    {"offpolicy/w_max", "", "largest w", "§7", ""},
    {"offpolicy/ess", "fraction",
     "(sum w)^2 / (n * sum w^2): effective share of the sample", "§7", ""},
    {"mismatch/k3", "nats per token",
     "masked mean of k3 between behaviour and proximal log-probs of equal "
     "versions: numerics of actor against trainer",
     "§9", "verl:rollout_corr/k3_kl"},
    {"mismatch/max_abs", "nats",
     "largest |proximal - behaviour log-prob| of tokens of equal versions",
     "§9", ""},
    {"async/staleness_max", "versions",
     "trainer version - oldest token version, largest of the batch", "§7", ""},
    {"async/staleness_mean", "versions",
     "trainer version - oldest token version, mean of the batch", "§7", ""},
    {"async/dropped", "units",
     "units that this step's batch left out for good: too stale", "§7", ""},
    {"text/tokens", "tokens", "trained tokens of the step's batch", "§3", ""},
    {"text/heldout_nll", "nats per token",
     "mean negative log-likelihood of held-out text", "§3",
     "trl:eval_loss openrlhf:eval_gpt_loss verl:val/loss"},
    {"text/heldout_ppl", "", "exp(text/heldout_nll)", "§3", "trl:perplexity"},
    {"rm/accuracy", "fraction", "share of training pairs with r_w > r_l", "§4",
     "trl:train_accuracy openrlhf:acc_mean"},
    {"rm/heldout_accuracy", "fraction",
     "share of held-out pairs with r_w > r_l", "§4",
     "trl:eval_accuracy openrlhf:eval_acc_mean"},
    {"rm/human_accuracy", "fraction",
     "share of human-labelled pairs with r_w > r_l", "§4", ""},
    {"rm/margin", "", "mean over pairs of r_w - r_l", "§4",
     "trl:margin openrlhf:reward_margin"},
    {"rm/heldout_margin", "", "mean over held-out pairs of r_w - r_l", "§4",
     ""},
    {"rm/human_margin", "", "mean over human-labelled pairs of r_w - r_l", "§4",
     ""},
    {"rm/mean", "", "mean reward over both answers of all pairs", "§4",
     "trl:mean_reward openrlhf:reward_mean"},
    {"rm/std", "",
     "standard deviation of the reward over both answers of all pairs", "§4",
     ""},
    {"rm/reward_gain", "",
     "gain of gain * raw + bias, the reward that later stages see", "§4", ""},
    {"rm/reward_bias", "",
     "bias of gain * raw + bias: demonstrations get mean 0", "§4", ""},
    {"dpo/accuracy", "fraction",
     "share of the step's pairs with reward_chosen > reward_rejected", "§8",
     "trl:rewards/accuracies"},
    {"dpo/reward_chosen", "",
     "mean over pairs of beta * (policy - reference log-prob) of the better "
     "answer",
     "§8", "trl:rewards/chosen openrlhf:chosen_reward"},
    {"dpo/reward_rejected", "",
     "mean over pairs of beta * (policy - reference log-prob) of the worse "
     "answer",
     "§8", "trl:rewards/rejected openrlhf:reject_reward"},
    {"dpo/margin", "", "dpo/reward_chosen - dpo/reward_rejected", "§8",
     "trl:rewards/margins"},
    {"dpo/heldout_accuracy", "fraction", "dpo/accuracy over held-out pairs",
     "§8", "trl:eval_rewards/accuracies"},
    {"dpo/heldout_loss", "", "loss/dpo over held-out pairs", "§8", ""},
    {"dpo/heldout_margin", "", "dpo/margin over held-out pairs", "§8",
     "trl:eval_rewards/margins"},
    {"kto/z0", "nats",
     "max(0, mean of policy - reference log-prob of prompts with the answer to "
     "another prompt)",
     "§8", ""},
    {"kto/accuracy", "fraction",
     "share of answers whose log-ratio is on the right side of z0", "§8", ""},
    {"kto/reward_desirable", "",
     "mean over good answers of beta * (policy - reference log-prob)", "§8",
     ""},
    {"kto/reward_undesirable", "",
     "mean over bad answers of beta * (policy - reference log-prob)", "§8", ""},
    {"kto/margin", "", "kto/reward_desirable - kto/reward_undesirable", "§8",
     ""},
    {"collect/prompts", "prompts", "prompts whose answers were ranked",
     "coxswain", ""},
    {"collect/unscored", "prompts",
     "prompts left out because an answer has no score", "coxswain", ""},
    {"eval/reference/gold", "",
     "mean over prompts of the labeller's score of "
     "the reference's first answer",
     "§4", ""},
    {"eval/reference/reward", "",
     "mean over prompts of the reward of the reference's first answer", "§4",
     ""},
    {"eval/reference/kl", "nats per answer",
     "mean over prompts of sum_t (behaviour - reference log-prob)", "coxswain",
     ""},
    {"eval/reference/length", "tokens",
     "mean number of tokens of the reference's first answer, end token "
     "included",
     "coxswain", ""},
    {"eval/best_of_n/gold", "",
     "mean over prompts of the labeller's score of "
     "the best of the reference's n answers",
     "§4", ""},
    {"eval/best_of_n/reward", "",
     "mean over prompts of the reward of the best of the reference's n answers",
     "§4", ""},
    {"eval/best_of_n/kl", "nats per answer",
     "log n - (n - 1) / n, the same for every prompt", "coxswain", ""},
    {"eval/best_of_n/length", "tokens",
     "mean number of tokens of the best of the reference's n answers, end "
     "token included",
     "coxswain", ""},
    {"eval/policy/gold", "",
     "mean over prompts of the labeller's score of "
     "the policy's first answer",
     "§4", ""},
    {"eval/policy/reward", "",
     "mean over prompts of the reward of the policy's first answer", "§4", ""},
    {"eval/policy/kl", "nats per answer",
     "mean over prompts of sum_t (behaviour - reference log-prob)", "coxswain",
     ""},
    {"eval/policy/length", "tokens",
     "mean number of tokens of the policy's first answer, end token included",
     "coxswain", ""},
    {"timing_s/step", "s", "whole step", "coxswain", ""},
    {"timing_s/wait_batch", "s", "waiting for the batch of the step",
     "coxswain", "verl:timing_s/gen"},
    {"timing_s/score", "s",
     "proximal and reference log-probs and values of the batch", "coxswain",
     "verl:timing_s/ref verl:timing_s/old_log_prob"},
    {"timing_s/train", "s",
     "all minibatches: forward, backward, all-reduce, update", "coxswain",
     "verl:timing_s/update_actor"},
    {"timing_s/publish", "s", "writing and announcing the new version",
     "coxswain", "verl:timing_s/update_weights"},
    {"timing_s/checkpoint", "s", "part of a checkpoint that the step waits for",
     "coxswain", "verl:timing_s/save_checkpoint"},
    {"checkpoint/unsaved_steps", "steps",
     "steps since the newest checkpoint that has its row", "coxswain", ""},
    {"checkpoint/failures", "checkpoints",
     "checkpoints of this stage that could not be written; training goes on "
     "up to checkpoint.max_unsaved_steps",
     "coxswain", ""},
    {"perf/wait_frac", "fraction",
     "timing_s/wait_batch / timing_s/step: share of the step without work",
     "coxswain", ""},
    {"perf/rss_bytes", "bytes", "resident memory of learner rank 0", "coxswain",
     ""},
};

using Index = std::unordered_map<std::string, const MetricInfo*>;

Index BuildIndex() {
  Index index;
  for (const MetricInfo& metric : kMetrics) {
    index.emplace(std::string(metric.name), &metric);
    for (const absl::string_view alias :
         absl::StrSplit(std::string(metric.aliases), ' ', absl::SkipEmpty())) {
      index.emplace(std::string(alias), &metric);
      index.emplace(std::string(alias.substr(alias.find(':') + 1)), &metric);
    }
  }
  return index;
}

}  // namespace

std::span<const MetricInfo> AllMetrics() { return kMetrics; }

const MetricInfo* FindMetric(std::string_view name_or_alias) {
  // Never destroyed: threads may look up during shutdown.
  static const Index* const index = new Index(BuildIndex());
  const auto it = index->find(std::string(name_or_alias));
  return it == index->end() ? nullptr : it->second;
}

absl::StatusOr<std::string> ExplainMetric(std::string_view name_or_alias) {
  const MetricInfo* metric = FindMetric(name_or_alias);
  if (metric == nullptr) {
    // Names that share the last part, or contain what was typed.
    const std::string_view tail =
        name_or_alias.substr(name_or_alias.rfind('/') + 1);
    std::vector<std::string> near;
    for (const MetricInfo& candidate : kMetrics) {
      if (!tail.empty() && candidate.name.find(tail) != tail.npos) {
        near.emplace_back(candidate.name);
      }
    }
    return absl::NotFoundError(absl::StrCat(
        "unknown metric '", std::string(name_or_alias), "'",
        near.empty() ? ""
                     : absl::StrCat(" (did you mean ",
                                    absl::StrJoin(near, ", "), "?)")));
  }
  std::string out = absl::StrCat(
      std::string(metric->name), "\n  = ", std::string(metric->formula), "\n",
      "  unit: ", metric->unit.empty() ? "none" : std::string(metric->unit),
      "\n");
  if (metric->source == "coxswain") {
    absl::StrAppend(&out, "  source: the system itself\n");
  } else {
    absl::StrAppend(&out, "  source: docs/algorithms.md ",
                    std::string(metric->source), "\n");
  }
  if (!metric->aliases.empty()) {
    absl::StrAppend(&out, "  elsewhere: ", std::string(metric->aliases), "\n");
  }
  return out;
}

}  // namespace cox
