// bfloat16 compute against float32, activation recomputation, and what
// training holds in memory.

#include <algorithm>
#include <cmath>
#include <memory>

#include "c10/core/Allocator.h"
#include "c10/util/ThreadLocalDebugInfo.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

EngineOptions Bf16() {
  EngineOptions options;
  options.dtype = "bf16";
  return options;
}

// Random weights with logits that spread: matrices eight times the usual.
std::shared_ptr<const Snapshot> Spread(const ModelConfig& config) {
  Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> values(layout.arena_bytes / sizeof(float));
  InitializeParameters(config, 5, values);
  for (const TensorInfo& tensor : layout.tensors) {
    if (tensor.shape.size() < 2) continue;
    for (size_t i = 0; i < tensor.bytes / sizeof(float); ++i) {
      values[tensor.offset / sizeof(float) + i] *= 8.0f;
    }
  }
  auto snapshot = SnapshotFromFloats(layout, values);
  EXPECT_TRUE(snapshot.ok());
  return *snapshot;
}

ModelConfig WiderLlama() {
  ModelConfig config = TinyConfig("llama");
  config.hidden = 64;
  config.layers = 4;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.intermediate = 128;
  config.vocab_size = 97;
  config.max_positions = 256;
  return config;
}

std::vector<float> GradientsOf(TrainEngine& engine, const TokenBatch& batch) {
  engine.ZeroGradients();
  const bool scalar = engine.config().head == HeadKind::kScalar;
  const absl::Status done =
      scalar
          ? engine.AccumulateValues(
                batch,
                [](std::span<const float>, std::span<float> gradient) {
                  for (size_t i = 0; i < gradient.size(); ++i) {
                    gradient[i] = static_cast<float>(std::cos(1.0 + double(i)));
                  }
                  return absl::OkStatus();
                })
          : engine.AccumulateLogprobs(
                batch, 0.9, true,
                [](const LogprobOutput& out, LogprobGradient* gradient) {
                  gradient->entropies.assign(out.logprobs.size(), 0.1f);
                  gradient->logprobs.assign(out.logprobs.size(), -1.0f);
                  return absl::OkStatus();
                });
  EXPECT_OK(done);
  return {engine.Gradients().begin(), engine.Gradients().end()};
}

// ‖a - b‖ / ‖b‖.
double RelativeDistance(const std::vector<float>& a,
                        const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

TEST(Bf16Test, LogprobsAndGradientsStayNearThoseInFloat32) {
  for (const std::string& name : TinyNames()) {
    for (const HeadKind head : {HeadKind::kLanguageModel, HeadKind::kScalar}) {
      SCOPED_TRACE(name);
      ModelConfig config = TinyConfig(name);
      config.head = head;
      const auto snapshot = SineSnapshot(config);
      const TokenBatch batch = SmallBatch(config);
      auto exact = LoadedTrainEngine(snapshot);
      auto rounded = LoadedTrainEngine(snapshot, Bf16());
      const std::vector<float> a = GradientsOf(*rounded, batch);
      const std::vector<float> b = GradientsOf(*exact, batch);
      EXPECT_NE(a, b);  // it is another arithmetic
      EXPECT_LT(RelativeDistance(a, b), 0.03);
      if (head == HeadKind::kScalar) continue;
      ASSERT_OK_AND_ASSIGN(auto x, rounded->Logprobs(batch, 1.0, true));
      ASSERT_OK_AND_ASSIGN(auto y, exact->Logprobs(batch, 1.0, true));
      for (size_t i = 0; i < x.logprobs.size(); ++i) {
        EXPECT_NEAR(x.logprobs[i], y.logprobs[i], 2e-2);
      }
    }
  }
}

TEST(Bf16Test, TrainerSeesEveryChangeOfItsMasterWeights) {
  const ModelConfig config = TinyConfig("llama");
  auto engine = LoadedTrainEngine(SineSnapshot(config), Bf16());
  const TokenBatch batch = SmallBatch(config);
  ASSERT_OK_AND_ASSIGN(const auto before, engine->Logprobs(batch, 1, false));
  for (float& w : engine->Parameters()) w *= 1.5f;
  ASSERT_OK_AND_ASSIGN(const auto after, engine->Logprobs(batch, 1, false));
  EXPECT_NE(before.logprobs, after.logprobs);
  // A frozen engine with the same weights computes the same bits.
  ASSERT_OK_AND_ASSIGN(auto snapshot, SnapshotFromFloats(engine->layout(),
                                                         engine->Parameters()));
  ASSERT_OK_AND_ASSIGN(auto scorer, MakeScoreEngine(Bf16()));
  ASSERT_OK(scorer->Load(snapshot));
  ASSERT_OK_AND_ASSIGN(const auto frozen, scorer->Logprobs(batch, 1, false));
  EXPECT_EQ(frozen.logprobs, after.logprobs);
}

GenerateRequest Rollout(const ModelConfig& config, size_t rows) {
  GenerateRequest request;
  CounterRng rng(3, "prompts");
  for (size_t r = 0; r < rows; ++r) {
    std::vector<int32_t> ids(2 + rng.NextBelow(9));
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(
          rng.NextBelow(static_cast<uint64_t>(config.vocab_size)));
    }
    request.prompts.push_back(ids);
    request.prompt_ids.push_back(100 + r);
    request.sample_indices.push_back(0);
  }
  request.seed = 17;
  request.max_new_tokens = 24;
  return request;
}

// Sampled in bf16 by an actor, trained in bf16 by a learner: before the first
// update the importance ratio would be 1 but for rounding.
TEST(Bf16Test, RatioOfTheFirstMinibatchIsOne) {
  for (const ModelConfig& config : {WiderLlama(), Gpt2Config(64, 4, 97)}) {
    const auto snapshot = Spread(config);
    ASSERT_OK_AND_ASSIGN(auto actor, MakePolicyEngine(Bf16()));
    ASSERT_OK(actor->Load(snapshot));
    auto learner = LoadedTrainEngine(snapshot, Bf16());
    const GenerateRequest request = Rollout(config, 16);
    ASSERT_OK_AND_ASSIGN(const GenerateResult rollout,
                         actor->Generate(request));
    std::vector<std::vector<int32_t>> sequences;
    for (size_t r = 0; r < request.prompts.size(); ++r) {
      sequences.push_back(request.prompts[r]);
      sequences[r].insert(sequences[r].end(), rollout.tokens[r].begin(),
                          rollout.tokens[r].end());
    }
    const TokenBatch batch = MakeBatch(sequences, {});
    ASSERT_OK_AND_ASSIGN(const auto out, learner->Logprobs(batch, 1.0, false));
    double ratios = 0, worst = 0, logprobs = 0;
    int64_t n = 0;
    for (size_t r = 0; r < sequences.size(); ++r) {
      for (size_t t = 0; t < rollout.tokens[r].size(); ++t) {
        const size_t i = r * static_cast<size_t>(batch.length) +
                         request.prompts[r].size() - 1 + t;
        const double ratio =
            std::exp(double{out.logprobs[i]} - double{rollout.logprobs[r][t]});
        ratios += ratio;
        worst = std::max(worst, std::abs(ratio - 1));
        logprobs += double{rollout.logprobs[r][t]};
        ++n;
      }
    }
    const double mean = ratios / static_cast<double>(n);
    EXPECT_NEAR(mean, 1.0, 0.01);
    EXPECT_LT(worst, 0.1);
    // The model has opinions: far from the uniform log-prob of -4.57.
    EXPECT_GT(logprobs / static_cast<double>(n), -4.2);
    RecordProperty("worst_ratio_error", std::to_string(worst));
  }
}

TEST(Bf16Test, RowDoesNotDependOnTheOthers) {
  const ModelConfig config = WiderLlama();
  ASSERT_OK_AND_ASSIGN(auto actor, MakePolicyEngine(Bf16()));
  ASSERT_OK(actor->Load(Spread(config)));
  const GenerateRequest all = Rollout(config, 20);
  ASSERT_OK_AND_ASSIGN(const GenerateResult together, actor->Generate(all));
  for (size_t r : {size_t{0}, size_t{7}, size_t{19}}) {
    GenerateRequest one = all;
    one.prompts = {all.prompts[r]};
    one.prompt_ids = {all.prompt_ids[r]};
    one.sample_indices = {all.sample_indices[r]};
    ASSERT_OK_AND_ASSIGN(const GenerateResult alone, actor->Generate(one));
    EXPECT_EQ(alone.tokens[0], together.tokens[r]);
    EXPECT_EQ(alone.logprobs[0], together.logprobs[r]);
  }
}

TEST(RecomputeTest, GradientsHaveTheSameBits) {
  for (const std::string& name : TinyNames()) {
    for (const HeadKind head : {HeadKind::kLanguageModel, HeadKind::kScalar}) {
      for (const std::string dtype : {"fp32", "bf16"}) {
        SCOPED_TRACE(name + " " + dtype);
        ModelConfig config = TinyConfig(name);
        config.head = head;
        EngineOptions options;
        options.dtype = dtype;
        auto plain = LoadedTrainEngine(SineSnapshot(config), options);
        options.recompute = true;
        auto again = LoadedTrainEngine(SineSnapshot(config), options);
        const TokenBatch batch = SmallBatch(config);
        EXPECT_EQ(GradientsOf(*again, batch), GradientsOf(*plain, batch));
      }
    }
  }
}

// Bytes that LibTorch's CPU allocator holds beyond those at the start.
class AllocationCounter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t,
                         c10::Device) override {
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t peak() const { return peak_; }

 private:
  int64_t now_ = 0;
  int64_t peak_ = 0;
};

int64_t PeakBytes(TrainEngine& engine, const TokenBatch& batch) {
  auto counter = std::make_shared<AllocationCounter>();
  c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  GradientsOf(engine, batch);
  return counter->peak();
}

TokenBatch LongBatch(int64_t rows, int64_t length) {
  std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(rows));
  for (auto& ids : sequences) {
    for (int64_t j = 0; j < length; ++j) {
      ids.push_back(static_cast<int32_t>((7 * j + 3) % 97));
    }
  }
  return MakeBatch(sequences, {});
}

TEST(RecomputeTest, HoldsFewerActivations) {
  const ModelConfig config = Gpt2Config(64, 8, 97);
  EngineOptions options;
  auto plain = LoadedTrainEngine(RandomSnapshot(config, 1), options);
  options.recompute = true;
  auto again = LoadedTrainEngine(RandomSnapshot(config, 1), options);
  const TokenBatch batch = LongBatch(4, 128);
  EXPECT_LT(3 * PeakBytes(*again, batch), PeakBytes(*plain, batch));
}

// Tokens times vocabulary is what the log-probs must never hold: with a
// vocabulary 8 times as large or 4 times the tokens, the peak grows by what
// weights and hidden states take, and stays far below one [T, V] tensor.
TEST(LanguageHeadTest, PeakMemoryIsFlatInTokensTimesVocabulary) {
  EngineOptions options;
  options.max_logit_elements = int64_t{1} << 18;  // 1 MiB
  std::vector<int64_t> peaks;
  const int64_t hidden = 16;
  for (const int64_t vocab : {4096, 32768}) {
    for (const int64_t rows : {4, 16}) {
      auto engine = LoadedTrainEngine(
          RandomSnapshot(Gpt2Config(hidden, 1, vocab), 1), options);
      const int64_t tokens = rows * 128;
      peaks.push_back(PeakBytes(*engine, LongBatch(rows, 128)));
      // Gradients of the tied embedding: one [V, hidden] from the head's
      // product and one from the lookup; a chunk of 32 rows of logits, a few
      // hundred floats of activations per token.
      const int64_t floats = 3 * vocab * hidden + 2 * (int64_t{1} << 18) +
                             2 * 32 * vocab + 64 * hidden * tokens;
      EXPECT_LT(peaks.back(), 4 * floats) << vocab << " x " << tokens;
    }
  }
  // 64 MiB and 256 MiB of logits at V = 32768.
  const int64_t logits = 4 * int64_t{32768} * 2048;
  EXPECT_LT(peaks[3], logits / 8);
  EXPECT_LT(peaks[3] - peaks[2], (logits - logits / 4) / 16);
}

TEST(EngineOptionsTest, RefusesAnUnknownPrecision) {
  EXPECT_THAT(MakeTrainEngine({.dtype = "fp8"}),
              cox::testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                     ::testing::HasSubstr("fp8")));
}

}  // namespace
}  // namespace cox
