#include "learner/ppo_trainer.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/ppo_update.h"

namespace cox {
namespace {

// Sequences per forward over held-out text when micro_batch leaves it open.
constexpr int64_t kHeldoutRows = 32;

// What one shard adds up over the minibatches of a step.
struct ShardSums {
  PolicySums policy;
  PolicySums first;  // first minibatch of the first epoch
  ValueSums value;
  double ptx = 0;
  void Merge(const ShardSums& other) {
    policy.Merge(other.policy);
    first.Merge(other.first);
    value.Merge(other.value);
    ptx += other.ptx;
  }
};

// What a step adds up over its minibatches.
struct StepSums {
  std::vector<ShardSums> own;  // of this rank's shards; the rest: all ranks'
  double policy_grad_norm = 0;
  double value_grad_norm = 0;
  double lr = 0;
  double value_lr = 0;
  int64_t policy_minibatches = 0;
  int64_t policy_updates = 0;
  int64_t value_minibatches = 0;
  int64_t value_updates = 0;
  bool stopped_early = false;
};

class PpoTrainer final : public StageTrainer {
 public:
  PpoTrainer(PpoOptions options, const PpoParts& parts, Shards shards,
             FlatOptimizer policy_optimizer,
             std::optional<FlatOptimizer> value_optimizer)
      : options_(std::move(options)),
        parts_(parts),
        shards_(std::move(shards)),
        policy_optimizer_(std::move(policy_optimizer)),
        value_optimizer_(std::move(value_optimizer)),
        controller_(*options_.controller) {
    if (options_.ema_decay > 0) {
      ema_.assign(parts.policy->Parameters().begin(),
                  parts.policy->Parameters().end());
    }
  }

  absl::StatusOr<StepResult> Step(int64_t step,
                                  const BatchInput& input) override {
    if (step != step_ + 1) {
      return absl::FailedPreconditionError(absl::StrCat(
          "ppo trainer: expected step ", step_ + 1, ", found ", step));
    }
    StepResult result;
    result.batch_sha256 = input.batch_sha256;
    COX_ASSIGN_OR_RETURN(
        RolloutBatch batch,
        MakeRolloutBatch(step, input.trajectories, options_.rollout));
    episodes_ += batch.shape.rows;
    step_ = step;
    if (input.kl_coef.has_value()) {
      controller_.set_beta(std::max(*input.kl_coef, options_.kl_min));
    }
    const double beta = controller_.beta();
    if (step == 1) {
      COX_RETURN_IF_ERROR(MeasureText(&result.metrics));
    }
    COX_RETURN_IF_ERROR(FillModelOutputs(options_, parts_, shards_, &batch));
    if (HasNonFinite(batch)) {
      result.skipped = true;
      ++skipped_;
    } else {
      COX_RETURN_IF_ERROR(ComputeAdvantages(options_.rollout, beta, &batch));
      StepSums sums;
      sums.own.resize(static_cast<size_t>(shards_.own()));
      COX_RETURN_IF_ERROR(RunEpochs(step, batch, &sums));
      COX_RETURN_IF_ERROR(Report(sums, &result));
      result.skipped = sums.policy_updates + sums.value_updates == 0 &&
                       sums.policy_minibatches + sums.value_minibatches > 0;
      if (batch.trained_count > 0) {
        COX_RETURN_IF_ERROR(controller_.Update(
            batch.mean_kl, static_cast<double>(batch.trained_count)));
        controller_.set_beta(std::max(controller_.beta(), options_.kl_min));
      }
    }
    if (step == options_.total_steps) {
      COX_RETURN_IF_ERROR(MeasureText(&result.metrics));
    }
    result.metrics.insert(batch.metrics.begin(), batch.metrics.end());
    result.metrics["kl_coef"] = controller_.beta();
    result.metrics["optim/skipped"] = static_cast<double>(skipped_);
    result.metrics["episode"] = static_cast<double>(episodes_);
    return result;
  }

  absl::StatusOr<std::shared_ptr<const Snapshot>> Trained() override {
    if (snapshot_ == nullptr) {
      COX_ASSIGN_OR_RETURN(snapshot_,
                           SnapshotFromFloats(parts_.policy->layout(),
                                              parts_.policy->Parameters()));
    }
    return snapshot_;
  }

  absl::StatusOr<std::vector<StageModel>> Models() override {
    std::vector<StageModel> models;
    COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> policy, Trained());
    models.push_back({"policy", std::move(policy)});
    if (parts_.critic != nullptr) {
      COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> critic,
                           SnapshotFromFloats(parts_.critic->layout(),
                                              parts_.critic->Parameters()));
      models.push_back({"critic", std::move(critic)});
    }
    if (!ema_.empty()) {
      COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> ema,
                           SnapshotFromFloats(parts_.policy->layout(), ema_));
      models.push_back({"policy_ema", std::move(ema)});
    }
    return models;
  }

  std::string SaveState() const override {
    StateWriter writer;
    writer.PutInt("step", step_);
    writer.PutInt("episodes", episodes_);
    writer.PutInt("skipped", skipped_);
    writer.PutDouble("kl_coef", controller_.beta());
    policy_optimizer_.Save("policy", &writer);
    if (value_optimizer_.has_value()) {
      value_optimizer_->Save("critic", &writer);
    }
    if (!ema_.empty()) {
      writer.PutFloats("ema", ema_);
    }
    return writer.Finish();
  }

  absl::Status LoadState(std::string_view state) override {
    COX_ASSIGN_OR_RETURN(const StateReader reader, StateReader::Parse(state));
    COX_ASSIGN_OR_RETURN(step_, reader.Int("step"));
    COX_ASSIGN_OR_RETURN(episodes_, reader.Int("episodes"));
    COX_ASSIGN_OR_RETURN(skipped_, reader.Int("skipped"));
    COX_ASSIGN_OR_RETURN(const double beta, reader.Double("kl_coef"));
    controller_.set_beta(beta);
    COX_RETURN_IF_ERROR(policy_optimizer_.Load("policy", reader));
    if (value_optimizer_.has_value()) {
      COX_RETURN_IF_ERROR(value_optimizer_->Load("critic", reader));
    }
    if (!ema_.empty()) {
      COX_RETURN_IF_ERROR(reader.Floats("ema", ema_));
    }
    snapshot_ = nullptr;
    return absl::OkStatus();
  }

  int64_t completed_steps() const override { return step_; }

 private:
  absl::Status MeasureText(std::map<std::string, double>* metrics) {
    const int64_t micro =
        options_.micro_batch > 0 ? options_.micro_batch : kHeldoutRows;
    return MeasureHeldout(parts_.heldout, micro, *parts_.policy, shards_,
                          metrics);
  }

  absl::Status RunEpochs(int64_t step, const RolloutBatch& batch,
                         StepSums* sums) {
    for (int64_t epoch = 0; epoch < options_.epochs; ++epoch) {
      const std::vector<Minibatch> minibatches =
          MakeMinibatches(batch, options_, step, epoch);
      for (size_t m = 0; m < minibatches.size(); ++m) {
        if (minibatches[m].policy.tokens == 0) {
          continue;  // the same on all ranks: no collective is skipped
        }
        // Position in the schedules and in the text, counting every minibatch.
        const int64_t update =
            ((step - 1) * options_.epochs + epoch) * options_.minibatches +
            static_cast<int64_t>(m);
        if (step > options_.value_warmup_steps) {
          COX_RETURN_IF_ERROR(PolicyUpdate(batch, minibatches[m], update,
                                           /*entropy=*/epoch == 0, sums));
          if (sums->stopped_early) {
            return absl::OkStatus();
          }
        }
        if (parts_.critic != nullptr) {
          COX_RETURN_IF_ERROR(ValueUpdate(batch, minibatches[m], update, sums));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status PolicyUpdate(const RolloutBatch& batch,
                            const Minibatch& minibatch, int64_t update,
                            bool entropy, StepSums* sums) {
    TrainEngine& policy = *parts_.policy;
    std::vector<ShardSums> own(sums->own.size());
    COX_RETURN_IF_ERROR(
        shards_.Backward(policy, [&](int64_t shard, size_t i) -> absl::Status {
          COX_ASSIGN_OR_RETURN(
              own[i].policy,
              PolicyBackward(options_, parts_, batch, minibatch,
                             shards_.Elements(minibatch.size(), shard),
                             entropy || options_.entropy_coef > 0));
          if (options_.ptx_coef > 0) {
            COX_ASSIGN_OR_RETURN(own[i].ptx, TextBackward(update, shard));
          }
          return absl::OkStatus();
        }));
    if (options_.target_kl > 0) {
      COX_ASSIGN_OR_RETURN(const ShardSums all, Fold(own));
      if (all.policy.loss_sums.Finish().approxkl > 1.5 * options_.target_kl) {
        sums->stopped_early = true;
        return absl::OkStatus();
      }
    }
    for (size_t i = 0; i < own.size(); ++i) {
      if (sums->policy_minibatches == 0) {
        own[i].first = own[i].policy;
      }
      sums->own[i].Merge(own[i]);
    }
    ++sums->policy_minibatches;
    snapshot_ = nullptr;
    COX_ASSIGN_OR_RETURN(const FlatOptimizer::Update done,
                         policy_optimizer_.Apply(update, policy));
    sums->lr = done.lr;
    if (done.skipped) {
      ++skipped_;
      return absl::OkStatus();
    }
    ++sums->policy_updates;
    sums->policy_grad_norm += done.grad_norm;
    if (!ema_.empty()) {
      EmaUpdate<float>(options_.ema_decay, ema_, policy.Parameters());
    }
    return absl::OkStatus();
  }

  // Gradient of the pretraining mix beside that of the policy loss.
  absl::StatusOr<double> TextBackward(int64_t update, int64_t shard) {
    return AccumulateNll({.first_position = update * options_.ptx_batch,
                          .count = options_.ptx_batch,
                          .micro_batch = options_.micro_batch,
                          .coef = options_.ptx_coef},
                         shards_, shard, *parts_.ptx, *parts_.policy);
  }

  absl::Status ValueUpdate(const RolloutBatch& batch,
                           const Minibatch& minibatch, int64_t update,
                           StepSums* sums) {
    COX_RETURN_IF_ERROR(shards_.Backward(
        *parts_.critic, [&](int64_t shard, size_t i) -> absl::Status {
          COX_ASSIGN_OR_RETURN(
              const ValueSums local,
              ValueBackward(options_, parts_, batch, minibatch,
                            shards_.Elements(minibatch.size(), shard)));
          sums->own[i].value.Merge(local);
          return absl::OkStatus();
        }));
    ++sums->value_minibatches;
    COX_ASSIGN_OR_RETURN(const FlatOptimizer::Update done,
                         value_optimizer_->Apply(update, *parts_.critic));
    sums->value_lr = done.lr;
    if (done.skipped) {
      ++skipped_;
      return absl::OkStatus();
    }
    ++sums->value_updates;
    sums->value_grad_norm += done.grad_norm;
    return absl::OkStatus();
  }

  // Sums of all shards, the same on all ranks.
  absl::StatusOr<ShardSums> Fold(const std::vector<ShardSums>& own) const {
    COX_ASSIGN_OR_RETURN(const std::vector<ShardSums> all, shards_.Gather(own));
    ShardSums sums;
    for (const ShardSums& part : all) {
      sums.Merge(part);
    }
    return sums;
  }

  // Sums -> metrics.
  absl::Status Report(const StepSums& sums, StepResult* result) {
    auto& metrics = result->metrics;
    COX_ASSIGN_OR_RETURN(const ShardSums all, Fold(sums.own));
    if (sums.policy_minibatches > 0) {
      ReportPolicy(sums, all, &metrics);
    }
    if (sums.value_minibatches > 0) {
      const double n = static_cast<double>(sums.value_minibatches);
      const ValueMetrics value = all.value.loss_sums.Finish();
      metrics["lr_value"] = sums.value_lr;
      metrics["loss/value"] = all.value.loss / n;
      metrics["val/error"] = value.error;
      metrics["val/clipfrac"] = value.clipfrac;
      metrics["val/explained_var"] = value.explained_var;
      if (sums.value_updates > 0) {
        metrics["grad_norm/value"] =
            sums.value_grad_norm / static_cast<double>(sums.value_updates);
      }
    }
    return absl::OkStatus();
  }

  void ReportPolicy(const StepSums& sums, const ShardSums& shards,
                    std::map<std::string, double>* out) const {
    auto& metrics = *out;
    const double n = static_cast<double>(sums.policy_minibatches);
    const PolicySums& policy = shards.policy;
    const PolicyMetrics all = policy.loss_sums.Finish();
    const PolicyMetrics first = shards.first.loss_sums.Finish();
    metrics["loss/policy"] = policy.loss / n;
    if (options_.ptx_coef > 0) {
      metrics["loss/ptx"] = shards.ptx / n;
    }
    if (options_.loss.kl_beta > 0) {
      metrics["loss/kl"] = policy.kl_loss / n / options_.loss.kl_beta;
    }
    if (policy.entropy_tokens > 0) {
      metrics["policy/entropy"] = policy.entropy / policy.entropy_tokens;
    }
    metrics["policy/approxkl"] = all.approxkl;
    metrics["policy/clipfrac"] = all.clipfrac;
    metrics["policy/ratio"] = all.ratio;
    metrics["policy/first_approxkl"] = first.approxkl;
    metrics["policy/first_clipfrac"] = first.clipfrac;
    metrics["policy/first_ratio_error"] = shards.first.ratio_max_dev;
    metrics["policy/updates"] = static_cast<double>(sums.policy_updates);
    metrics["lr"] = sums.lr;
    if (sums.policy_updates > 0) {
      metrics["grad_norm/policy"] =
          sums.policy_grad_norm / static_cast<double>(sums.policy_updates);
    }
  }

  const PpoOptions options_;
  const PpoParts parts_;
  Shards shards_;
  FlatOptimizer policy_optimizer_;
  std::optional<FlatOptimizer> value_optimizer_;
  KlController controller_;
  std::vector<float> ema_;  // empty = off
  int64_t step_ = 0;
  int64_t episodes_ = 0;
  int64_t skipped_ = 0;                       // updates
  std::shared_ptr<const Snapshot> snapshot_;  // of step_; null = not hashed yet
};

}  // namespace

absl::StatusOr<ProxMode> ParseProxMode(std::string_view name) {
  if (name == "recompute") return ProxMode::kRecompute;
  if (name == "behaviour") return ProxMode::kBehaviour;
  if (name == "interpolate") return ProxMode::kInterpolate;
  return absl::InvalidArgumentError(
      "must be recompute, behaviour or interpolate");
}

absl::Status PpoOptions::Validate() const {
  if (epochs < 1 || minibatches < 1 || micro_batch < 0 || ptx_batch < 0 ||
      value_warmup_steps < 0 || total_steps < 0 ||
      (ptx_coef > 0 && ptx_batch < 1)) {
    return absl::InvalidArgumentError(
        "ppo options: epochs and minibatches must be at least 1, micro_batch, "
        "value_warmup_steps and total_steps not negative, ptx.batch at least "
        "1 with ptx.coef");
  }
  COX_RETURN_IF_ERROR(CheckPositive("temperature", temperature));
  COX_RETURN_IF_ERROR(CheckNotNegative("ptx.coef", ptx_coef));
  COX_RETURN_IF_ERROR(CheckNotNegative("entropy_coef", entropy_coef));
  COX_RETURN_IF_ERROR(CheckNotNegative("target_kl", target_kl));
  COX_RETURN_IF_ERROR(CheckNotNegative("kl_min", kl_min));
  COX_RETURN_IF_ERROR(CheckRange("ema_decay", ema_decay, 0.0, 1.0));
  COX_RETURN_IF_ERROR(loss.Validate());
  if (!controller.has_value()) {
    return absl::InvalidArgumentError("ppo options: no KL controller");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StageTrainer>> MakePpoTrainer(
    const PpoOptions& options, const PpoParts& parts) {
  COX_RETURN_IF_ERROR(options.Validate());
  const bool needs_critic = !options.rollout.group.has_value();
  if (parts.policy == nullptr || parts.group == nullptr ||
      (parts.critic != nullptr) != needs_critic ||
      (options.ptx_coef > 0 && parts.ptx == nullptr)) {
    return absl::InvalidArgumentError(
        "ppo: expected a policy, a group, a critic with estimator gae only, "
        "and text with ptx.coef");
  }
  PpoOptions resolved = options;
  // Its ratio is that to the behaviour policy: no further weight (§6.4).
  if (options.loss.kind == PolicyLossKind::kProbDiff) {
    resolved.prox = ProxMode::kBehaviour;
  }
  // Decoupled: weight by the truncated ratio of proximal to behaviour.
  const bool decoupled = options.rollout.mode != RolloutSchedule::kSync &&
                         resolved.prox != ProxMode::kBehaviour;
  resolved.loss.is_mode = options.is_mode.value_or(
      decoupled ? IsMode::kTokenTruncate : IsMode::kNone);
  COX_ASSIGN_OR_RETURN(
      FlatOptimizer policy_optimizer,
      FlatOptimizer::Create(options.optimizer, parts.policy->layout()));
  std::optional<FlatOptimizer> value_optimizer;
  if (needs_critic) {
    COX_ASSIGN_OR_RETURN(
        value_optimizer,
        FlatOptimizer::Create(options.value_optimizer, parts.critic->layout()));
  }
  COX_ASSIGN_OR_RETURN(Shards shards,
                       Shards::Create(options.shards, *parts.group));
  return std::make_unique<PpoTrainer>(
      std::move(resolved), parts, std::move(shards),
      std::move(policy_optimizer), std::move(value_optimizer));
}

}  // namespace cox
