// The encoder-decoder learns what only its instruction can tell it: the answer
// is the instruction, token by token. The full-size task is
// examples/article-copy.yaml.

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "learner/lm_trainer.h"
#include "lib/base/rng.h"
#include "lib/engine/model_config.h"
#include "lib/model/api.h"
#include "tests/learner/learner_testing.h"

namespace cox {
namespace {

constexpr int32_t kStart = 0;  // also the end
constexpr int64_t kSymbols = 15;
constexpr int64_t kSteps = 400;

ModelConfig CopyConfig() {
  ModelConfig config;
  config.family = ModelFamily::kInstructEncdec;
  config.vocab_size = 1 + kSymbols;
  config.hidden = 32;
  config.encoder_layers = 1;
  config.layers = 1;
  config.heads = config.kv_heads = 2;
  config.head_dim = 16;
  config.intermediate = 64;
  config.max_positions = 8;
  config.tied_embeddings = false;
  config.attention_bias = config.mlp_bias = true;
  config.eos_ids = {kStart};
  return config;
}

// Never the same one twice: nothing can be learned by heart.
std::vector<int32_t> RandomInstruction(const char* stream, int64_t position) {
  CounterRng rng(1, absl::StrCat(stream, position));
  std::vector<int32_t> ids(3 + rng.NextBelow(4));
  for (int32_t& id : ids) {
    id = 1 + static_cast<int32_t>(rng.NextBelow(uint64_t{kSymbols}));
  }
  return ids;
}

class CopySource final : public LmSource {
 public:
  Sequence At(int64_t position) const override {
    Sequence sequence;
    sequence.instruction_ids = RandomInstruction("train/", position);
    sequence.ids = {kStart};
    sequence.ids.insert(sequence.ids.end(), sequence.instruction_ids.begin(),
                        sequence.instruction_ids.end());
    sequence.ids.push_back(kStart);
    return sequence;
  }
};

absl::StatusOr<testing::RankParts> MakeCopyLm(Collective& group) {
  testing::RankParts parts;
  COX_ASSIGN_OR_RETURN(parts.policy, MakeTrainEngine(EngineOptions()));
  const Manifest layout = ParameterLayout(CopyConfig(), "policy");
  std::vector<float> parameters(layout.arena_bytes / sizeof(float), 0.0f);
  InitializeParameters(CopyConfig(), 3, parameters);
  COX_ASSIGN_OR_RETURN(auto snapshot, SnapshotFromFloats(layout, parameters));
  COX_RETURN_IF_ERROR(parts.policy->Load(snapshot));
  parts.source = std::make_unique<CopySource>();
  LmOptions options;
  options.batch = 64;
  options.total_steps = kSteps;
  options.heldout_every = 0;
  options.optimizer = testing::TestOptimizer(5e-3);
  COX_ASSIGN_OR_RETURN(parts.trainer, MakeLmTrainer(options, *parts.policy,
                                                    group, *parts.source, {}));
  return parts;
}

TEST(CopyTaskTest, TheAnswerRepeatsAnInstructionNeverSeen) {
  ASSERT_OK(InitTorch(EngineOptions()));
  ASSERT_OK_AND_ASSIGN(
      const testing::RunOutcome run,
      testing::RunSteps(
          1, MakeCopyLm, [](int64_t) { return BatchInput(); }, 1, kSteps));
  // The first loss is that of guessing among 16 tokens: ln 16 = 2.77.
  EXPECT_NEAR(run.results.front().metrics.at("loss/lm"), 2.77, 0.1);
  ASSERT_OK_AND_ASSIGN(
      const auto trained,
      SnapshotFromFloats(ParameterLayout(CopyConfig(), "policy"), run.policy));
  ASSERT_OK_AND_ASSIGN(auto engine, MakePolicyEngine(EngineOptions()));
  ASSERT_OK(engine->Load(trained));
  GenerateRequest request;
  for (int64_t p = 0; p < 200; ++p) {
    request.instructions.push_back(RandomInstruction("test/", p));
    request.prompts.push_back({kStart});
    request.prompt_ids.push_back(static_cast<uint64_t>(p));
    request.sample_indices.push_back(0);
  }
  request.max_new_tokens = 7;
  request.sampling.temperature = 0;
  request.sampling.eos_ids = {kStart};
  ASSERT_OK_AND_ASSIGN(const GenerateResult result, engine->Generate(request));
  int64_t right = 0, all = 0;
  for (size_t p = 0; p < request.prompts.size(); ++p) {
    std::vector<int32_t> expected = request.instructions[p];
    expected.push_back(kStart);
    all += static_cast<int64_t>(expected.size());
    for (size_t t = 0; t < std::min(expected.size(), result.tokens[p].size());
         ++t) {
      right += result.tokens[p][t] == expected[t] ? 1 : 0;
    }
  }
  const double accuracy = static_cast<double>(right) / static_cast<double>(all);
  EXPECT_GT(accuracy, 0.99);
  RecordProperty("accuracy", absl::StrCat(accuracy));
}

}  // namespace
}  // namespace cox
