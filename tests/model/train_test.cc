// Gradients against finite differences of the float64 forward pass.

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

constexpr double kTemperature = 0.8;

// Arbitrary but fixed coefficients of the losses below.
double LogprobWeight(size_t i) { return std::cos(1.0 + 2.0 * double(i)); }
double EntropyWeight(size_t i) { return 0.5 * std::sin(0.3 + double(i)); }

// The batch of SmallBatch() as a float64 request.
ModelForwardRequest AsRequest(const ModelConfig& config,
                              const TokenBatch& batch) {
  ModelForwardRequest request;
  request.config = config;
  request.parameters = SineParameters(config, 1.3, 0.7);
  request.batch = batch.batch;
  request.length = batch.length;
  request.temperature = kTemperature;
  auto convert = [](const std::vector<int32_t>& ids,
                    const std::vector<int32_t>& lengths, int64_t length,
                    std::vector<int64_t>* out, std::vector<uint8_t>* mask) {
    for (size_t i = 0; i < ids.size(); ++i) {
      const size_t row = i / static_cast<size_t>(length);
      const bool real =
          static_cast<int64_t>(i) % length < int64_t{lengths[row]};
      out->push_back(ids[i]);
      mask->push_back(real ? 1 : 0);
    }
  };
  convert(batch.ids, batch.lengths, batch.length, &request.ids, &request.mask);
  request.instruction_length = batch.instruction_length;
  convert(batch.instruction_ids, batch.instruction_lengths,
          batch.instruction_length, &request.instruction_ids,
          &request.instruction_mask);
  return request;
}

double EntropyOf(const double* z, size_t n) {
  double top = z[0], sum = 0, weighted = 0;
  for (size_t k = 0; k < n; ++k) top = std::max(top, z[k]);
  for (size_t k = 0; k < n; ++k) {
    const double x = (z[k] - top) / kTemperature;
    sum += std::exp(x);
    weighted += std::exp(x) * x;
  }
  return std::log(sum) - weighted / sum;
}

double LogprobLossOf(const ModelForwardRequest& request,
                     const TokenBatch& batch) {
  auto result = ModelForward(request);
  EXPECT_THAT(result, IsOk());
  double loss = 0;
  for (size_t i = 0; i < batch.scored.size(); ++i) {
    if (batch.scored[i] == 0) continue;
    loss += LogprobWeight(i) * result->logprob[i] +
            EntropyWeight(i) * EntropyOf(result->logits.data() + 11 * i, 11);
  }
  return loss;
}

double ScalarLossOf(const ModelForwardRequest& request, bool scores) {
  auto result = ModelForward(request);
  EXPECT_THAT(result, IsOk());
  const std::vector<double>& out = scores ? result->score : result->values;
  double loss = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    if (scores || request.mask[i] != 0) loss += LogprobWeight(i) * out[i];
  }
  return loss;
}

// Compares three elements of every tensor.
void CompareGradients(
    TrainEngine& engine, ModelForwardRequest request,
    const std::function<double(const ModelForwardRequest&)>& loss) {
  const Manifest& layout = engine.layout();
  for (size_t k = 0; k < layout.tensors.size(); ++k) {
    SCOPED_TRACE(layout.tensors[k].name);
    std::vector<double>& values = request.parameters[k];
    for (size_t n : {size_t{0}, values.size() / 2, values.size() - 1}) {
      const double kept = values[n];
      values[n] = kept + 1e-5;
      const double up = loss(request);
      values[n] = kept - 1e-5;
      const double down = loss(request);
      values[n] = kept;
      const double expected = (up - down) / 2e-5;
      const float found =
          engine.Gradients()[layout.tensors[k].offset / sizeof(float) + n];
      EXPECT_NEAR(found, expected, 2e-5 * std::max(1.0, std::abs(expected)))
          << "element " << n;
    }
  }
}

absl::Status WeightedLoss(const LogprobOutput& out, LogprobGradient* gradient) {
  gradient->entropies.resize(out.logprobs.size());
  for (size_t i = 0; i < out.logprobs.size(); ++i) {
    gradient->logprobs[i] = static_cast<float>(LogprobWeight(i));
    gradient->entropies[i] = static_cast<float>(EntropyWeight(i));
  }
  return absl::OkStatus();
}

TEST(TrainEngineTest, LogprobGradientsMatchFiniteDifferences) {
  for (const std::string& name : TinyNames()) {
    for (bool fused : {true, false}) {
      SCOPED_TRACE(name + (fused ? " fused" : " plain"));
      const ModelConfig config = TinyConfig(name);
      EngineOptions options;
      options.fused_attention = fused;
      // Plain: logits do not fit and are computed twice.
      if (!fused) options.max_logit_elements = 44;
      auto engine = LoadedTrainEngine(SineSnapshot(config), options);
      const TokenBatch batch = SmallBatch(config);
      ASSERT_OK(
          engine->AccumulateLogprobs(batch, kTemperature, true, WeightedLoss));
      CompareGradients(*engine, AsRequest(config, batch),
                       [&](const ModelForwardRequest& request) {
                         return LogprobLossOf(request, batch);
                       });
    }
  }
}

TEST(TrainEngineTest, ScalarGradientsMatchFiniteDifferences) {
  for (const std::string& name : TinyNames()) {
    for (bool scores : {true, false}) {
      SCOPED_TRACE(name + (scores ? " scores" : " values"));
      ModelConfig config = TinyConfig(name);
      config.head = HeadKind::kScalar;
      config.score_bias = scores;
      auto engine = LoadedTrainEngine(SineSnapshot(config));
      const TokenBatch batch = SmallBatch(config);
      auto loss = [](std::span<const float>, std::span<float> gradient) {
        // Also at padding, where it must not count.
        for (size_t i = 0; i < gradient.size(); ++i) {
          gradient[i] = static_cast<float>(LogprobWeight(i));
        }
        return absl::OkStatus();
      };
      ASSERT_OK(scores ? engine->AccumulateScores(batch, loss)
                       : engine->AccumulateValues(batch, loss));
      CompareGradients(*engine, AsRequest(config, batch),
                       [&](const ModelForwardRequest& request) {
                         return ScalarLossOf(request, scores);
                       });
    }
  }
}

TEST(TrainEngineTest, GradientsAddUpAndAreZeroedTogether) {
  const ModelConfig config = TinyConfig("gpt2");
  auto engine = LoadedTrainEngine(SineSnapshot(config));
  const TokenBatch batch = SmallBatch(config);
  ASSERT_OK(engine->AccumulateLogprobs(batch, 1.0, true, WeightedLoss));
  std::vector<float> once(engine->Gradients().begin(),
                          engine->Gradients().end());
  ASSERT_OK(engine->AccumulateLogprobs(batch, 1.0, true, WeightedLoss));
  for (size_t i = 0; i < once.size(); ++i) {
    ASSERT_NEAR(engine->Gradients()[i], 2 * once[i], 1e-5);
  }
  engine->ZeroGradients();
  for (float g : engine->Gradients()) ASSERT_EQ(g, 0.0f);
  ASSERT_OK(engine->AccumulateLogprobs(batch, 1.0, true, WeightedLoss));
  EXPECT_EQ(std::vector<float>(engine->Gradients().begin(),
                               engine->Gradients().end()),
            once);
}

TEST(TrainEngineTest, PaddingDoesNotReachTheGradient) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    auto engine = LoadedTrainEngine(SineSnapshot(config));
    TokenBatch batch = SmallBatch(config);
    ASSERT_OK(engine->AccumulateLogprobs(batch, 1.0, true, WeightedLoss));
    std::vector<float> clean(engine->Gradients().begin(),
                             engine->Gradients().end());
    for (int32_t& id : batch.ids) id = id < 0 ? 5 : id;
    for (int32_t& id : batch.instruction_ids) id = id < 0 ? 5 : id;
    engine->ZeroGradients();
    ASSERT_OK(engine->AccumulateLogprobs(batch, 1.0, true, WeightedLoss));
    EXPECT_EQ(std::vector<float>(engine->Gradients().begin(),
                                 engine->Gradients().end()),
              clean);
  }
}

TEST(TrainEngineTest, NothingScoredGivesZeroGradient) {
  auto engine = LoadedTrainEngine(SineSnapshot(TinyConfig("gpt2")));
  TokenBatch batch = SmallBatch(TinyConfig("gpt2"));
  batch.scored.assign(batch.scored.size(), 0);
  ASSERT_OK(engine->AccumulateLogprobs(batch, 1.0, false, WeightedLoss));
  for (float g : engine->Gradients()) ASSERT_EQ(g, 0.0f);
}

TEST(TrainEngineTest, ErrorOfTheLossIsReturnedAndNothingAccumulates) {
  auto engine = LoadedTrainEngine(SineSnapshot(TinyConfig("gpt2")));
  const TokenBatch batch = SmallBatch(TinyConfig("gpt2"));
  EXPECT_THAT(engine->AccumulateLogprobs(
                  batch, 1.0, false,
                  [](const LogprobOutput&, LogprobGradient* gradient) {
                    gradient->logprobs[0] = 1.0f;
                    return absl::AbortedError("group changed");
                  }),
              StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(engine->AccumulateLogprobs(
                  batch, 1.0, false,
                  [](const LogprobOutput&, LogprobGradient* gradient) {
                    gradient->logprobs.pop_back();
                    return absl::OkStatus();
                  }),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("expected 10 gradients, found 9")));
  for (float g : engine->Gradients()) ASSERT_EQ(g, 0.0f);
}

TEST(TrainEngineTest, StepsOnTheFlatBufferChangeTheModel) {
  const ModelConfig config = TinyConfig("llama");
  auto engine = LoadedTrainEngine(SineSnapshot(config));
  const TokenBatch batch = SmallBatch(config);
  auto total = [&] {
    auto out = engine->Logprobs(batch, 1.0, false);
    EXPECT_THAT(out, IsOk());
    double sum = 0;
    for (float x : out->logprobs) sum += double{x};
    return sum;
  };
  const double before = total();
  for (int step = 0; step < 50; ++step) {
    engine->ZeroGradients();
    ASSERT_OK(engine->AccumulateLogprobs(
        batch, 1.0, false,
        [](const LogprobOutput& out, LogprobGradient* gradient) {
          gradient->logprobs.assign(out.logprobs.size(), -1.0f);
          return absl::OkStatus();
        }));
    for (size_t i = 0; i < engine->Parameters().size(); ++i) {
      engine->Parameters()[i] -= 0.05f * engine->Gradients()[i];
    }
  }
  EXPECT_GT(total(), before + 5.0);
  // The stepped weights are a snapshot that another engine reads alike.
  ASSERT_OK_AND_ASSIGN(auto snapshot, SnapshotFromFloats(engine->layout(),
                                                         engine->Parameters()));
  ASSERT_OK_AND_ASSIGN(auto scorer, MakeScoreEngine(EngineOptions()));
  ASSERT_OK(scorer->Load(snapshot));
  ASSERT_OK_AND_ASSIGN(LogprobOutput a, scorer->Logprobs(batch, 1.0, false));
  ASSERT_OK_AND_ASSIGN(LogprobOutput b, engine->Logprobs(batch, 1.0, false));
  EXPECT_EQ(a.logprobs, b.logprobs);
}

}  // namespace
}  // namespace cox
