// Trainers whose engine keeps its state on a device give the bits of those
// whose state is the host's, through shards, ranks, clipping, checkpoints and
// poisoned gradients.

#include <algorithm>
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/batching.h"
#include "learner/optimizer.h"
#include "learner/ppo_trainer.h"
#include "learner/shards.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"

namespace cox {
namespace {

using testing::RankParts;
using testing::RunOutcome;
using testing::RunSteps;

// A fake engine behind a device: the spans that it hands out are copies, so
// that whoever trains through them trains nothing. What is written into the
// parameters is taken over before the next pass, as engine.h says.
class DeviceTwin final : public TrainEngine, public DeviceState {
 public:
  absl::Status Load(std::shared_ptr<const Snapshot> snapshot) override {
    COX_RETURN_IF_ERROR(inner_->Load(std::move(snapshot)));
    m_.assign(inner_->Parameters().size(), 0.0f);
    v_ = m_;
    host_.clear();
    return absl::OkStatus();
  }
  const ModelConfig& config() const override { return inner_->config(); }
  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                         double temperature,
                                         bool want_entropy) override {
    Upload();
    return inner_->Logprobs(batch, temperature, want_entropy);
  }
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) override {
    Upload();
    return inner_->Values(batch);
  }
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) override {
    Upload();
    return inner_->Scores(batch);
  }
  std::span<float> Parameters() override {
    Upload();
    host_.assign(inner_->Parameters().begin(), inner_->Parameters().end());
    return host_;
  }
  std::span<float> Gradients() override {
    gradients_.assign(inner_->Gradients().begin(), inner_->Gradients().end());
    return gradients_;
  }
  DeviceState* device() override { return this; }
  const Manifest& layout() const override { return inner_->layout(); }
  void ZeroGradients() override { inner_->ZeroGradients(); }
  absl::Status AccumulateLogprobs(const TokenBatch& batch, double temperature,
                                  bool want_entropy,
                                  const LogprobLoss& loss) override {
    Upload();
    return inner_->AccumulateLogprobs(batch, temperature, want_entropy, loss);
  }
  absl::Status AccumulateValues(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    Upload();
    return inner_->AccumulateValues(batch, loss);
  }
  absl::Status AccumulateScores(const TokenBatch& batch,
                                const ScalarLoss& loss) override {
    Upload();
    return inner_->AccumulateScores(batch, loss);
  }

  absl::Status KeepGradients(size_t place) override {
    kept_.resize(std::max(kept_.size(), place + 1));
    kept_[place].assign(inner_->Gradients().begin(), inner_->Gradients().end());
    return absl::OkStatus();
  }
  absl::Status AddKeptGradients(size_t place, size_t begin,
                                size_t count) override {
    for (size_t i = begin; i < begin + count; ++i) {
      inner_->Gradients()[i] = kept_[place][i] + inner_->Gradients()[i];
    }
    return absl::OkStatus();
  }
  absl::Status StartAllReduce(Collective& group, size_t begin,
                              size_t count) override {
    return group.AllReduceSum(inner_->Gradients().subspan(begin, count));
  }
  absl::Status WaitAllReduce(Collective&) override { return absl::OkStatus(); }
  void OnGradientReady(GradientReady ready) override {
    inner_->OnGradientReady(std::move(ready));
  }
  void LastPass() override { inner_->LastPass(); }
  absl::StatusOr<double> SquaredGradientNorm() override {
    return SquaredNorm(std::span<const float>(inner_->Gradients()));
  }
  absl::Status AdamUpdate(size_t begin, size_t count,
                          const AdamFactors<float>& f) override {
    Upload();
    for (size_t i = begin; i < begin + count; ++i) {
      const float g = inner_->Gradients()[i] * f.grad_scale;
      m_[i] = f.beta1 * m_[i] + f.take1 * g;
      v_[i] = f.beta2 * v_[i] + f.take2 * g * g;
      const float divisor = std::max(std::sqrt(v_[i]) * f.root_scale + f.eps,
                                     std::numeric_limits<float>::min());
      float& p = inner_->Parameters()[i];
      p = p * f.keep - f.rate * (m_[i] / divisor);
    }
    return absl::OkStatus();
  }
  absl::Status ReadMoments(std::span<float> m, std::span<float> v) override {
    std::copy(m_.begin(), m_.end(), m.begin());
    std::copy(v_.begin(), v_.end(), v.begin());
    return absl::OkStatus();
  }
  absl::Status WriteMoments(std::span<const float> m,
                            std::span<const float> v) override {
    m_.assign(m.begin(), m.end());
    v_.assign(v.begin(), v.end());
    return absl::OkStatus();
  }
  absl::Status PoisonGradients() override {
    inner_->Gradients()[0] = std::numeric_limits<float>::quiet_NaN();
    return absl::OkStatus();
  }

 private:
  void Upload() {
    if (host_.empty()) return;
    std::copy(host_.begin(), host_.end(), inner_->Parameters().begin());
    host_.clear();
  }

  std::unique_ptr<TrainEngine> inner_ = MakeFakeTrainEngine();
  std::vector<float> m_, v_, host_, gradients_;
  std::vector<std::vector<float>> kept_;
};

std::unique_ptr<TrainEngine> MakeEngine(bool device) {
  if (device) return std::make_unique<DeviceTwin>();
  return MakeFakeTrainEngine();
}

constexpr int64_t kVocabulary = 7;

testing::MakeRank MakePpo(bool device) {
  return [device](Collective& group) -> absl::StatusOr<RankParts> {
    RankParts parts;
    COX_ASSIGN_OR_RETURN(
        const auto policy,
        FakeSnapshot(FakeModelConfig(kVocabulary, 7), "policy", 11));
    parts.policy = MakeEngine(device);
    COX_RETURN_IF_ERROR(parts.policy->Load(policy));
    parts.critic = MakeEngine(device);
    COX_ASSIGN_OR_RETURN(const auto critic,
                         WithHead(*policy, HeadKind::kScalar, "critic", 3));
    COX_RETURN_IF_ERROR(parts.critic->Load(critic));
    PpoOptions options;
    options.seed = 5;
    options.epochs = 2;
    options.minibatches = 3;
    options.micro_batch = 2;
    options.shards = 4;
    options.ema_decay = 0.9;
    options.optimizer = testing::TestOptimizer(0.01);
    options.optimizer.max_grad_norm = 0.1;  // clips
    options.value_optimizer = testing::TestOptimizer(0.02);
    options.controller = *KlController::Fixed(0.1);
    options.total_steps = 4;
    COX_ASSIGN_OR_RETURN(parts.trainer,
                         MakePpoTrainer(options, {.policy = parts.policy.get(),
                                                  .critic = parts.critic.get(),
                                                  .group = &group}));
    return parts;
  };
}

BatchInput SomeBatch(int64_t step) {
  BatchInput input;
  input.batch_sha256 = std::string(64, 'a');
  for (int32_t i = 0; i < 8; ++i) {
    Trajectory& row = input.trajectories.emplace_back();
    row.id = {{0, step, 0}, i, 0};
    row.prompt_ids = {1 + i % 3, 2};
    row.response_ids = {i % 7, (2 * i + 1) % 7, 0};
    row.behaviour_logprobs = {-1.9f, -2.0f, -1.8f};
    row.reference_logprobs = {-1.95f, -1.9f, -2.0f};
    row.reward_total = 0.3 * i - 1;
    row.version = {0, step - 1};
    row.policy_hash = std::string(64, 'b');
  }
  return input;
}

TEST(DeviceStateTest, TrainsWithTheBitsOfTheHost) {
  for (int world : {1, 2}) {
    SCOPED_TRACE(world);
    ASSERT_OK_AND_ASSIGN(const RunOutcome host,
                         RunSteps(world, MakePpo(false), SomeBatch, 1, 4));
    ASSERT_OK_AND_ASSIGN(const RunOutcome device,
                         RunSteps(world, MakePpo(true), SomeBatch, 1, 4));
    EXPECT_EQ(device.policy, host.policy);
    EXPECT_EQ(device.critic, host.critic);
    EXPECT_EQ(device.state, host.state);  // moments too
    EXPECT_EQ(device.weight_hash, host.weight_hash);
    for (size_t s = 0; s < host.results.size(); ++s) {
      EXPECT_EQ(device.results[s].metrics, host.results[s].metrics);
    }
  }
}

TEST(DeviceStateTest, CheckpointsMoveBetweenHostAndDevice) {
  ASSERT_OK_AND_ASSIGN(const RunOutcome whole,
                       RunSteps(1, MakePpo(false), SomeBatch, 1, 4));
  for (bool first_on_device : {true, false}) {
    ASSERT_OK_AND_ASSIGN(
        const RunOutcome first,
        RunSteps(1, MakePpo(first_on_device), SomeBatch, 1, 2));
    ASSERT_OK_AND_ASSIGN(
        const RunOutcome second,
        RunSteps(1, MakePpo(!first_on_device), SomeBatch, 3, 4,
                 [&first](RankParts& parts) {
                   std::copy(first.policy.begin(), first.policy.end(),
                             parts.policy->Parameters().begin());
                   std::copy(first.critic.begin(), first.critic.end(),
                             parts.critic->Parameters().begin());
                   return parts.trainer->LoadState(first.state);
                 }));
    EXPECT_EQ(second.policy, whole.policy);
    EXPECT_EQ(second.critic, whole.critic);
    EXPECT_EQ(second.state, whole.state);
  }
}

TEST(DeviceStateTest, APoisonedGradientSkipsTheUpdate) {
  DeviceTwin engine;
  ASSERT_OK_AND_ASSIGN(
      const auto snapshot,
      FakeSnapshot(FakeModelConfig(kVocabulary, 7), "policy", 11));
  ASSERT_OK(engine.Load(snapshot));
  const std::vector<float> before(engine.Parameters().begin(),
                                  engine.Parameters().end());
  ASSERT_OK_AND_ASSIGN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(testing::TestOptimizer(0.1), engine.layout()));
  ASSERT_OK(PoisonGradient(engine));
  ASSERT_OK_AND_ASSIGN(const auto update, optimizer.Apply(0, engine));
  EXPECT_TRUE(update.skipped);
  EXPECT_EQ(std::vector<float>(engine.Parameters().begin(),
                               engine.Parameters().end()),
            before);
}

}  // namespace
}  // namespace cox
