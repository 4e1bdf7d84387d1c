// What a GPU runs, run on the CPU: LibTorch's operators instead of our loops,
// a trainer's state apart from the host's, decoding on static tensors.

#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/comm/inprocess.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

EngineOptions Portable(const std::string& dtype = "fp32") {
  EngineOptions options;
  options.portable = true;
  options.dtype = dtype;
  return options;
}

absl::Status Loss(const LogprobOutput& out, LogprobGradient* gradient) {
  gradient->entropies.resize(out.logprobs.size());
  for (size_t i = 0; i < out.logprobs.size(); ++i) {
    gradient->logprobs[i] = static_cast<float>(std::cos(1.0 + double(i)));
    gradient->entropies[i] = static_cast<float>(std::sin(2.0 + double(i)));
  }
  return absl::OkStatus();
}

std::vector<float> Accumulated(TrainEngine& engine, const TokenBatch& batch) {
  engine.ZeroGradients();
  const bool scalar = engine.config().head == HeadKind::kScalar;
  const absl::Status done =
      scalar ? engine.AccumulateScores(
                   batch,
                   [](std::span<const float>, std::span<float> gradient) {
                     std::fill(gradient.begin(), gradient.end(), 0.7f);
                     return absl::OkStatus();
                   })
             : engine.AccumulateLogprobs(batch, 0.8, true, Loss);
  EXPECT_OK(done);
  return {engine.Gradients().begin(), engine.Gradients().end()};
}

void ExpectNear(const std::vector<float>& a, const std::vector<float>& b,
                double bound) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_NEAR(a[i], b[i], bound * std::max(1.0, std::abs(double{b[i]}))) << i;
  }
}

TEST(PortableTest, PassesAndGradientsAgreeWithTheLoops) {
  for (const std::string& name : TinyNames()) {
    for (const HeadKind head : {HeadKind::kLanguageModel, HeadKind::kScalar}) {
      for (const int64_t logits : {int64_t{1} << 24, int64_t{44}}) {
        SCOPED_TRACE(name);
        ModelConfig config = TinyConfig(name);
        config.head = head;
        EngineOptions options = Portable();
        options.max_logit_elements = logits;  // 44: computed twice, in chunks
        auto loops = LoadedTrainEngine(SineSnapshot(config));
        auto portable = LoadedTrainEngine(SineSnapshot(config), options);
        ASSERT_NE(portable->device(), nullptr);
        ASSERT_EQ(loops->device(), nullptr);
        const TokenBatch batch = SmallBatch(config);
        ExpectNear(Accumulated(*portable, batch), Accumulated(*loops, batch),
                   1e-5);
        if (head == HeadKind::kScalar) {
          ASSERT_OK_AND_ASSIGN(const auto a, portable->Values(batch));
          ASSERT_OK_AND_ASSIGN(const auto b, loops->Values(batch));
          ExpectNear(a, b, 1e-5);
          continue;
        }
        ASSERT_OK_AND_ASSIGN(const auto a, portable->Logprobs(batch, 1, true));
        ASSERT_OK_AND_ASSIGN(const auto b, loops->Logprobs(batch, 1, true));
        ExpectNear(a.logprobs, b.logprobs, 1e-5);
        ExpectNear(a.entropies, b.entropies, 1e-5);
      }
    }
  }
}

TEST(PortableTest, UpdatesOnTheDeviceAreThoseOfTheHostOptimizer) {
  const ModelConfig config = TinyConfig("llama");
  auto engine = LoadedTrainEngine(SineSnapshot(config), Portable());
  DeviceState& device = *engine->device();
  const TokenBatch batch = SmallBatch(config);
  AdamOptions options;
  options.weight_decay = 0.1;
  std::vector<float> p(engine->Parameters().begin(),
                       engine->Parameters().end());
  std::vector<float> m(p.size(), 0.0f), v(p.size(), 0.0f);
  const auto group = MakeSingleRank();
  for (int64_t t = 1; t <= 3; ++t) {
    const std::vector<float> g = Accumulated(*engine, batch);
    ASSERT_OK(device.StartAllReduce(*group, 0, g.size()));
    ASSERT_OK(device.WaitAllReduce(*group));
    ASSERT_OK_AND_ASSIGN(const double squares, device.SquaredGradientNorm());
    EXPECT_EQ(squares, SquaredNorm(std::span<const float>(g)));
    // The gradient of the device's weights, so that errors do not add up.
    const AdamStep step = {.step = t, .lr = 1e-2, .grad_scale = 0.5};
    AdamUpdate<float>(options, step, p, g, m, v);
    const AdamFactors<float> factors = AdamFactorsOf<float>(options, step);
    const size_t half = p.size() / 2;
    ASSERT_OK(device.AdamUpdate(0, half, factors));
    ASSERT_OK(device.AdamUpdate(half, p.size() - half, factors));
  }
  // Vectorised otherwise, so rounded otherwise.
  ExpectNear({engine->Parameters().begin(), engine->Parameters().end()}, p,
             1e-6);
  std::vector<float> m2(p.size()), v2(p.size());
  ASSERT_OK(device.ReadMoments(m2, v2));
  ExpectNear(m2, m, 1e-6);
  ExpectNear(v2, v, 1e-6);
  EXPECT_GT(*std::max_element(v2.begin(), v2.end()), 1e-3);
}

TEST(PortableTest, KeptGradientsAreAddedAndHostWritesReachTheDevice) {
  const ModelConfig config = TinyConfig("gpt2");
  auto engine = LoadedTrainEngine(SineSnapshot(config), Portable());
  DeviceState& device = *engine->device();
  const TokenBatch batch = SmallBatch(config);
  const std::vector<float> once = Accumulated(*engine, batch);
  ASSERT_OK(device.KeepGradients(1));
  Accumulated(*engine, batch);
  const size_t cut = once.size() / 3;
  ASSERT_OK(device.AddKeptGradients(1, cut, once.size() - cut));
  ASSERT_EQ(engine->Gradients()[cut - 1], once[cut - 1]);
  ASSERT_OK(device.AddKeptGradients(1, 0, cut));
  for (size_t i = 0; i < once.size(); ++i) {
    ASSERT_EQ(engine->Gradients()[i], once[i] + once[i]);
  }
  ASSERT_OK_AND_ASSIGN(const auto before, engine->Logprobs(batch, 1, false));
  for (float& w : engine->Parameters()) w *= 1.5f;
  ASSERT_OK_AND_ASSIGN(const auto after, engine->Logprobs(batch, 1, false));
  EXPECT_NE(after.logprobs, before.logprobs);
  ASSERT_OK(device.PoisonGradients());
  ASSERT_OK_AND_ASSIGN(const double squares, device.SquaredGradientNorm());
  EXPECT_TRUE(std::isnan(squares));
}

TEST(StaticGenerateTest, DrawsTheTokensOfTheLoops) {
  for (const std::string& name : TinyNames()) {
    const ModelConfig config = TinyConfig(name);
    SCOPED_TRACE(name);
    ASSERT_OK_AND_ASSIGN(auto loops, MakePolicyEngine(EngineOptions()));
    ASSERT_OK(loops->Load(SineSnapshot(config)));
    ASSERT_OK_AND_ASSIGN(auto portable, MakePolicyEngine(Portable()));
    ASSERT_OK(portable->Load(SineSnapshot(config)));
    for (size_t rows : {1, 5, 16}) {
      const GenerateRequest request = SomeRequest(config, rows);
      ASSERT_OK_AND_ASSIGN(const auto a, loops->Generate(request));
      ASSERT_OK_AND_ASSIGN(const auto b, portable->Generate(request));
      EXPECT_EQ(a.tokens, b.tokens);
      EXPECT_EQ(a.finish, b.finish);
      for (size_t r = 0; r < rows; ++r) {
        ExpectNear(b.logprobs[r], a.logprobs[r], 1e-5);
      }
    }
  }
}

TEST(StaticGenerateTest, Bf16LogprobsAgreeWithTheTrainer) {
  const ModelConfig config = TinyConfig("llama");
  ASSERT_OK_AND_ASSIGN(auto actor, MakePolicyEngine(Portable("bf16")));
  ASSERT_OK(actor->Load(SineSnapshot(config)));
  auto learner = LoadedTrainEngine(SineSnapshot(config), Portable("bf16"));
  const GenerateRequest request = [&] {
    GenerateRequest plain = SomeRequest(config, 8);
    plain.sampling.top_p = 1;
    return plain;
  }();
  ASSERT_OK_AND_ASSIGN(const auto rollout, actor->Generate(request));
  for (size_t r = 0; r < request.prompts.size(); ++r) {
    std::vector<int32_t> ids = request.prompts[r];
    ids.insert(ids.end(), rollout.tokens[r].begin(), rollout.tokens[r].end());
    ASSERT_OK_AND_ASSIGN(const auto out,
                         learner->Logprobs(MakeBatch({ids}, {}), 1.0, false));
    for (size_t t = 0; t < rollout.tokens[r].size(); ++t) {
      EXPECT_NEAR(out.logprobs[request.prompts[r].size() - 1 + t],
                  rollout.logprobs[r][t], 2e-2);
    }
  }
}

}  // namespace
}  // namespace cox
