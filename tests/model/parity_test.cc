// What must change nothing: which rows share a batch, in which order, how far
// they are padded, whether keys and values come from a cache; and the scalings
// of rotary positions.

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "lib/model/rotary.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;

constexpr int32_t kPoison = -777777;

struct Named {
  std::string name;
  ModelConfig config;
};

// All families, and a Llama with each kind of rotary scaling.
std::vector<Named> Models() {
  std::vector<Named> models;
  for (const std::string& name : TinyNames()) {
    models.push_back({name, TinyConfig(name)});
  }
  RopeScaling scaling;
  scaling.factor = 4;
  scaling.original_max_position = 8;
  for (const RopeKind kind : {RopeKind::kLinear, RopeKind::kYarn}) {
    ModelConfig config = TinyConfig("llama");
    config.hidden = 16;
    config.head_dim = 8;
    scaling.kind = kind;
    config.rope_scaling = scaling;
    models.push_back({kind == RopeKind::kLinear ? "linear" : "yarn", config});
  }
  return models;
}

using Rows = std::vector<std::vector<int32_t>>;

Rows RandomRows(const ModelConfig& config, const std::string& stream,
                size_t count, uint64_t most) {
  Rows rows;
  CounterRng rng(5, stream);
  for (size_t r = 0; r < count; ++r) {
    rows.emplace_back(1 + rng.NextBelow(most));
    for (int32_t& id : rows.back()) {
      id = static_cast<int32_t>(
          rng.NextBelow(static_cast<uint64_t>(config.vocab_size)));
    }
  }
  return rows;
}

struct Sequences {
  Rows ids;
  Rows instructions;  // encoder-decoder only
};

Sequences MakeSequences(const ModelConfig& config) {
  Sequences out;
  out.ids = RandomRows(config, "ids", 9, 12);
  if (config.family == ModelFamily::kInstructEncdec) {
    out.instructions = RandomRows(config, "instructions", 9, 7);
  }
  return out;
}

// The rows of `order`, padded to `extra` columns more than the longest.
TokenBatch Batch(const Sequences& all, const std::vector<size_t>& order,
                 size_t extra) {
  Sequences some;
  for (const size_t row : order) {
    some.ids.push_back(all.ids[row]);
    if (!all.instructions.empty()) {
      some.instructions.push_back(all.instructions[row]);
    }
  }
  TokenBatch batch = MakeBatch(some.ids, some.instructions);
  TokenBatch wide = batch;
  wide.length += static_cast<int64_t>(extra);
  const auto width = static_cast<size_t>(wide.length);
  wide.ids.assign(order.size() * width, kPoison);
  wide.scored.assign(order.size() * width, 0);
  for (size_t b = 0; b < order.size(); ++b) {
    for (size_t j = 0; j < some.ids[b].size(); ++j) {
      wide.ids[b * width + j] = some.ids[b][j];
      wide.scored[b * width + j] = j + 1 < some.ids[b].size() ? 1 : 0;
    }
  }
  return wide;
}

std::vector<std::vector<size_t>> Orders(size_t rows) {
  std::vector<std::vector<size_t>> orders;
  for (uint64_t trial = 0; trial < 4; ++trial) {
    std::vector<size_t> order;
    for (const int64_t row :
         Permutation(static_cast<int64_t>(rows), trial, "rows")) {
      order.push_back(static_cast<size_t>(row));
    }
    order.resize(trial == 0 ? rows : 2 + trial);
    orders.push_back(order);
  }
  for (size_t row = 0; row < rows; ++row) orders.push_back({row});
  return orders;
}

// Element j of row b of each order against the same place of the whole batch.
template <typename Compute>
void ExpectSameRows(const Sequences& all, Compute compute) {
  std::vector<size_t> every;
  for (size_t r = 0; r < all.ids.size(); ++r) every.push_back(r);
  const TokenBatch whole = Batch(all, every, 0);
  const std::vector<float> expected = compute(whole);
  size_t extra = 0;
  for (const std::vector<size_t>& order : Orders(all.ids.size())) {
    const TokenBatch batch = Batch(all, order, extra++ % 4);
    const std::vector<float> found = compute(batch);
    ASSERT_EQ(found.size(), batch.ids.size());
    for (size_t b = 0; b < order.size(); ++b) {
      for (size_t j = 0; j < all.ids[order[b]].size(); ++j) {
        EXPECT_NEAR(found[b * static_cast<size_t>(batch.length) + j],
                    expected[order[b] * static_cast<size_t>(whole.length) + j],
                    1e-5)
            << "row " << order[b] << ", token " << j;
      }
    }
  }
}

TEST(ParityTest, LogprobsAndEntropiesDoNotDependOnTheBatch) {
  for (const Named& model : Models()) {
    for (const bool fused : {true, false}) {
      SCOPED_TRACE(model.name + (fused ? " fused" : " plain"));
      EngineOptions options;
      options.fused_attention = fused;
      ASSERT_OK_AND_ASSIGN(const auto engine, MakeScoreEngine(options));
      ASSERT_OK(engine->Load(SineSnapshot(model.config)));
      for (const bool entropy : {false, true}) {
        ExpectSameRows(MakeSequences(model.config),
                       [&](const TokenBatch& batch) {
                         auto out = engine->Logprobs(batch, 0.8, true);
                         EXPECT_THAT(out, IsOk());
                         if (!out.ok()) return std::vector<float>();
                         return entropy ? out->entropies : out->logprobs;
                       });
      }
    }
  }
}

TEST(ParityTest, ValuesDoNotDependOnTheBatch) {
  for (Named& model : Models()) {
    SCOPED_TRACE(model.name);
    model.config.head = HeadKind::kScalar;
    ASSERT_OK_AND_ASSIGN(const auto engine, MakeScoreEngine(EngineOptions()));
    ASSERT_OK(engine->Load(SineSnapshot(model.config)));
    ExpectSameRows(MakeSequences(model.config), [&](const TokenBatch& batch) {
      auto out = engine->Values(batch);
      EXPECT_THAT(out, IsOk());
      return out.value_or(std::vector<float>());
    });
  }
}

// Σ log-probs: the gradient of a batch is the sum of its rows' gradients.
TEST(ParityTest, GradientsAreThoseOfTheRowsAddedUp) {
  const TrainEngine::LogprobLoss loss = [](const LogprobOutput& output,
                                           LogprobGradient* gradient) {
    gradient->logprobs.assign(output.logprobs.size(), 1.0f);
    return absl::OkStatus();
  };
  for (const Named& model : Models()) {
    SCOPED_TRACE(model.name);
    const auto engine = LoadedTrainEngine(SineSnapshot(model.config));
    const Sequences all = MakeSequences(model.config);
    const auto gradient = [&](const std::vector<std::vector<size_t>>& parts) {
      engine->ZeroGradients();
      for (const std::vector<size_t>& part : parts) {
        EXPECT_OK(
            engine->AccumulateLogprobs(Batch(all, part, 2), 0.8, false, loss));
      }
      const std::span<float> g = engine->Gradients();
      return std::vector<float>(g.begin(), g.end());
    };
    const std::vector<float> whole = gradient({{0, 1, 2, 3, 4, 5, 6, 7, 8}});
    const std::vector<float> alone =
        gradient({{8}, {3}, {0}, {1}, {2}, {7}, {5}, {6}, {4}});
    const std::vector<float> mixed =
        gradient({{4, 1, 8}, {0, 2}, {7, 6, 5, 3}});
    double scale = 0;
    for (const float x : whole) scale = std::max(scale, std::abs(double{x}));
    EXPECT_GT(scale, 0.1);
    for (size_t i = 0; i < whole.size(); ++i) {
      EXPECT_NEAR(alone[i], whole[i], 1e-5 * std::max(1.0, scale));
      EXPECT_NEAR(mixed[i], whole[i], 1e-5 * std::max(1.0, scale));
    }
  }
}

TEST(ParityTest, CachedDecodingAgreesWithTheFullForward) {
  for (const Named& model : Models()) {
    for (const bool fused : {true, false}) {
      SCOPED_TRACE(model.name + (fused ? " fused" : " plain"));
      EngineOptions options;
      options.fused_attention = fused;
      ASSERT_OK_AND_ASSIGN(const auto engine, MakePolicyEngine(options));
      ASSERT_OK(engine->Load(SineSnapshot(model.config)));
      GenerateRequest request;
      request.prompts = RandomRows(model.config, "prompts", 6, 5);
      if (model.config.family == ModelFamily::kInstructEncdec) {
        request.instructions = RandomRows(model.config, "asks", 6, 6);
      }
      request.prompt_ids = {0, 1, 2, 3, 4, 5};
      request.sample_indices.assign(6, 0);
      request.max_new_tokens = 10;
      ASSERT_OK_AND_ASSIGN(const GenerateResult result,
                           engine->Generate(request));
      Sequences whole;
      whole.instructions = request.instructions;
      for (size_t r = 0; r < 6; ++r) {
        whole.ids.push_back(request.prompts[r]);
        whole.ids.back().insert(whole.ids.back().end(),
                                result.tokens[r].begin(),
                                result.tokens[r].end());
      }
      const TokenBatch batch = Batch(whole, {0, 1, 2, 3, 4, 5}, 1);
      ASSERT_OK_AND_ASSIGN(const LogprobOutput out,
                           engine->Logprobs(batch, 1.0, false));
      for (size_t r = 0; r < 6; ++r) {
        const size_t first = r * static_cast<size_t>(batch.length) +
                             request.prompts[r].size() - 1;
        for (size_t t = 0; t < result.logprobs[r].size(); ++t) {
          EXPECT_NEAR(result.logprobs[r][t], out.logprobs[first + t], 1e-5);
        }
      }
    }
  }
}

// Values of transformers' own functions (float32).
TEST(RotaryTest, LinearAndYarnFollowTransformers) {
  ModelConfig config = TinyConfig("llama");
  config.head_dim = 64;
  config.rope_theta = 1e6;
  RopeScaling scaling;
  scaling.factor = 4;
  scaling.original_max_position = 32768;
  scaling.kind = RopeKind::kYarn;
  config.rope_scaling = scaling;
  const std::vector<double> f = RotaryFrequencies(config);
  const std::vector<std::pair<size_t, double>> expected = {
      {0, 1.0},
      {9, 0.02053525112569332},
      {11, 0.00865964312106371},
      {13, 0.0030431177001446486},
      {18, 0.0001757068675942719},
      {20, 4.4456985051510856e-05},
      {31, 3.8498163235090033e-07}};
  for (const auto& [i, value] : expected) {
    EXPECT_NEAR(f[i], value, 1e-6 * value) << i;
  }
  EXPECT_NEAR(RotaryAmplitude(config), 1.138629436111989, 1e-12);

  config.head_dim = 16;
  config.rope_theta = 1e4;
  scaling.factor = 8;
  scaling.original_max_position = 16;
  scaling.beta_fast = 4;
  scaling.beta_slow = 0.5;
  scaling.truncate = false;
  scaling.attention_factor = 1.3;
  config.rope_scaling = scaling;
  const std::vector<double> narrow = RotaryFrequencies(config);
  EXPECT_NEAR(narrow[1], 0.12053398787975311, 1e-7);
  EXPECT_NEAR(narrow[2], 0.0125, 1e-8);
  EXPECT_EQ(RotaryAmplitude(config), 1.3);

  scaling.kind = RopeKind::kLinear;
  config.rope_scaling = scaling;
  EXPECT_NEAR(RotaryFrequencies(config)[0], 0.125, 1e-12);
  EXPECT_EQ(RotaryAmplitude(config), 1.0);
}

}  // namespace
}  // namespace cox
