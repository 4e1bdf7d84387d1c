#include "learner/stage_options_service.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

absl::StatusOr<ModelFamily> ParseFamily(const std::string& type) {
  if (type == "gpt2") return ModelFamily::kGpt2;
  if (type == "llama") return ModelFamily::kLlama;
  if (type == "qwen2") return ModelFamily::kQwen2;
  if (type == "qwen3") return ModelFamily::kQwen3;
  if (type == "instruct_encdec") return ModelFamily::kInstructEncdec;
  return absl::InvalidArgumentError(
      absl::StrCat("model.type: unknown '", type, "'"));
}

absl::Status ReadSchedule(const v1::ScheduleSettings& settings,
                          RolloutOptions* rollout) {
  if (settings.mode() == "sync") {
    rollout->mode = RolloutSchedule::kSync;
  } else if (settings.mode() == "fixed_lag") {
    rollout->mode = RolloutSchedule::kFixedLag;
    rollout->lag = settings.lag();
  } else if (settings.mode() == "streaming") {
    rollout->mode = RolloutSchedule::kStreaming;
    rollout->eta = settings.eta();
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule.mode: unknown '", settings.mode(), "'"));
  }
  return absl::OkStatus();
}

absl::Status ReadRewardShape(const v1::PpoSettings& ppo,
                             RolloutOptions* rollout) {
  ShapeRewardsOptions& shape = rollout->shape;
  COX_ASSIGN_OR_RETURN(shape.kl, ParseKlKind(ppo.kl_estimator()));
  COX_ASSIGN_OR_RETURN(shape.position,
                       ParseScorePosition(ppo.score_position()));
  COX_ASSIGN_OR_RETURN(shape.missing_stop, ParseMissingStop(ppo.missing_eos()));
  shape.missing_stop_value = ppo.missing_eos_value();
  if (ppo.reward_clip() > 0) {
    shape.score_clip = ppo.reward_clip();
  }
  rollout->needs_reference = ppo.kl_coef() > 0 || ppo.kl_loss_coef() > 0;
  return absl::OkStatus();
}

absl::Status ReadLoss(const v1::PpoSettings& ppo, PolicyLossOptions* loss) {
  COX_ASSIGN_OR_RETURN(loss->kind, ParsePolicyLossKind(ppo.loss()));
  COX_ASSIGN_OR_RETURN(loss->agg, ParseLossAgg(ppo.loss_agg()));
  loss->eps_lo = ppo.clip_low();
  loss->eps_hi = ppo.clip_high();
  if (ppo.dual_clip() > 0) {
    loss->dual_clip = ppo.dual_clip();
  }
  COX_ASSIGN_OR_RETURN(loss->kl_loss, ParseKlLoss(ppo.kl_loss()));
  loss->kl_beta = ppo.kl_loss_coef();
  return absl::OkStatus();
}

// How answers that the current weights did not sample are weighted (§7).
absl::Status ReadOffPolicy(const v1::PpoSettings& ppo, PpoOptions* options) {
  if (ppo.is_mode() != "auto") {
    COX_ASSIGN_OR_RETURN(options->is_mode, ParseIsMode(ppo.is_mode()));
  }
  options->loss.is_lo = ppo.is_low();
  options->loss.is_hi = ppo.is_high();
  COX_ASSIGN_OR_RETURN(options->prox, ParseProxMode(ppo.prox()));
  if (ppo.off_policy_delta() > 0) {
    options->loss.off_policy_delta = ppo.off_policy_delta();
  }
  return absl::OkStatus();
}

// Which answers train, and what their length costs (§6).
void ReadSelection(const v1::RunConfig& config, RolloutOptions* rollout) {
  const v1::PpoSettings& ppo = config.ppo();
  rollout->dynamic_sampling = ppo.dynamic_sampling();
  rollout->train_prompts = ppo.train_prompts();
  rollout->overlong_cache = ppo.overlong_cache();
  rollout->overlong_max = ppo.overlong_max() > 0
                              ? ppo.overlong_max()
                              : config.generation().max_new_tokens();
}

absl::StatusOr<KlController> ReadController(const v1::PpoSettings& ppo) {
  if (ppo.kl_control() == "adaptive") {
    return KlController::Adaptive(ppo.kl_coef(), ppo.kl_target(),
                                  ppo.kl_horizon());
  }
  return KlController::Fixed(ppo.kl_coef());
}

}  // namespace

absl::StatusOr<ModelConfig> ModelFromSettings(
    const v1::ModelSettings& settings, int64_t vocab_size,
    const std::vector<int32_t>& eos_ids, int32_t pad_id) {
  ModelConfig config;
  COX_ASSIGN_OR_RETURN(config.family, ParseFamily(settings.type()));
  config.vocab_size = vocab_size;
  config.hidden = settings.hidden();
  config.layers = settings.layers();
  if (config.family == ModelFamily::kInstructEncdec) {
    config.encoder_layers = settings.encoder_layers() > 0
                                ? settings.encoder_layers()
                                : settings.layers();
    config.tied_embeddings = false;
  }
  config.heads = settings.heads();
  config.kv_heads =
      settings.kv_heads() > 0 ? settings.kv_heads() : settings.heads();
  config.head_dim = settings.hidden() / settings.heads();
  config.intermediate = settings.intermediate() > 0 ? settings.intermediate()
                                                    : 4 * settings.hidden();
  config.max_positions = settings.max_positions();
  config.attention_bias = config.family == ModelFamily::kQwen2;
  config.eos_ids = eos_ids;
  if (config.family == ModelFamily::kInstructEncdec && !eos_ids.empty()) {
    config.bos_id = eos_ids.front();
  }
  config.pad_id = pad_id;
  COX_RETURN_IF_ERROR(config.Validate());
  return config;
}

absl::StatusOr<OptimizerOptions> ReadOptimizer(
    const v1::OptimizerSettings& settings, int64_t updates) {
  OptimizerOptions options;
  COX_ASSIGN_OR_RETURN(options.adam.kind, ParseAdamKind(settings.kind()));
  options.adam.beta1 = settings.beta1();
  options.adam.beta2 = settings.beta2();
  options.adam.eps = settings.eps();
  options.adam.weight_decay = settings.weight_decay();
  COX_ASSIGN_OR_RETURN(options.schedule.kind, ParseLrKind(settings.schedule()));
  options.schedule.peak = settings.lr();
  options.schedule.total = updates;
  options.schedule.floor = settings.floor();
  options.schedule.warmup = settings.warmup_steps();
  options.schedule.warmup_start = settings.warmup_start();
  options.max_grad_norm = settings.max_grad_norm();
  COX_RETURN_IF_ERROR(options.Validate());
  return options;
}

DropoutOptions DropoutOf(const v1::RunConfig& config, int32_t stage) {
  return {config.model().dropout(), config.seed(), stage};
}

absl::StatusOr<LmOptions> ReadLm(const v1::LmSettings& settings,
                                 int64_t total_steps) {
  LmOptions options;
  options.batch = settings.batch();
  options.micro_batch = settings.micro_batch();
  options.total_steps = total_steps;
  COX_ASSIGN_OR_RETURN(options.optimizer,
                       ReadOptimizer(settings.optimizer(), total_steps));
  return options;
}

absl::StatusOr<RmOptions> ReadRm(const v1::RunConfig& config, int32_t stage,
                                 int64_t total_steps) {
  const v1::RmSettings& rm = config.rm();
  RmOptions options;
  options.stage = stage;
  options.seed = config.seed();
  options.batch = rm.batch();
  options.shards = config.numerics().shards();
  options.total_steps = total_steps;
  options.loss.margin = rm.margin();
  options.loss.center = rm.center();
  options.dropout = config.model().dropout();
  COX_ASSIGN_OR_RETURN(options.optimizer,
                       ReadOptimizer(rm.optimizer(), total_steps));
  if (rm.normalize() == "none") {
    options.normalize = std::nullopt;
  } else {
    options.normalize =
        rm.normalize() == "gain" ? NormalizeMode::kGain : NormalizeMode::kBias;
  }
  return options;
}

namespace {

template <typename Settings>
absl::StatusOr<PreferenceTrainOptions> ReadPreference(const Settings& settings,
                                                      uint64_t seed,
                                                      int32_t stage,
                                                      int64_t total_steps) {
  PreferenceTrainOptions options;
  options.stage = stage;
  options.seed = seed;
  options.batch = settings.batch();
  options.micro_batch = settings.micro_batch();
  options.total_steps = total_steps;
  COX_ASSIGN_OR_RETURN(options.optimizer,
                       ReadOptimizer(settings.optimizer(), total_steps));
  return options;
}

}  // namespace

absl::StatusOr<DpoStageOptions> ReadDpo(const v1::RunConfig& config,
                                        int32_t stage, int64_t total_steps) {
  const v1::DpoSettings& dpo = config.dpo();
  DpoStageOptions options;
  COX_ASSIGN_OR_RETURN(options.train,
                       ReadPreference(dpo, config.seed(), stage, total_steps));
  options.train.shards = config.numerics().shards();
  COX_ASSIGN_OR_RETURN(options.loss.kind, ParsePreferenceKind(dpo.kind()));
  options.loss.beta = dpo.beta();
  options.loss.label_smoothing = dpo.label_smoothing();
  options.loss.length_norm = dpo.ipo_length_norm();
  return options;
}

absl::StatusOr<KtoStageOptions> ReadKto(const v1::RunConfig& config,
                                        int32_t stage, int64_t total_steps) {
  const v1::KtoSettings& kto = config.kto();
  KtoStageOptions options;
  COX_ASSIGN_OR_RETURN(options.train,
                       ReadPreference(kto, config.seed(), stage, total_steps));
  options.train.shards = config.numerics().shards();
  options.loss.beta = kto.beta();
  options.loss.lambda_d = kto.lambda_desirable();
  options.loss.lambda_u = kto.lambda_undesirable();
  return options;
}

absl::StatusOr<LmOptions> ReadRft(const v1::RunConfig& config,
                                  int64_t total_steps) {
  const v1::RftSettings& rft = config.rft();
  LmOptions options;
  options.batch = rft.batch();
  options.micro_batch = rft.micro_batch();
  options.shards = config.numerics().shards();
  options.total_steps = total_steps;
  COX_ASSIGN_OR_RETURN(options.optimizer,
                       ReadOptimizer(rft.optimizer(), total_steps));
  return options;
}

absl::StatusOr<PpoOptions> ReadPpo(const v1::RunConfig& config, int32_t stage,
                                   int64_t total_steps) {
  const v1::PpoSettings& ppo = config.ppo();
  PpoOptions options;
  options.rollout.stage = stage;
  COX_RETURN_IF_ERROR(ReadSchedule(config.schedule(), &options.rollout));
  if (ppo.estimator() != "gae") {
    COX_ASSIGN_OR_RETURN(options.rollout.group,
                         ParseGroupEstimator(ppo.estimator()));
  }
  options.rollout.gamma = ppo.gamma();
  options.rollout.lambda = ppo.lambda();
  options.rollout.whiten_advantages = ppo.whiten_advantages();
  options.rollout.whiten_rewards = ppo.whiten_rewards();
  COX_RETURN_IF_ERROR(ReadRewardShape(ppo, &options.rollout));
  COX_RETURN_IF_ERROR(ReadLoss(ppo, &options.loss));
  COX_RETURN_IF_ERROR(ReadOffPolicy(ppo, &options));
  ReadSelection(config, &options.rollout);
  options.seed = config.seed();
  options.t_max = static_cast<double>(
      ppo.max_new_tokens_const() > 0 ? ppo.max_new_tokens_const()
                                     : config.generation().max_new_tokens());
  options.temperature = config.generation().temperature();
  options.epochs = ppo.epochs();
  options.minibatches = ppo.minibatches();
  options.micro_batch = ppo.micro_batch();
  options.shards = config.numerics().shards();
  options.value_clip = ppo.value_clip() > 0
                           ? std::optional<double>(ppo.value_clip())
                           : std::nullopt;
  options.entropy_coef = ppo.entropy_coef();
  options.target_kl = ppo.target_kl();
  const int64_t updates = total_steps * options.epochs * options.minibatches;
  COX_ASSIGN_OR_RETURN(options.optimizer,
                       ReadOptimizer(ppo.optimizer(), updates));
  COX_ASSIGN_OR_RETURN(options.value_optimizer,
                       ReadOptimizer(ppo.value_optimizer(), updates));
  options.value_warmup_steps = ppo.value_warmup_steps();
  COX_ASSIGN_OR_RETURN(options.controller, ReadController(ppo));
  options.kl_min = ppo.kl_min();
  options.ptx_coef = ppo.ptx().coef();
  options.ptx_batch = ppo.ptx().batch();
  options.ema_decay = ppo.ema_decay();
  options.total_steps = total_steps;
  return options;
}

}  // namespace cox
