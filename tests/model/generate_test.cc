// Cached decoding: a row never depends on the others, and agrees with the
// training forward.

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "tests/model/test_models.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

std::unique_ptr<PolicyEngine> LoadedPolicy(
    std::shared_ptr<const Snapshot> snapshot) {
  auto engine = MakePolicyEngine(EngineOptions());
  EXPECT_THAT(engine, IsOk());
  EXPECT_THAT((*engine)->Load(std::move(snapshot)), IsOk());
  return *std::move(engine);
}

// `rows` prompts of 1 to 7 random tokens.
GenerateRequest MakeRequest(const ModelConfig& config, size_t rows,
                            int64_t new_tokens) {
  GenerateRequest request;
  CounterRng rng(3, "prompts");
  auto sequence = [&] {
    std::vector<int32_t> ids(1 + rng.NextBelow(7));
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(
          rng.NextBelow(static_cast<uint64_t>(config.vocab_size)));
    }
    return ids;
  };
  for (size_t r = 0; r < rows; ++r) {
    request.prompts.push_back(sequence());
    if (config.family == ModelFamily::kInstructEncdec) {
      request.instructions.push_back(sequence());
    }
    request.prompt_ids.push_back(100 + r / 2);
    request.sample_indices.push_back(r % 2);
  }
  request.seed = 17;
  request.max_new_tokens = new_tokens;
  request.sampling.eos_ids = {2};
  request.sampling.temperature = 0.9;
  return request;
}

GenerateResult Generate(PolicyEngine& engine, const GenerateRequest& request) {
  auto result = engine.Generate(request);
  EXPECT_THAT(result, IsOk());
  return result.ok() ? *result : GenerateResult();
}

GenerateRequest Subset(const GenerateRequest& all,
                       const std::vector<size_t>& rows) {
  GenerateRequest out = all;
  out.prompts.clear();
  out.instructions.clear();
  out.prompt_ids.clear();
  out.sample_indices.clear();
  for (size_t r : rows) {
    out.prompts.push_back(all.prompts[r]);
    if (!all.instructions.empty()) {
      out.instructions.push_back(all.instructions[r]);
    }
    out.prompt_ids.push_back(all.prompt_ids[r]);
    out.sample_indices.push_back(all.sample_indices[r]);
  }
  return out;
}

// Single rows, small and large subsets in shuffled order: equal bits.
void ExpectBatchInvariance(const ModelConfig& config,
                           std::shared_ptr<const Snapshot> snapshot,
                           size_t rows) {
  auto engine = LoadedPolicy(std::move(snapshot));
  const GenerateRequest all = MakeRequest(config, rows, 9);
  const GenerateResult expected = Generate(*engine, all);
  for (uint64_t trial = 0; trial < 12; ++trial) {
    std::vector<size_t> subset;
    for (int64_t r : Permutation(static_cast<int64_t>(rows), trial, "rows")) {
      subset.push_back(static_cast<size_t>(r));
    }
    subset.resize(trial < 4 ? 1 + trial : 1 + (trial * 7) % rows);
    const GenerateResult found = Generate(*engine, Subset(all, subset));
    for (size_t i = 0; i < subset.size(); ++i) {
      EXPECT_EQ(found.tokens[i], expected.tokens[subset[i]]);
      EXPECT_EQ(found.logprobs[i], expected.logprobs[subset[i]])
          << "row " << subset[i] << " among " << subset.size();
      EXPECT_EQ(found.finish[i], expected.finish[subset[i]]);
    }
  }
}

TEST(PolicyEngineTest, TinyRowsDoNotDependOnTheBatch) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    ExpectBatchInvariance(config, SineSnapshot(config), 23);
  }
}

TEST(PolicyEngineTest, RowsOfATrainingSizeModelDoNotDependOnTheBatch) {
  ModelConfig config = Gpt2Config(128, 2, 512);
  ExpectBatchInvariance(config, RandomSnapshot(config, 1), 64);
}

TEST(PolicyEngineTest, RowsOfALlamaDoNotDependOnTheBatch) {
  ModelConfig config = TinyConfig("llama");
  config.vocab_size = 300;
  config.hidden = 96;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.intermediate = 200;
  ExpectBatchInvariance(config, RandomSnapshot(config, 1), 40);
}

TEST(PolicyEngineTest, BehaviourLogprobsAgreeWithTheTrainingForward) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    auto engine = LoadedPolicy(SineSnapshot(config));
    auto trainer = LoadedTrainEngine(SineSnapshot(config));
    const GenerateRequest request = MakeRequest(config, 10, 8);
    const GenerateResult result = Generate(*engine, request);
    std::vector<std::vector<int32_t>> sequences;
    for (size_t r = 0; r < 10; ++r) {
      sequences.push_back(request.prompts[r]);
      sequences.back().insert(sequences.back().end(), result.tokens[r].begin(),
                              result.tokens[r].end());
    }
    const TokenBatch batch = MakeBatch(sequences, request.instructions);
    ASSERT_OK_AND_ASSIGN(LogprobOutput scored,
                         trainer->Logprobs(batch, 0.9, false));
    for (size_t r = 0; r < 10; ++r) {
      const size_t first =
          r * static_cast<size_t>(batch.length) + request.prompts[r].size() - 1;
      ASSERT_FALSE(result.tokens[r].empty());
      for (size_t t = 0; t < result.tokens[r].size(); ++t) {
        EXPECT_NEAR(result.logprobs[r][t], scored.logprobs[first + t], 1e-5);
      }
    }
  }
}

TEST(PolicyEngineTest, StopsAtEosAndAtTheLimit) {
  const ModelConfig config = TinyConfig("gpt2");
  auto engine = LoadedPolicy(SineSnapshot(config));
  const GenerateRequest request = MakeRequest(config, 40, 9);
  const GenerateResult result = Generate(*engine, request);
  int64_t stopped = 0;
  for (size_t r = 0; r < 40; ++r) {
    ASSERT_EQ(result.tokens[r].size(), result.logprobs[r].size());
    const bool eos = result.tokens[r].back() == 2;
    EXPECT_EQ(result.finish[r],
              eos ? FinishReason::kStop : FinishReason::kLength);
    if (!eos) {
      EXPECT_EQ(result.tokens[r].size(), 9u);
    }
    for (size_t t = 0; t + 1 < result.tokens[r].size(); ++t) {
      EXPECT_NE(result.tokens[r][t], 2);
    }
    stopped += eos ? 1 : 0;
  }
  EXPECT_GT(stopped, 0);
  EXPECT_LT(stopped, 40);
}

TEST(PolicyEngineTest, GreedyFollowsTheArgmaxOfTheFullForward) {
  for (const std::string& name : TinyNames()) {
    SCOPED_TRACE(name);
    const ModelConfig config = TinyConfig(name);
    auto engine = LoadedPolicy(SineSnapshot(config));
    GenerateRequest request;
    request.prompts = {{3, 1, 4}};
    if (name == "encdec") request.instructions = {{6, 2}};
    request.prompt_ids = {0};
    request.sample_indices = {0};
    request.max_new_tokens = 6;
    request.sampling.temperature = 0;
    const GenerateResult result = Generate(*engine, request);
    std::vector<int64_t> ids = {3, 1, 4};
    for (size_t t = 0; t < 6; ++t) {
      auto forward = ModelForward(ForwardRequest(config, ids));
      ASSERT_THAT(forward, IsOk());
      const auto last = forward->logits.end() - 11;
      const int64_t best = std::max_element(last, forward->logits.end()) - last;
      EXPECT_EQ(result.tokens[0][t], best) << t;
      EXPECT_EQ(result.logprobs[0][t], 0.0f);
      ids.push_back(best);
    }
  }
}

TEST(PolicyEngineTest, ProcessingReachesTheSampler) {
  const ModelConfig config = TinyConfig("gpt2");
  auto engine = LoadedPolicy(SineSnapshot(config));
  GenerateRequest request = MakeRequest(config, 20, 6);
  request.sampling.forbid_ids = {0, 1, 3, 4, 5, 6};
  request.sampling.min_new_tokens = 3;
  const GenerateResult result = Generate(*engine, request);
  for (const auto& tokens : result.tokens) {
    EXPECT_GE(tokens.size(), 3u);
    for (int32_t token : tokens) EXPECT_TRUE(token == 2 || token >= 7);
  }
}

TEST(PolicyEngineTest, RefusesWhatItCannotGenerate) {
  ModelConfig config = TinyConfig("gpt2");
  auto engine = LoadedPolicy(SineSnapshot(config));
  GenerateRequest request = MakeRequest(config, 2, 16);
  EXPECT_THAT(engine->Generate(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("positions, the model has 16")));
  config.head = HeadKind::kScalar;
  auto scalar = LoadedPolicy(SineSnapshot(config));
  EXPECT_THAT(scalar->Generate(MakeRequest(config, 2, 4)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(MakePolicyEngine({.device = "tpu"}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("expected cpu or cuda, found tpu")));
  const auto cuda = MakePolicyEngine({.device = "cuda"});
  if (!cuda.ok()) {  // no GPU here: one line says what is missing
    EXPECT_THAT(cuda, StatusIs(absl::StatusCode::kNotFound,
                               HasSubstr("device cuda: ")));
  }
}

TEST(InitTorchTest, NamesTheNumericsClass) {
  auto name = InitTorch(EngineOptions());
  ASSERT_THAT(name, IsOk());
  EXPECT_THAT(*name, ::testing::MatchesRegex("torch-2.*/cpu/.*/threads=1"));
}

}  // namespace
}  // namespace cox
