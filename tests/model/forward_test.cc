// The networks against the pinned vectors and properties of
// docs/algorithms.md §12 and §13.

#include <cmath>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/model/rotary.h"
#include "lib/weights/model_folder.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

ModelForwardResult Forward(const ModelForwardRequest& request) {
  absl::StatusOr<ModelForwardResult> result = ModelForward(request);
  EXPECT_THAT(result, IsOk());
  return result.ok() ? *result : ModelForwardResult();
}

struct Pinned {
  std::string name;
  std::vector<double> last_logits;  // 0..4 at the last position
  double sum_logprob;               // of ids 1..4
};

TEST(NetworkTest, ReproducesThePinnedModels) {
  const std::vector<Pinned> models = {
      {"gpt2", {-.358913, .441928, 1.044402, 1.178077, .782950}, -11.272964},
      {"llama", {.955947, .414580, -.312879, -.899896, -1.082979}, -9.324953},
      {"llama3", {1.038552, .525618, -.223250, -.871908, -1.129194}, -9.452188},
      {"qwen2", {-.914835, -.545880, .068103, .651517, .942485}, -10.783369},
      {"qwen3", {-.789235, -.767755, -.401654, .144736, .626159}, -10.162987},
  };
  for (const Pinned& model : models) {
    SCOPED_TRACE(model.name);
    for (bool float64 : {true, false}) {
      for (bool fused : {true, false}) {
        ModelForwardRequest request =
            ForwardRequest(TinyConfig(model.name), {3, 1, 4, 1, 5});
        request.float64 = float64;
        request.fused_attention = fused;
        const double tolerance = float64 ? 1e-6 : 2e-5;
        ModelForwardResult result = Forward(request);
        for (size_t i = 0; i < 5; ++i) {
          EXPECT_NEAR(result.logits[4 * 11 + i], model.last_logits[i],
                      tolerance);
        }
        EXPECT_NEAR(
            std::accumulate(result.logprob.begin(), result.logprob.end(), 0.0),
            model.sum_logprob, 4 * tolerance);
      }
    }
  }
}

TEST(NetworkTest, PaddingOnEitherSideChangesNothing) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    ModelForwardRequest plain =
        ForwardRequest(TinyConfig(name), {3, 1, 4, 1, 5});
    const ModelForwardResult expected = Forward(plain);
    for (bool fused : {true, false}) {
      for (size_t left : {size_t{0}, size_t{2}}) {
        ModelForwardRequest padded = plain;
        padded.fused_attention = fused;
        padded.length = 7;
        padded.ids.assign(7, -999);
        padded.mask.assign(7, 0);
        for (size_t j = 0; j < 5; ++j) {
          padded.ids[left + j] = plain.ids[j];
          padded.mask[left + j] = 1;
        }
        const ModelForwardResult result = Forward(padded);
        for (double x : result.logits) EXPECT_TRUE(std::isfinite(x));
        for (size_t i = 0; i < 5 * 11; ++i) {
          EXPECT_NEAR(result.logits[left * 11 + i], expected.logits[i], 1e-12);
        }
      }
    }
  }
}

TEST(NetworkTest, RotaryFrequenciesFollowLlama3Scaling) {
  ModelConfig config = TinyConfig("llama");
  config.head_dim = 64;
  config.rope_theta = 5e5;
  config.rope_scaling = RopeScaling{32, 1, 4, 8192};
  const std::vector<double> f = RotaryFrequencies(config);
  ASSERT_EQ(f.size(), 32u);
  EXPECT_NEAR(f[14], .003211446, 1e-9);
  EXPECT_NEAR(f[15], .001290548, 1e-9);
  EXPECT_NEAR(f[16], .000429557, 1e-9);
  EXPECT_NEAR(f[17], .0000970830, 2e-10);
  EXPECT_NEAR(f[18], .0000194616, 1e-10);
}

TEST(NetworkTest, ScalarHeadReadsTheLastRealToken) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    ModelConfig config = TinyConfig(name);
    config.head = HeadKind::kScalar;
    ModelForwardRequest request = ForwardRequest(config, {3, 1, 4, 1, 5, -1});
    request.mask[5] = 0;
    const ModelForwardResult result = Forward(request);
    EXPECT_EQ(result.score[0], result.values[4]);
    // A shorter sequence ends where the longer one has its value.
    const ModelForwardResult shorter =
        Forward(ForwardRequest(config, {3, 1, 4}));
    EXPECT_NEAR(shorter.score[0], result.values[2], 1e-12);
  }
}

TEST(NetworkTest, ErrorsNameTheArgument) {
  ModelForwardRequest request = ForwardRequest(TinyConfig("gpt2"), {3, 11});
  EXPECT_THAT(ModelForward(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("tokens: id at [0, 1]")));
  request = ForwardRequest(TinyConfig("encdec"), {3, 1});
  request.instruction_mask = {0, 0};
  EXPECT_THAT(ModelForward(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("instruction: row 0 has no real token")));
  request = ForwardRequest(TinyConfig("gpt2"), {3, 1});
  request.parameters[3].pop_back();
  EXPECT_THAT(ModelForward(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("ln_1.bias: expected 8 values")));
}

class EncoderDecoderTest : public ::testing::Test {
 protected:
  ModelForwardRequest Base() {
    return ForwardRequest(TinyConfig("encdec"), {1, 4, 9, 2});
  }
  static double MaxDifference(const std::vector<double>& a,
                              const std::vector<double>& b, size_t begin,
                              size_t end) {
    double most = 0;
    for (size_t i = begin; i < end; ++i) {
      most = std::max(most, std::abs(a[i] - b[i]));
    }
    return most;
  }
};

TEST_F(EncoderDecoderTest, FutureTokensDoNotReachEarlierLogits) {
  ModelForwardRequest changed = Base();
  changed.ids[3] = 7;
  const auto a = Forward(Base()).logits, b = Forward(changed).logits;
  EXPECT_EQ(MaxDifference(a, b, 0, 33), 0.0);
  EXPECT_GT(MaxDifference(a, b, 33, 44), 1e-3);
}

TEST_F(EncoderDecoderTest, RealInstructionTokensReachEveryPosition) {
  ModelForwardRequest changed = Base();
  changed.instruction_ids[0] = 5;
  const auto a = Forward(Base()).logits, b = Forward(changed).logits;
  for (size_t j = 0; j < 4; ++j) {
    EXPECT_GT(MaxDifference(a, b, 11 * j, 11 * j + 11), 1e-6) << j;
  }
}

TEST_F(EncoderDecoderTest, PaddedInstructionTokensReachNothing) {
  ModelForwardRequest padded = Base();
  padded.instruction_length = 4;
  padded.instruction_ids = {6, 2, -5, 10};
  padded.instruction_mask = {1, 1, 0, 0};
  EXPECT_LT(
      MaxDifference(Forward(Base()).logits, Forward(padded).logits, 0, 44),
      1e-12);
}

TEST_F(EncoderDecoderTest, EmptyContextWorks) {
  ModelForwardRequest request = Base();
  request.length = 1;
  request.ids = {1};
  request.mask = {1};
  EXPECT_LT(
      MaxDifference(Forward(request).logits, Forward(Base()).logits, 0, 11),
      1e-12);
}

TEST(ScoreEngineTest, AgreesWithTheOpsForwardAndIgnoresPadding) {
  for (const std::string& name : TinyNames()) {
    for (bool fused : {true, false}) {
      SCOPED_TRACE(name + (fused ? " fused" : " plain"));
      const ModelConfig config = TinyConfig(name);
      EngineOptions options;
      options.fused_attention = fused;
      options.max_logit_elements = 30;  // chunks of 4 rows (the minimum)
      ASSERT_OK_AND_ASSIGN(auto engine, MakeScoreEngine(options));
      ASSERT_OK(engine->Load(SineSnapshot(config)));
      TokenBatch batch = SmallBatch(config);
      ASSERT_OK_AND_ASSIGN(LogprobOutput out,
                           engine->Logprobs(batch, 0.7, true));
      ModelForwardRequest request = ForwardRequest(config, {3, 1, 4, 1, 5});
      request.temperature = 0.7;
      const ModelForwardResult expected = Forward(request);
      for (size_t j = 0; j < 4; ++j) {
        EXPECT_NEAR(out.logprobs[j], expected.logprob[j], 1e-5);
        EXPECT_GT(out.entropies[j], 0.0f);
      }
      EXPECT_EQ(out.logprobs[4], 0.0f);
      EXPECT_EQ(out.entropies[4], 0.0f);
      for (size_t i = 0; i < batch.ids.size(); ++i) {
        if (batch.ids[i] < 0) batch.ids[i] = 1000000;
      }
      ASSERT_OK_AND_ASSIGN(LogprobOutput again,
                           engine->Logprobs(batch, 0.7, true));
      EXPECT_EQ(again.logprobs, out.logprobs);
    }
  }
}

TEST(ScoreEngineTest, ScalarOutputsMatchTheOpsForward) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    ModelConfig config = TinyConfig(name);
    config.head = HeadKind::kScalar;
    ASSERT_OK_AND_ASSIGN(auto engine, MakeScoreEngine(EngineOptions()));
    ASSERT_OK(engine->Load(SineSnapshot(config)));
    TokenBatch batch = SmallBatch(config);
    batch.scored.clear();
    ASSERT_OK_AND_ASSIGN(std::vector<float> values, engine->Values(batch));
    ASSERT_OK_AND_ASSIGN(std::vector<float> scores, engine->Scores(batch));
    const ModelForwardResult expected =
        Forward(ForwardRequest(config, {3, 1, 4, 1, 5}));
    for (size_t j = 0; j < 5; ++j) {
      EXPECT_NEAR(values[j], expected.values[j], 1e-5);
    }
    EXPECT_NEAR(scores[0], values[4], 1e-6);
    EXPECT_NEAR(scores[1], values[7], 1e-6);
    EXPECT_EQ(values[8], 0.0f);
  }
}

TEST(ScoreEngineTest, RefusesWeightsThatDoNotFitTheirConfig) {
  ASSERT_OK_AND_ASSIGN(auto engine, MakeScoreEngine(EngineOptions()));
  EXPECT_THAT(engine->Logprobs(TokenBatch(), 1.0, false),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  Snapshot wrong = *SineSnapshot(TinyConfig("gpt2"));
  ModelConfig wider = TinyConfig("gpt2");
  wider.intermediate = 40;
  wrong.manifest.config_json = wider.ToJson();
  EXPECT_THAT(
      engine->Load(std::make_shared<const Snapshot>(wrong)),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               HasSubstr("mlp.c_fc.weight: expected [8, 40], found [8, 32]")));
}

TEST(ScoreEngineTest, SavedAndLoadedFoldersGiveTheSameBits) {
  testing::TempDir dir;
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    auto snapshot = SineSnapshot(config);
    const std::string path = JoinPath(dir.path(), name);
    ASSERT_OK(Fs::Real().MakeDirs(path));
    ASSERT_THAT(
        SaveModelFolder(Fs::Real(), path, *snapshot, SaveFolderOptions()),
        IsOk());
    ASSERT_OK_AND_ASSIGN(ModelFolder folder, ReadModelFolder(Fs::Real(), path));
    ASSERT_OK_AND_ASSIGN(ModelConfig read,
                         ModelConfig::FromJson(folder.config_json));
    ASSERT_OK_AND_ASSIGN(
        auto loaded,
        SnapshotFromFolder(folder, ParameterLayout(read, "policy")));
    EXPECT_EQ(loaded->content_hash, snapshot->content_hash);
  }
}

}  // namespace
}  // namespace cox
