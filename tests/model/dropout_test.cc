// Dropout: what is dropped, where, and that it is a function of the keys.

#include "lib/model/dropout.h"

#include <cmath>
#include <utility>

#include "ATen/ops/ones.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "lib/model/kernels.h"
#include "lib/model/network.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kTemperature = 0.9;

TEST(DropoutFactorsTest, ArePhiloxBitsBelowTheThreshold) {
  DropoutFactorsArgs args;
  args.key = 0x0123456789abcdef;
  args.place = 21;
  args.stack = 1;
  args.threshold = 20000;
  args.scale = 1.5f;
  args.n = 300;  // two groups and a part
  std::vector<float> found(301, -1.0f);
  DropoutFactors(args, found.data());
  for (uint32_t i = 0; i < 300; ++i) {
    const uint32_t group = i / 128;
    const uint32_t k = i % 128 / 16;
    const std::array<uint32_t, 4> words =
        Philox4x32({16 * group + i % 16, 0, 21, 1}, {0x89abcdef, 0x01234567});
    const uint32_t bits = words[k / 2] >> (16 * (k % 2)) & 0xffff;
    EXPECT_EQ(found[i], bits < 20000 ? 0.0f : 1.5f) << i;
  }
  EXPECT_EQ(found[300], -1.0f);
}

Dropout::Options OneSequence(double rate, uint64_t key, int32_t length) {
  Dropout::Options options;
  options.rate = rate;
  options.keys = {key};
  options.lengths = {length};
  return options;
}

std::vector<float> Ones(const Dropout& dropout, int64_t rows, int64_t width,
                        int64_t layer, DropoutSite site) {
  const at::Tensor out =
      dropout.Apply(at::ones({rows, width}), layer, site).contiguous();
  const float* data = out.const_data_ptr<float>();
  return std::vector<float>(data, data + rows * width);
}

TEST(DropoutTest, HasMeanOneAndTheVarianceOfItsRate) {
  for (const double rate : {0.1, 0.5, 0.9}) {
    const Dropout dropout(OneSequence(rate, 77, 4000));
    const std::vector<float> factors =
        Ones(dropout, 4000, 100, 0, DropoutSite::kSelfOutput);
    const double n = static_cast<double>(factors.size());
    double sum = 0, squares = 0, dropped = 0;
    for (const float x : factors) {
      sum += double{x};
      squares += double{x} * double{x};
      dropped += x == 0 ? 1 : 0;
    }
    // Var = p / (1 - p); four standard errors of each.
    const double variance = rate / (1 - rate);
    EXPECT_NEAR(sum / n, 1.0, 4 * std::sqrt(variance / n)) << rate;
    EXPECT_NEAR(squares / n - 1, variance, 0.02 * variance + 1e-3) << rate;
    EXPECT_NEAR(dropped / n, rate, 4 * std::sqrt(rate * (1 - rate) / n));
  }
}

TEST(DropoutTest, PlacesAndKeysAreIndependent) {
  const std::vector<float> base = Ones(Dropout(OneSequence(0.5, 5, 500)), 500,
                                       40, 1, DropoutSite::kSelfOutput);
  Dropout::Options encoder = OneSequence(0.5, 5, 500);
  encoder.stack = 1;
  const std::vector<std::vector<float>> others = {
      Ones(Dropout(OneSequence(0.5, 6, 500)), 500, 40, 1,
           DropoutSite::kSelfOutput),
      Ones(Dropout(OneSequence(0.5, 5, 500)), 500, 40, 2,
           DropoutSite::kSelfOutput),
      Ones(Dropout(OneSequence(0.5, 5, 500)), 500, 40, 1,
           DropoutSite::kFeedForward),
      Ones(Dropout(encoder), 500, 40, 1, DropoutSite::kSelfOutput)};
  for (const std::vector<float>& other : others) {
    double both = 0;
    for (size_t i = 0; i < base.size(); ++i) {
      both += (base[i] != 0 && other[i] != 0) ? 1 : 0;
    }
    // A quarter, within four standard errors.
    EXPECT_NEAR(both / 20000, 0.25, 4 * std::sqrt(0.25 * 0.75 / 20000));
  }
}

TEST(DropoutTest, ASequenceIsDroppedAlikeInEveryBatch) {
  const Dropout alone(OneSequence(0.3, 9, 5));
  Dropout::Options several;
  several.rate = 0.3;
  several.keys = {4, 9, 5};
  several.lengths = {7, 5, 2};
  const Dropout packed(several);
  several.stride = 7;
  const Dropout grid(several);
  const DropoutSite site = DropoutSite::kFeedForward;
  const std::vector<float> expected = Ones(alone, 5, 6, 2, site);
  const std::vector<float> in_pack = Ones(packed, 16, 6, 2, site);
  const std::vector<float> in_grid = Ones(grid, 21, 6, 2, site);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(in_pack[7 * 6 + i], expected[i]);
    EXPECT_EQ(in_grid[7 * 6 + i], expected[i]);
  }
  // Rows of no sequence.
  for (size_t i = 14 * 6; i < in_pack.size(); ++i) EXPECT_EQ(in_pack[i], 0);
  for (size_t i = 12 * 6; i < 14 * 6; ++i) EXPECT_EQ(in_grid[i], 0);

  const auto probabilities = [](const Dropout& dropout, int64_t batch,
                                int64_t length) {
    return dropout.Factors(at::ones({batch, 2, length, length}), 0,
                           DropoutSite::kSelfProbabilities);
  };
  const at::Tensor square = probabilities(alone, 1, 5);
  const at::Tensor padded = probabilities(packed, 3, 7);
  EXPECT_TRUE(
      padded.narrow(0, 1, 1).narrow(2, 0, 5).narrow(3, 0, 5).equal(square));
  EXPECT_FALSE(square.select(1, 0).equal(square.select(1, 1))) << "heads";
}

// Notes where a network drops.
class Recorder : public AttentionBackend {
 public:
  at::Tensor Self(const Input& input) override { return input.q; }
  at::Tensor Cross(const Input& input) override { return input.q; }
  at::Tensor Drop(const at::Tensor& x, int64_t layer,
                  DropoutSite site) override {
    places.push_back({layer, site});
    return x;
  }
  std::vector<std::pair<int64_t, DropoutSite>> places;
};

TEST(DropoutTest, FamiliesDropWhereTheirReferenceDoes) {
  const auto network = [](const ModelConfig& config) {
    std::vector<at::Tensor> parameters;
    for (const auto& [name, shape] : ParameterShapes(config)) {
      parameters.push_back(at::ones(shape));
    }
    return Network(config, std::move(parameters));
  };
  TokenRows rows = {at::ones({3}, at::kLong), at::ones({3}, at::kLong)};
  ModelConfig config = TinyConfig("gpt2");
  config.layers = 2;
  Recorder gpt2;
  network(config).Decode(rows, at::Tensor(), gpt2);
  using enum DropoutSite;
  EXPECT_THAT(gpt2.places,
              ElementsAre(std::pair(0, kEmbedding), std::pair(0, kSelfOutput),
                          std::pair(0, kFeedForward), std::pair(1, kSelfOutput),
                          std::pair(1, kFeedForward)));
  Recorder llama;
  network(TinyConfig("llama")).Decode(rows, at::Tensor(), llama);
  EXPECT_THAT(llama.places, ElementsAre());
  config = TinyConfig("encdec");
  config.layers = config.encoder_layers = 1;
  Recorder encoder, decoder;
  const Network encdec = network(config);
  const at::Tensor memory = encdec.Encode(rows, encoder);
  encdec.Decode(rows, memory, decoder);
  EXPECT_THAT(encoder.places,
              ElementsAre(std::pair(0, kEmbedding), std::pair(0, kSelfOutput),
                          std::pair(0, kHidden), std::pair(0, kFeedForward)));
  EXPECT_THAT(decoder.places,
              ElementsAre(std::pair(0, kEmbedding), std::pair(0, kSelfOutput),
                          std::pair(0, kCrossOutput), std::pair(0, kHidden),
                          std::pair(0, kFeedForward)));
}

double Weight(size_t i) { return std::cos(1.0 + 2.0 * double(i)); }

struct Pass {
  std::vector<float> outputs;
  std::vector<float> gradients;
  double loss = 0;  // Σ Weight(i) output[i] over scored entries
};

Pass TrainingPass(TrainEngine& engine, const TokenBatch& batch) {
  Pass pass;
  engine.ZeroGradients();
  EXPECT_OK(engine.AccumulateLogprobs(
      batch, kTemperature, /*want_entropy=*/false,
      [&](const LogprobOutput& out, LogprobGradient* gradient) {
        pass.outputs = out.logprobs;
        for (size_t i = 0; i < out.logprobs.size(); ++i) {
          gradient->logprobs[i] = static_cast<float>(Weight(i));
          pass.loss += Weight(i) * double{out.logprobs[i]};
        }
        return absl::OkStatus();
      }));
  pass.gradients.assign(engine.Gradients().begin(), engine.Gradients().end());
  return pass;
}

TokenBatch Dropping(const ModelConfig& config, double rate,
                    std::vector<uint64_t> keys) {
  TokenBatch batch = SmallBatch(config);
  batch.dropout = rate;
  batch.dropout_keys = std::move(keys);
  return batch;
}

// Every 23rd element of the parameters against central differences of the
// float32 forward pass, with the same choices.
TEST(DropoutTest, GradientsMatchFiniteDifferences) {
  for (const std::string name : {"gpt2", "llama", "encdec"}) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    auto engine = LoadedTrainEngine(SineSnapshot(config));
    const TokenBatch batch = Dropping(config, 0.3, {11, 12});
    const Pass pass = TrainingPass(*engine, batch);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < engine->Parameters().size(); i += 23) {
      float& parameter = engine->Parameters()[i];
      const float kept = parameter;
      const float up = kept + 0.003f;
      const float down = kept - 0.003f;
      parameter = up;
      const double high = TrainingPass(*engine, batch).loss;
      parameter = down;
      const double low = TrainingPass(*engine, batch).loss;
      parameter = kept;
      const double expected = (high - low) / (double{up} - double{down});
      difference += std::pow(double{pass.gradients[i]} - expected, 2);
      norm += expected * expected;
    }
    EXPECT_GT(norm, 1e-2);
    EXPECT_LE(std::sqrt(difference / norm), 5e-3);
  }
}

TEST(DropoutTest, IsAFunctionOfTheKeysAndOfTrainingOnly) {
  for (const std::string name : {"gpt2", "llama", "encdec"}) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    auto engine = LoadedTrainEngine(SineSnapshot(config));
    const TokenBatch batch = Dropping(config, 0.2, {1, 2});
    const Pass pass = TrainingPass(*engine, batch);
    const Pass again = TrainingPass(*engine, batch);
    EXPECT_EQ(again.outputs, pass.outputs);
    EXPECT_EQ(again.gradients, pass.gradients);
    const Pass other = TrainingPass(*engine, Dropping(config, 0.2, {1, 3}));
    EXPECT_NE(other.outputs, pass.outputs);
    // Row 0 has its key still.
    for (int64_t j = 0; j < batch.length; ++j) {
      EXPECT_NEAR(other.outputs[static_cast<size_t>(j)],
                  pass.outputs[static_cast<size_t>(j)], 1e-6);
    }
    TokenBatch off = SmallBatch(config);
    ASSERT_OK_AND_ASSIGN(const LogprobOutput frozen,
                         engine->Logprobs(batch, kTemperature, false));
    ASSERT_OK_AND_ASSIGN(const LogprobOutput expected,
                         engine->Logprobs(off, kTemperature, false));
    EXPECT_EQ(frozen.logprobs, expected.logprobs);
    EXPECT_EQ(TrainingPass(*engine, Dropping(config, 0.0, {})).gradients,
              TrainingPass(*engine, off).gradients);
    EXPECT_NE(pass.outputs, expected.logprobs);
  }
}

TEST(DropoutTest, NeitherPaddingNorTheOtherRowsMatter) {
  for (const std::string name : {"gpt2", "llama", "encdec"}) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    auto engine = LoadedTrainEngine(SineSnapshot(config));
    const TokenBatch batch = Dropping(config, 0.25, {21, 22});
    const Pass pass = TrainingPass(*engine, batch);
    TokenBatch poisoned = batch;
    const auto poison = [](const std::vector<int32_t>& lengths, int64_t length,
                           std::vector<int32_t>* ids) {
      for (size_t i = 0; i < ids->size(); ++i) {
        const size_t row = i / static_cast<size_t>(length);
        if (static_cast<int64_t>(i) % length >= lengths[row]) {
          (*ids)[i] = 1234567;
        }
      }
    };
    poison(batch.lengths, batch.length, &poisoned.ids);
    if (batch.instruction_length > 0) {
      poison(batch.instruction_lengths, batch.instruction_length,
             &poisoned.instruction_ids);
    }
    const Pass same = TrainingPass(*engine, poisoned);
    EXPECT_EQ(same.outputs, pass.outputs);
    EXPECT_EQ(same.gradients, pass.gradients);
    // Each row alone, without padding.
    std::vector<double> sum(pass.gradients.size(), 0.0);
    for (int64_t b = 0; b < batch.batch; ++b) {
      const int64_t length = batch.lengths[static_cast<size_t>(b)];
      const auto from = batch.ids.begin() + b * batch.length;
      std::vector<std::vector<int32_t>> instructions;
      if (batch.instruction_length > 0) {
        const auto begin =
            batch.instruction_ids.begin() + b * batch.instruction_length;
        instructions.push_back(
            {begin, begin + batch.instruction_lengths[static_cast<size_t>(b)]});
      }
      TokenBatch row = MakeBatch({{from, from + length}}, instructions);
      row.dropout = batch.dropout;
      row.dropout_keys = {batch.dropout_keys[static_cast<size_t>(b)]};
      engine->ZeroGradients();
      ASSERT_OK(engine->AccumulateLogprobs(
          row, kTemperature, false,
          [&](const LogprobOutput& out, LogprobGradient* gradient) {
            for (size_t j = 0; j < out.logprobs.size(); ++j) {
              const size_t i = static_cast<size_t>(b * batch.length) + j;
              EXPECT_NEAR(out.logprobs[j], pass.outputs[i], 2e-6);
              gradient->logprobs[j] = static_cast<float>(Weight(i));
            }
            return absl::OkStatus();
          }));
      for (size_t i = 0; i < sum.size(); ++i) {
        sum[i] += double{engine->Gradients()[i]};
      }
    }
    for (size_t i = 0; i < sum.size(); ++i) {
      EXPECT_NEAR(sum[i], pass.gradients[i], 2e-5) << i;
    }
  }
}

TEST(DropoutTest, RecomputedLayersDropTheSame) {
  for (const std::string name : {"gpt2", "encdec"}) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    EngineOptions recompute;
    recompute.recompute = true;
    auto plain = LoadedTrainEngine(SineSnapshot(config));
    auto again = LoadedTrainEngine(SineSnapshot(config), recompute);
    const TokenBatch batch = Dropping(config, 0.25, {21, 22});
    const Pass expected = TrainingPass(*plain, batch);
    const Pass found = TrainingPass(*again, batch);
    EXPECT_EQ(found.outputs, expected.outputs);
    EXPECT_EQ(found.gradients, expected.gradients);
  }
}

TEST(DropoutTest, RefusesARateOrKeysThatDoNotFit) {
  const ModelConfig config = TinyConfig("gpt2");
  EXPECT_THAT(Dropping(config, 1.0, {1, 2}).Validate(config),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("dropout: expected 0 <= p < 1, found 1")));
  EXPECT_THAT(Dropping(config, std::nan(""), {1, 2}).Validate(config),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nan")));
  EXPECT_THAT(Dropping(config, 0.5, {1}).Validate(config),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("dropout_keys: expected 2, found 1")));
}

}  // namespace
}  // namespace cox
