#include "cli/bench_rollout_loop.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "learner/batching.h"
#include "learner/ppo_trainer.h"
#include "lib/model/api.h"

namespace cox {
namespace {

struct Phases {
  double generate = 0, score = 0, train = 0, publish = 0, wall = 0;
};

OptimizerOptions Optimizer(int64_t updates) {
  OptimizerOptions options;
  options.schedule.peak = 1e-6;
  options.schedule.total = updates;
  return options;
}

// The four models of a run and the rollouts between them.
class RolloutLoop {
 public:
  RolloutLoop(const BenchTrainFlags& flags, const EngineOptions& options)
      : flags_(flags), options_(options), group_(MakeSingleRank()) {}

  absl::Status Load() {
    COX_ASSIGN_OR_RETURN(
        model_, LoadBenchModel(flags_.model, HeadKind::kLanguageModel));
    COX_ASSIGN_OR_RETURN(reward_model_, Scalar(flags_.reward_model));
    COX_ASSIGN_OR_RETURN(value_model_, Scalar(flags_.value_model));
    COX_RETURN_IF_ERROR(ReadPrompts());
    COX_ASSIGN_OR_RETURN(reference_, MakeScoreEngine(options_));
    COX_RETURN_IF_ERROR(reference_->Load(model_.snapshot));
    COX_ASSIGN_OR_RETURN(reward_, MakeScoreEngine(options_));
    return reward_->Load(reward_model_.snapshot);
  }

  // Fresh learner and actor, as at the start of a stage.
  absl::Status Reset() {
    COX_ASSIGN_OR_RETURN(policy_, MakeTrainEngine(options_));
    COX_RETURN_IF_ERROR(policy_->Load(model_.snapshot));
    COX_ASSIGN_OR_RETURN(actor_, MakePolicyEngine(options_));
    const bool grpo = flags_.stage == "grpo";
    critic_.reset();
    if (!grpo) {
      COX_ASSIGN_OR_RETURN(critic_, MakeTrainEngine(options_));
      COX_RETURN_IF_ERROR(critic_->Load(value_model_.snapshot));
    }
    PpoOptions ppo;
    if (grpo) ppo.rollout.group = GroupEstimator::kGrpo;
    ppo.seed = flags_.model.common.seed;
    ppo.epochs = flags_.epochs;
    ppo.minibatches = flags_.minibatches;
    ppo.micro_batch = flags_.micro_batch;
    ppo.shards = 1;
    ppo.optimizer = ppo.value_optimizer = Optimizer(flags_.updates);
    COX_ASSIGN_OR_RETURN(ppo.controller, KlController::Fixed(0.05));
    ppo.total_steps = flags_.updates;
    COX_ASSIGN_OR_RETURN(trainer_, MakePpoTrainer(ppo, {.policy = policy_.get(),
                                                        .critic = critic_.get(),
                                                        .group = group_.get(),
                                                        .ptx = nullptr,
                                                        .heldout = {}}));
    return Publish();
  }

  absl::StatusOr<std::map<std::string, double>> Update(int64_t step,
                                                       uint64_t seed,
                                                       Phases* phases) {
    const double start = BenchSeconds();
    COX_ASSIGN_OR_RETURN(BatchInput input, Generate(step, seed));
    const double generated = BenchSeconds();
    COX_RETURN_IF_ERROR(Score(&input));
    const double scored = BenchSeconds();
    COX_ASSIGN_OR_RETURN(StepResult result, trainer_->Step(step, input));
    const double trained = BenchSeconds();
    COX_RETURN_IF_ERROR(Publish());
    const double end = BenchSeconds();
    phases->generate += generated - start;
    phases->score += scored - generated;
    phases->train += trained - scored;
    phases->publish += end - trained;
    phases->wall += end - start;
    if (result.skipped) {
      return absl::InternalError(absl::StrCat("step ", step, " was skipped"));
    }
    return result.metrics;
  }

  const ModelConfig& config() const { return model_.config; }
  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t new_tokens() const { return new_tokens_; }  // since Load()

 private:
  absl::StatusOr<BenchModel> Scalar(const std::string& folder) {
    if (!folder.empty()) {
      return LoadBenchModel(folder, "", HeadKind::kScalar);
    }
    BenchModel scalar;
    COX_ASSIGN_OR_RETURN(
        scalar.snapshot,
        WithHead(*model_.snapshot, HeadKind::kScalar, "critic", /*seed=*/2));
    COX_ASSIGN_OR_RETURN(
        scalar.config,
        ModelConfig::FromJson(scalar.snapshot->manifest.config_json));
    return scalar;
  }

  absl::Status ReadPrompts() {
    samples_ = flags_.stage == "grpo" ? flags_.group : 1;
    const int64_t prompts = std::max<int64_t>(1, flags_.batch / samples_);
    std::vector<std::vector<int32_t>> ids =
        RandomIds(prompts, flags_.prompt_tokens, model_.config.vocab_size);
    if (!flags_.prompts.empty()) {
      COX_ASSIGN_OR_RETURN(ids, ReadIds(flags_.prompts, "prompt_ids"));
    }
    for (int64_t p = 0; p < prompts; ++p) {
      for (int64_t k = 0; k < samples_; ++k) {
        rows_.push_back(ids[static_cast<size_t>(p) % ids.size()]);
        prompt_tokens_ += static_cast<int64_t>(rows_.back().size());
      }
    }
    if (flags_.lengths.empty()) return absl::OkStatus();
    COX_ASSIGN_OR_RETURN(lengths_, ReadIntegers(flags_.lengths));
    if (lengths_.size() < rows_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags_.lengths, ": expected ", rows_.size(),
                       " lengths, found ", lengths_.size()));
    }
    lengths_.resize(rows_.size());
    return absl::OkStatus();
  }

  absl::StatusOr<BatchInput> Generate(int64_t step, uint64_t seed) {
    GenerateRequest request;
    request.prompts = rows_;
    request.seed = seed;
    request.max_new_tokens = flags_.new_tokens;
    const std::vector<int64_t> eos(model_.config.eos_ids.begin(),
                                   model_.config.eos_ids.end());
    // Without a schedule EOS is a token like any other, so that the actor draws
    // from the distribution that the learner computes.
    if (!lengths_.empty()) {
      request.sampling.eos_ids = eos;
      request.lengths = lengths_;
      request.max_new_tokens =
          *std::max_element(lengths_.begin(), lengths_.end());
    }
    for (int64_t r = 0; r < rows(); ++r) {
      request.prompt_ids.push_back(
          static_cast<uint64_t>((step << 20) + r / samples_));
      request.sample_indices.push_back(static_cast<uint64_t>(r % samples_));
    }
    COX_ASSIGN_OR_RETURN(GenerateResult result, actor_->Generate(request));
    BatchInput input;
    input.batch_sha256 = std::string(64, '0');
    for (size_t r = 0; r < rows_.size(); ++r) {
      const int32_t row = static_cast<int32_t>(r);
      const int32_t samples = static_cast<int32_t>(samples_);
      Trajectory& t = input.trajectories.emplace_back();
      t.id = {{0, step, 0}, row / samples, row % samples};
      t.prompt_id = request.prompt_ids[r];
      t.prompt_ids = rows_[r];
      t.response_ids = std::move(result.tokens[r]);
      t.behaviour_logprobs = std::move(result.logprobs[r]);
      t.finish = result.finish[r];
      t.policy_hash = policy_hash_;
      t.version = {0, step - 1};
      new_tokens_ += static_cast<int64_t>(t.response_ids.size());
    }
    return input;
  }

  // Reward model and reference, as the reward role does.
  absl::Status Score(BatchInput* input) {
    std::vector<Sequence> sequences;
    std::vector<const Sequence*> pointers;
    for (const Trajectory& t : input->trajectories) {
      Sequence& sequence = sequences.emplace_back();
      sequence.ids = t.prompt_ids;
      sequence.first_target = sequence.length();
      sequence.ids.insert(sequence.ids.end(), t.response_ids.begin(),
                          t.response_ids.end());
    }
    for (const Sequence& sequence : sequences) pointers.push_back(&sequence);
    const TokenBatch batch = MakeTokenBatch(pointers);
    COX_ASSIGN_OR_RETURN(const std::vector<float> scores,
                         reward_->Scores(batch));
    COX_ASSIGN_OR_RETURN(const LogprobOutput reference,
                         reference_->Logprobs(batch, 1.0, false));
    for (size_t r = 0; r < sequences.size(); ++r) {
      Trajectory& t = input->trajectories[r];
      t.reward_total = double{scores[r]};
      for (int64_t k = 0; k < sequences[r].targets(); ++k) {
        t.reference_logprobs.push_back(reference.logprobs[TargetIndex(
            batch, sequences[r], static_cast<int64_t>(r), k)]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Publish() {
    COX_ASSIGN_OR_RETURN(auto snapshot, trainer_->Trained());
    policy_hash_ = snapshot->manifest.ContentHash();
    return actor_->Load(std::move(snapshot));
  }

  const BenchTrainFlags& flags_;
  const EngineOptions options_;
  std::unique_ptr<Collective> group_;
  BenchModel model_, reward_model_, value_model_;
  std::vector<std::vector<int32_t>> rows_;
  std::vector<int64_t> lengths_;
  int64_t samples_ = 1;
  int64_t prompt_tokens_ = 0;
  int64_t new_tokens_ = 0;
  std::string policy_hash_;
  std::unique_ptr<ScoreEngine> reference_, reward_;
  std::unique_ptr<TrainEngine> policy_, critic_;
  std::unique_ptr<PolicyEngine> actor_;
  std::unique_ptr<StageTrainer> trainer_;
};

struct Series {
  std::vector<double> step, generate, score, train, publish, idle, samples_s,
      new_tok_s, per_cpu_s, gflop_s;
};

double Metric(const std::map<std::string, double>& metrics,
              const std::string& name) {
  const auto it = metrics.find(name);
  return it == metrics.end() ? 0.0 : it->second;
}

}  // namespace

absl::Status MeasureRolloutStage(const BenchTrainFlags& flags,
                                 BenchReport& report, bool* ok) {
  const BenchFlags& common = flags.model.common;
  const EngineOptions options =
      BenchEngineOptions(flags.model, BenchThreads(common));
  RolloutLoop loop(flags, options);
  COX_RETURN_IF_ERROR(loop.Load());
  Series series;
  std::vector<std::map<std::string, double>> steps, first_run;
  double worst_mismatch = 0, worst_ratio = 0;
  int64_t new_tokens = 0;
  for (int run = -common.warmup; run < common.runs; ++run) {
    COX_RETURN_IF_ERROR(loop.Reset());
    steps.clear();
    WaitIdle(run < 0 ? 0 : common.wait_idle_s);
    const int64_t before = loop.new_tokens();
    Phases phases;
    const BenchMeter meter;
    const int64_t updates = run < 0 ? 1 : flags.updates;
    for (int64_t step = 1; step <= updates; ++step) {
      COX_ASSIGN_OR_RETURN(
          auto metrics,
          loop.Update(step,
                      common.seed + static_cast<uint64_t>(std::max(run, 0)),
                      &phases));
      worst_mismatch =
          std::max(worst_mismatch, Metric(metrics, "mismatch/max_abs"));
      worst_ratio =
          std::max(worst_ratio, Metric(metrics, "policy/first_ratio_error"));
      steps.push_back(std::move(metrics));
    }
    const BenchUse use = meter.Stop();
    // The warm-up's update is the first of the first run.
    if (run < 0 && first_run.empty()) first_run = steps;
    if (run == 0 && !first_run.empty() &&
        first_run.front().at("loss/policy") !=
            steps.front().at("loss/policy")) {
      return absl::InternalError("the same seed gave another first loss");
    }
    if (run < 0) continue;
    report.AddRun(use);
    new_tokens = loop.new_tokens() - before;
    const double n = static_cast<double>(flags.updates);
    const double samples = n * static_cast<double>(loop.rows());
    series.step.push_back(phases.wall / n);
    series.generate.push_back(phases.generate / n);
    series.score.push_back(phases.score / n);
    series.train.push_back(phases.train / n);
    series.publish.push_back(phases.publish / n);
    series.idle.push_back((use.wall_s - phases.wall) / n);
    series.samples_s.push_back(samples / use.wall_s);
    series.new_tok_s.push_back(static_cast<double>(new_tokens) / use.wall_s);
    series.per_cpu_s.push_back(samples / std::max(use.cpu_s, 1e-9));
    const double tokens = n * static_cast<double>(loop.prompt_tokens()) +
                          static_cast<double>(new_tokens);
    series.gflop_s.push_back(
        6e-9 * static_cast<double>(loop.config().ParameterCount()) * tokens *
        static_cast<double>(flags.epochs) / use.wall_s);
  }
  // Actor against learner; and the first minibatch before any update.
  const double bound = options.dtype == "fp32" ? 1e-4 : 5e-2;
  const double last_loss = steps.back().at("loss/policy");
  // A schedule bans EOS, so its log-probs are of another distribution.
  const bool comparable = flags.lengths.empty();
  *ok = (!comparable || worst_mismatch <= bound) && worst_ratio <= 0.01 &&
        std::isfinite(last_loss);
  const int64_t real = loop.prompt_tokens() * flags.updates + new_tokens;
  report.Integer("params", loop.config().ParameterCount());
  report.Text("stage", flags.stage);
  report.Integer("batch", loop.rows());
  report.Integer("group", flags.stage == "grpo" ? flags.group : 1);
  report.Integer("epochs", flags.epochs);
  report.Integer("minibatches", flags.minibatches);
  report.Integer("optimizer_steps_per_update",
                 flags.epochs * flags.minibatches);
  report.Integer("prompt_tokens", loop.prompt_tokens() * flags.updates);
  report.Integer("new_tokens", new_tokens);
  report.Text("lengths", flags.lengths.empty() ? "fixed" : "scheduled");
  report.Integer("real_tokens", real);
  report.Integer("slot_tokens", real);  // rows of real tokens only
  report.Spread("step_s", series.step);
  report.Spread("generate_s", series.generate);
  report.Spread("score_s", series.score);
  report.Spread("train_s", series.train);
  report.Spread("publish_s", series.publish);
  report.Spread("idle_s", series.idle);
  report.Spread("samples_s", series.samples_s);
  report.Spread("new_tok_s", series.new_tok_s);
  report.Null("tok_s");
  report.Spread("samples_per_cpu_s", series.per_cpu_s);
  report.Spread("model_gflop_s", series.gflop_s);
  report.Number("loss_first", steps.front().at("loss/policy"));
  report.Number("loss_last", last_loss);
  report.Number("kl_mean", Metric(steps.back(), "objective/kl"));
  report.Number("reward_mean", Metric(steps.back(), "objective/scores"));
  report.Spread("lag", {0.0});
  if (comparable) {
    report.Number("check_actor_learner_max_abs", worst_mismatch);
  } else {
    report.Null("check_actor_learner_max_abs");
  }
  report.Number("check_first_ratio_error", worst_ratio);
  if (!*ok) {
    std::fprintf(stderr,
                 "cox bench train: self-check failed: actor and learner differ "
                 "by %g (bound %g), first ratio by %g (bound 0.01), last loss "
                 "%g\n",
                 worst_mismatch, bound, worst_ratio, last_loss);
  }
  return DumpLosses(flags.dump_loss, steps);
}

}  // namespace cox
