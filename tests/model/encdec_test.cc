// The encoder-decoder of docs/algorithms.md §13 through the engines: what an
// instruction reaches, batches of ragged instructions, cached decoding.

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

// Of the size that is trained on a CPU.
ModelConfig MediumConfig() {
  ModelConfig config = TinyConfig("encdec");
  config.vocab_size = 300;
  config.hidden = 96;
  config.heads = config.kv_heads = 4;
  config.head_dim = 24;
  config.intermediate = 384;
  config.max_positions = 64;
  return config;
}

// Weights far from the small initial ones, so that differences show.
std::shared_ptr<const Snapshot> LoudSnapshot(const ModelConfig& config) {
  std::shared_ptr<const Snapshot> quiet = RandomSnapshot(config, 4);
  std::vector<float> values(quiet->arena->floats().begin(),
                            quiet->arena->floats().end());
  const Manifest layout = ParameterLayout(config, "policy");
  for (const TensorInfo& tensor : layout.tensors) {
    if (tensor.shape.size() < 2) continue;
    const size_t first = tensor.offset / sizeof(float);
    const int64_t count = tensor.shape[0] * tensor.shape[1];
    for (int64_t n = 0; n < count; ++n) {
      values[first + static_cast<size_t>(n)] *= 4.0f;
    }
  }
  auto loud = SnapshotFromFloats(layout, values);
  EXPECT_THAT(loud, IsOk());
  return *loud;
}

std::vector<int32_t> RandomIds(CounterRng& rng, const ModelConfig& config,
                               uint64_t most) {
  std::vector<int32_t> ids(1 + rng.NextBelow(most));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(
        rng.NextBelow(static_cast<uint64_t>(config.vocab_size)));
  }
  return ids;
}

class EncdecEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = MakePolicyEngine(EngineOptions());
    ASSERT_THAT(made, IsOk());
    engine_ = *std::move(made);
    ASSERT_OK(engine_->Load(LoudSnapshot(config_)));
  }

  LogprobOutput Score(const std::vector<std::vector<int32_t>>& sequences,
                      const std::vector<std::vector<int32_t>>& instructions) {
    auto out = engine_->Logprobs(MakeBatch(sequences, instructions), 1.0, true);
    EXPECT_THAT(out, IsOk());
    return out.ok() ? *out : LogprobOutput();
  }

  // `prompts` x 4 samples; the samples of a prompt share its instruction.
  GenerateRequest Request(size_t prompts) {
    CounterRng rng(8, "request");
    GenerateRequest request;
    for (size_t p = 0; p < prompts; ++p) {
      const auto instruction = RandomIds(rng, config_, 20);
      auto context = RandomIds(rng, config_, 6);
      context.front() = 1;
      for (uint64_t k = 0; k < 4; ++k) {
        request.instructions.push_back(instruction);
        request.prompts.push_back(context);
        request.prompt_ids.push_back(p);
        request.sample_indices.push_back(k);
      }
    }
    request.seed = 3;
    request.max_new_tokens = 12;
    request.sampling.eos_ids = {2};
    return request;
  }

  ModelConfig config_ = MediumConfig();
  std::unique_ptr<PolicyEngine> engine_;
};

TEST_F(EncdecEngineTest, ALaterTokenChangesNoEarlierLogProb) {
  const std::vector<std::vector<int32_t>> instruction = {{7, 8, 9}};
  const LogprobOutput a = Score({{1, 20, 30, 40, 50, 60}}, instruction);
  const LogprobOutput b = Score({{1, 20, 30, 40, 51, 60}}, instruction);
  for (size_t j = 0; j < 3; ++j) {
    EXPECT_EQ(a.logprobs[j], b.logprobs[j]) << j;
    EXPECT_EQ(a.entropies[j], b.entropies[j]) << j;
  }
  EXPECT_EQ(a.entropies[3], b.entropies[3]);  // the same distribution
  EXPECT_NE(a.logprobs[3], b.logprobs[3]);    // of another token
  EXPECT_NE(a.entropies[4], b.entropies[4]);
}

TEST_F(EncdecEngineTest, EveryInstructionTokenReachesEveryPosition) {
  const std::vector<int32_t> sequence = {1, 20, 30, 40, 50, 60};
  const LogprobOutput before = Score({sequence}, {{7, 8, 9}});
  for (size_t changed = 0; changed < 3; ++changed) {
    std::vector<int32_t> instruction = {7, 8, 9};
    instruction[changed] = 100;
    const LogprobOutput after = Score({sequence}, {instruction});
    for (size_t j = 0; j + 1 < sequence.size(); ++j) {
      EXPECT_NE(before.logprobs[j], after.logprobs[j]) << changed << " " << j;
    }
  }
}

TEST_F(EncdecEngineTest, SwappedInstructionsSwapTheOutputs) {
  const std::vector<int32_t> y = {1, 20, 30, 40};
  const std::vector<int32_t> i = {7, 8, 9, 10, 11}, k = {99};
  const LogprobOutput ik = Score({y, y}, {i, k});
  const LogprobOutput ki = Score({y, y}, {k, i});
  for (size_t j = 0; j < 3; ++j) {
    EXPECT_GT(std::abs(ik.logprobs[j] - ik.logprobs[4 + j]), 1e-3f) << j;
    EXPECT_NEAR(ik.logprobs[j], ki.logprobs[4 + j], 1e-5) << j;
    EXPECT_NEAR(ik.logprobs[4 + j], ki.logprobs[j], 1e-5) << j;
  }
}

// Ragged instructions in one batch: each row as if it were alone.
TEST_F(EncdecEngineTest, PaddedInstructionsChangeNothing) {
  CounterRng rng(1, "ragged");
  std::vector<std::vector<int32_t>> sequences, instructions;
  for (int row = 0; row < 9; ++row) {
    sequences.push_back(RandomIds(rng, config_, 12));
    sequences.back().push_back(5);
    instructions.push_back(RandomIds(rng, config_, 20));
  }
  const TokenBatch batch = MakeBatch(sequences, instructions);
  const LogprobOutput all = Score(sequences, instructions);
  for (size_t row = 0; row < sequences.size(); ++row) {
    const LogprobOutput one = Score({sequences[row]}, {instructions[row]});
    for (size_t j = 0; j + 1 < sequences[row].size(); ++j) {
      EXPECT_NEAR(one.logprobs[j],
                  all.logprobs[row * static_cast<size_t>(batch.length) + j],
                  1e-5);
    }
  }
}

TEST_F(EncdecEngineTest, CachedDecodingAgreesWithTheFullForward) {
  const GenerateRequest request = Request(6);
  ASSERT_OK_AND_ASSIGN(const GenerateResult result, engine_->Generate(request));
  auto trainer = LoadedTrainEngine(LoudSnapshot(config_));
  std::vector<std::vector<int32_t>> sequences;
  for (size_t r = 0; r < request.prompts.size(); ++r) {
    sequences.push_back(request.prompts[r]);
    sequences.back().insert(sequences.back().end(), result.tokens[r].begin(),
                            result.tokens[r].end());
  }
  const TokenBatch batch = MakeBatch(sequences, request.instructions);
  ASSERT_OK_AND_ASSIGN(const LogprobOutput scored,
                       trainer->Logprobs(batch, 1.0, false));
  for (size_t r = 0; r < sequences.size(); ++r) {
    const size_t first =
        r * static_cast<size_t>(batch.length) + request.prompts[r].size() - 1;
    for (size_t t = 0; t < result.tokens[r].size(); ++t) {
      EXPECT_NEAR(result.logprobs[r][t], scored.logprobs[first + t], 1e-5);
    }
  }
}

// Samples of a prompt share the encoder's memory; bits must not tell.
TEST_F(EncdecEngineTest, DecodedRowsDoNotDependOnTheBatch) {
  const GenerateRequest all = Request(8);
  ASSERT_OK_AND_ASSIGN(const GenerateResult expected, engine_->Generate(all));
  for (const std::vector<size_t>& rows :
       {std::vector<size_t>{5}, {5, 4}, {31, 0, 17, 2, 9}, {8, 9, 10, 11}}) {
    GenerateRequest some = all;
    some.prompts.clear();
    some.instructions.clear();
    some.prompt_ids.clear();
    some.sample_indices.clear();
    for (size_t r : rows) {
      some.prompts.push_back(all.prompts[r]);
      some.instructions.push_back(all.instructions[r]);
      some.prompt_ids.push_back(all.prompt_ids[r]);
      some.sample_indices.push_back(all.sample_indices[r]);
    }
    ASSERT_OK_AND_ASSIGN(const GenerateResult found, engine_->Generate(some));
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(found.tokens[i], expected.tokens[rows[i]]);
      EXPECT_EQ(found.logprobs[i], expected.logprobs[rows[i]]);
    }
  }
}

TEST_F(EncdecEngineTest, MissingAndTooLongInstructionsAreErrors) {
  TokenBatch batch = MakeBatch({{1, 3}, {1, 4}}, {{5, 6}, {7}});
  batch.instruction_lengths[1] = 0;  // all padding
  EXPECT_THAT(engine_->Logprobs(batch, 1.0, false),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("instructions: length of row 1: expected 1 "
                                 "to 2, found 0")));
  batch = MakeBatch({{1, 3}}, {std::vector<int32_t>(65, 5)});
  EXPECT_THAT(engine_->Logprobs(batch, 1.0, false),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("instructions: row 0 has 65 tokens, the "
                                 "model takes 64")));
  GenerateRequest request = Request(1);
  request.instructions[2].clear();
  EXPECT_THAT(engine_->Generate(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("instructions: row 2 is empty")));
  request = Request(1);
  request.instructions.clear();
  EXPECT_THAT(engine_->Generate(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("instructions: expected 4 rows, found 0")));
}

}  // namespace
}  // namespace cox
