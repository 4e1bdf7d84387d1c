#include "learner/optimizer.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/batching.h"
#include "lib/engine/fake.h"
#include "tests/learner/learner_testing.h"

namespace cox {
namespace {

std::unique_ptr<TrainEngine> MakeEngine() {
  std::unique_ptr<TrainEngine> engine = MakeFakeTrainEngine();
  EXPECT_OK(engine->Load(*FakeSnapshot(FakeModelConfig(5, 4), "policy", 3)));
  engine->ZeroGradients();
  return engine;
}

TEST(FlatOptimizerTest, ReportsTheNormBeforeClipping) {
  auto engine = MakeEngine();
  engine->Gradients()[0] = 3.0f;
  engine->Gradients()[1] = 4.0f;
  ASSERT_OK_AND_ASSIGN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(testing::TestOptimizer(0.1), engine->layout()));
  ASSERT_OK_AND_ASSIGN(const auto update, optimizer.Apply(0, *engine));
  EXPECT_NEAR(update.grad_norm, 5.0, 1e-12);
  EXPECT_FALSE(update.skipped);
}

TEST(FlatOptimizerTest, SkipsANonFiniteGradientAndKeepsItsState) {
  auto engine = MakeEngine();
  const std::vector<float> before(engine->Parameters().begin(),
                                  engine->Parameters().end());
  ASSERT_OK_AND_ASSIGN(
      FlatOptimizer optimizer,
      FlatOptimizer::Create(testing::TestOptimizer(0.1), engine->layout()));
  StateWriter untouched;
  optimizer.Save("o", &untouched);
  ASSERT_OK(PoisonGradient(*engine));
  ASSERT_OK_AND_ASSIGN(const auto update, optimizer.Apply(0, *engine));
  EXPECT_TRUE(update.skipped);
  EXPECT_EQ(before, std::vector<float>(engine->Parameters().begin(),
                                       engine->Parameters().end()));
  StateWriter after;
  optimizer.Save("o", &after);
  EXPECT_EQ(after.Finish(), untouched.Finish());
}

TEST(FlatOptimizerTest, DecaysMatricesOnly) {
  auto engine = MakeEngine();
  OptimizerOptions options = testing::TestOptimizer(0.1);
  options.adam.weight_decay = 0.5;
  ASSERT_OK_AND_ASSIGN(FlatOptimizer optimizer,
                       FlatOptimizer::Create(options, engine->layout()));
  std::fill(engine->Parameters().begin(), engine->Parameters().end(), 1.0f);
  ASSERT_OK(optimizer.Apply(0, *engine));
  for (const TensorInfo& tensor : engine->layout().tensors) {
    const float value = engine->Parameters()[tensor.offset / sizeof(float)];
    // 1 - lr * decay = 0.95 with gradient 0.
    const bool decays = HasWeightDecay(tensor.name, tensor.shape);
    EXPECT_FLOAT_EQ(value, decays ? 0.95f : 1.0f) << tensor.name;
  }
}

}  // namespace
}  // namespace cox
