#include "lib/config/profiles.h"

namespace cox::config {
namespace {

// What a source does not state keeps its default, but for InstructGPT's policy
// learning rate: a value of its sweep below the one that diverged without text.
constexpr std::string_view kInstructGpt = R"(
ppo:
  prompts_per_step: 512
  epochs: 1
  minibatches: 8
  kl_coef: 0.02
  gamma: 1.0
  clip_low: 0.2
  clip_high: 0.2
  ema_decay: 0.992
  optimizer: {lr: 5.0e-6, beta1: 0.9, beta2: 0.95, warmup_steps: 80, warmup_start: 0.1}
  value_optimizer: {lr: 9.0e-6, beta1: 0.9, beta2: 0.95, warmup_steps: 80, warmup_start: 0.1}
generation: {temperature: 1.0}
)";

constexpr std::string_view kLmHumanPreferences = R"(
ppo:
  prompts_per_step: 512
  epochs: 4
  minibatches: 1
  kl_coef: 0.15
  kl_control: adaptive
  kl_target: 6.0
  kl_horizon: 10000
  gamma: 1.0
  lambda: 0.95
  clip_low: 0.2
  clip_high: 0.2
  value_clip: 0.2
  whiten_rewards: true
  whiten_advantages: true
  optimizer: {kind: tf_adam, lr: 1.0e-5, beta1: 0.9, beta2: 0.999, eps: 1.0e-5, schedule: linear, max_grad_norm: 0.0}
  value_optimizer: {kind: tf_adam, lr: 1.0e-5, beta1: 0.9, beta2: 0.999, eps: 1.0e-5, schedule: linear, max_grad_norm: 0.0}
generation: {temperature: 0.7}
)";

constexpr std::string_view kTldr = R"(
ppo:
  prompts_per_step: 512
  epochs: 4
  minibatches: 1
  kl_coef: 0.05
  gamma: 1.0
  lambda: 0.95
  clip_low: 0.2
  clip_high: 0.2
  value_clip: 0.2
  whiten_rewards: false
  whiten_advantages: true
  optimizer: {lr: 3.0e-6, beta1: 0.9, beta2: 0.999, eps: 1.0e-5, weight_decay: 0.01, schedule: linear, max_grad_norm: 0.0}
  value_optimizer: {lr: 3.0e-6, beta1: 0.9, beta2: 0.999, eps: 1.0e-5, weight_decay: 0.01, schedule: linear, max_grad_norm: 0.0}
generation: {temperature: 0.7}
)";

// docs/algorithms.md §13.
constexpr std::string_view kInstructEncdec = R"(
model: {dropout: 0.1}
)";

}  // namespace

std::string_view ProfileYaml(std::string_view profile) {
  if (profile == "instructgpt") return kInstructGpt;
  if (profile == "lmhp") return kLmHumanPreferences;
  if (profile == "tldr") return kTldr;
  return "";
}

std::string_view FamilyYaml(std::string_view type) {
  return type == "instruct_encdec" ? kInstructEncdec : "";
}

}  // namespace cox::config
