#include "lib/engine/fake.h"

#include <cmath>

#include "gtest/gtest.h"

namespace cox {
namespace {

std::shared_ptr<const Snapshot> MakeFake(HeadKind head, uint64_t seed = 1) {
  auto snapshot = FakeSnapshot(FakeModelConfig(5, 6, head), "policy", seed);
  EXPECT_TRUE(snapshot.ok()) << snapshot.status();
  return *snapshot;
}

TokenBatch SmallBatch() {
  TokenBatch batch;
  batch.batch = 2;
  batch.length = 3;
  batch.ids = {1, 4, 2, 3, 0, 77};
  batch.lengths = {3, 2};
  batch.scored = {1, 1, 0, 1, 0, 0};
  return batch;
}

TEST(FakeEngineTest, GradientMatchesFiniteDifferences) {
  auto engine = MakeFakeTrainEngine();
  ASSERT_TRUE(engine->Load(MakeFake(HeadKind::kLanguageModel)).ok());
  const TokenBatch batch = SmallBatch();
  // loss = Σ (1 + i) (logprob_i + 0.5 entropy_i)
  auto loss_of = [&] {
    auto out = engine->Logprobs(batch, 0.8, true);
    EXPECT_TRUE(out.ok());
    double loss = 0;
    for (size_t i = 0; i < 6; ++i) {
      loss += (1.0 + static_cast<double>(i)) *
              (double{out->logprobs[i]} + 0.5 * double{out->entropies[i]});
    }
    return loss;
  };
  ASSERT_TRUE(engine
                  ->AccumulateLogprobs(
                      batch, 0.8, true,
                      [](const LogprobOutput& out, LogprobGradient* gradient) {
                        gradient->entropies.resize(out.logprobs.size());
                        for (size_t i = 0; i < out.logprobs.size(); ++i) {
                          gradient->logprobs[i] = 1.0f + static_cast<float>(i);
                          gradient->entropies[i] = 0.5f * gradient->logprobs[i];
                        }
                        return absl::OkStatus();
                      })
                  .ok());
  std::span<float> p = engine->Parameters();
  for (size_t i = 0; i < 60; i += 7) {
    const float kept = p[i];
    p[i] = kept + 0.02f;
    const double up = loss_of();
    p[i] = kept - 0.02f;
    const double down = loss_of();
    p[i] = kept;
    EXPECT_NEAR(engine->Gradients()[i], (up - down) / 0.04, 2e-3) << i;
  }
}

TEST(FakeEngineTest, PolicyGradientLearnsABandit) {
  auto engine = MakeFakeTrainEngine();
  ASSERT_TRUE(engine->Load(MakeFake(HeadKind::kLanguageModel)).ok());
  TokenBatch batch;
  batch.batch = 1;
  batch.length = 2;
  batch.ids = {1, 3};
  batch.lengths = {2};
  batch.scored = {1, 0};
  for (int step = 0; step < 300; ++step) {
    engine->ZeroGradients();
    ASSERT_TRUE(engine
                    ->AccumulateLogprobs(
                        batch, 1.0, false,
                        [](const LogprobOutput&, LogprobGradient* gradient) {
                          gradient->logprobs[0] = -1.0f;
                          return absl::OkStatus();
                        })
                    .ok());
    for (size_t i = 0; i < engine->Parameters().size(); ++i) {
      engine->Parameters()[i] -= 0.1f * engine->Gradients()[i];
    }
  }
  auto out = engine->Logprobs(batch, 1.0, false);
  ASSERT_TRUE(out.ok());
  EXPECT_GT(out->logprobs[0], std::log(0.95f));
}

TEST(FakeEngineTest, BehaviourLogprobsAgreeWithScoring) {
  auto engine = MakeFakePolicyEngine();
  ASSERT_TRUE(engine->Load(MakeFake(HeadKind::kLanguageModel)).ok());
  GenerateRequest request;
  request.prompts = {{1, 2}, {3}};
  request.prompt_ids = {0, 1};
  request.sample_indices = {0, 0};
  request.max_new_tokens = 4;
  request.sampling.temperature = 0.7;
  auto result = engine->Generate(request);
  ASSERT_TRUE(result.ok()) << result.status();
  TokenBatch batch;
  batch.batch = 1;
  batch.length = 6;
  batch.ids = request.prompts[0];
  batch.ids.insert(batch.ids.end(), result->tokens[0].begin(),
                   result->tokens[0].end());
  batch.lengths = {6};
  batch.scored = {0, 1, 1, 1, 1, 0};
  auto scored = engine->Logprobs(batch, 0.7, false);
  ASSERT_TRUE(scored.ok());
  for (size_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(scored->logprobs[1 + t], result->logprobs[0][t], 1e-5);
  }
}

TEST(FakeEngineTest, ScoreIsTheValueAtTheLastToken) {
  auto engine = MakeFakeTrainEngine();
  ASSERT_TRUE(engine->Load(MakeFake(HeadKind::kScalar)).ok());
  auto values = engine->Values(SmallBatch());
  auto scores = engine->Scores(SmallBatch());
  ASSERT_TRUE(values.ok() && scores.ok());
  EXPECT_EQ((*scores)[0], (*values)[2]);
  EXPECT_EQ((*scores)[1], (*values)[4]);
  EXPECT_EQ((*values)[5], 0.0f);
  EXPECT_EQ(engine->Logprobs(SmallBatch(), 1.0, false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(FakeEngineTest, AnErrorOfTheLossLeavesTheGradientAlone) {
  auto engine = MakeFakeTrainEngine();
  ASSERT_TRUE(engine->Load(MakeFake(HeadKind::kScalar)).ok());
  absl::Status status = engine->AccumulateScores(
      SmallBatch(), [](std::span<const float>, std::span<float> gradient) {
        gradient[0] = 1.0f;
        return absl::AbortedError("group changed");
      });
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  for (float g : engine->Gradients()) EXPECT_EQ(g, 0.0f);
}

}  // namespace
}  // namespace cox
