#include "reward/reward_core.h"

#include <cmath>

#include "gtest/gtest.h"
#include "lib/engine/fake.h"
#include "reward/request_queue.h"
#include "reward/sequence_batch.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

ScoreInput Sequence(std::vector<int32_t> prompt,
                    std::vector<int32_t> response) {
  ScoreInput input;
  input.prompt_ids = std::move(prompt);
  input.response_ids = std::move(response);
  return input;
}

TEST(SequenceBatchTest, MarksThePositionsThatPredictTheResponse) {
  const std::vector<ScoreInput> inputs = {Sequence({5, 6}, {7, 8, 9}),
                                          Sequence({4}, {3})};
  ASSERT_OK_AND_ASSIGN(const TokenBatch batch, MakeSequenceBatch(inputs));
  EXPECT_EQ(batch.batch, 2);
  EXPECT_EQ(batch.length, 5);
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{5, 6, 7, 8, 9, 4, 3, 0, 0, 0}));
  EXPECT_EQ(batch.lengths, (std::vector<int32_t>{5, 2}));
  EXPECT_EQ(batch.scored, (std::vector<uint8_t>{0, 1, 1, 1, 0, 1, 0, 0, 0, 0}));
}

TEST(SequenceBatchTest, RefusesWhatHasNoFirstToken) {
  EXPECT_FALSE(MakeSequenceBatch({}).ok());
  EXPECT_THAT(
      MakeSequenceBatch(std::vector<ScoreInput>{Sequence({}, {1})}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("prompt_ids")));
  std::vector<ScoreInput> mixed = {Sequence({1}, {1}), Sequence({1}, {1})};
  mixed[1].instruction_ids = {2};
  EXPECT_THAT(MakeSequenceBatch(mixed),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("instruction_ids")));
}

TEST(RewardCoreTest, RewardModelIsNormalisedByItsOwnGainAndBias) {
  ModelConfig config = FakeModelConfig(11, 4, HeadKind::kScalar);
  auto plain = MakeFakePolicyEngine();
  ASSERT_OK(plain->Load(*FakeSnapshot(config, "reward", 3)));
  config.reward_gain = 2.0;
  config.reward_bias = -0.25;
  auto scaled = MakeFakePolicyEngine();
  ASSERT_OK(scaled->Load(*FakeSnapshot(config, "reward", 3)));
  const std::vector<ScoreInput> inputs = {Sequence({1, 2}, {3, 4}),
                                          Sequence({5}, {6})};
  const RewardRules rules{.kind = "rm", .table = nullptr, .lexicon = nullptr};
  ASSERT_OK_AND_ASSIGN(const auto raw,
                       ScoreSequences(rules, plain.get(), inputs, false));
  ASSERT_OK_AND_ASSIGN(const auto got,
                       ScoreSequences(rules, scaled.get(), inputs, false));
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(got[i].scored);
    EXPECT_NEAR(got[i].total, 2.0 * raw[i].total - 0.25, 1e-12);
    EXPECT_EQ(got[i].parts[0].first, "rm");
  }
}

TEST(RewardCoreTest, ScoresDoNotDependOnTheOthersInTheRequest) {
  auto engine = MakeFakePolicyEngine();
  ASSERT_OK(engine->Load(
      *FakeSnapshot(FakeModelConfig(11, 4, HeadKind::kScalar), "reward", 3)));
  const RewardRules rules{.kind = "rm", .table = nullptr, .lexicon = nullptr};
  const std::vector<ScoreInput> both = {Sequence({1, 2, 3, 4}, {5, 6}),
                                        Sequence({7}, {8})};
  const std::vector<ScoreInput> one = {both[1]};
  ASSERT_OK_AND_ASSIGN(const auto a,
                       ScoreSequences(rules, engine.get(), both, false));
  ASSERT_OK_AND_ASSIGN(const auto b,
                       ScoreSequences(rules, engine.get(), one, false));
  EXPECT_NEAR(a[1].total, b[0].total, 1e-5);
}

TEST(RewardCoreTest, GoldIsAPartAndNeverTheTotal) {
  ASSERT_OK_AND_ASSIGN(LexiconScorer lexicon,
                       LexiconScorer::FromText("good\t2.0\nbad\t-2.0\n"));
  ASSERT_OK_AND_ASSIGN(
      TableReward table,
      TableReward::FromJson(R"({"entries":[{"response":[1],"reward":5}]})"));
  RewardRules rules;
  rules.kind = "table";
  rules.table = std::make_shared<const TableReward>(std::move(table));
  rules.lexicon = std::make_shared<const LexiconScorer>(std::move(lexicon));
  std::vector<ScoreInput> inputs = {Sequence({9}, {1}), Sequence({9}, {2})};
  inputs[0].response_text = "good";
  inputs[1].response_text = "bad";
  ASSERT_OK_AND_ASSIGN(const auto results,
                       ScoreSequences(rules, nullptr, inputs, /*gold=*/true));
  EXPECT_EQ(results[0].total, 5.0);
  EXPECT_FALSE(results[1].scored);
  EXPECT_THAT(results[1].reason, HasSubstr("table"));
  // valence 2: 2 / sqrt(4 + 15)
  ASSERT_EQ(results[0].parts.size(), 2u);
  EXPECT_EQ(results[0].parts[1].first, "gold");
  EXPECT_NEAR(results[0].parts[1].second, 2 / std::sqrt(19.0), 1e-12);
  ASSERT_EQ(results[1].parts.size(), 1u);
  EXPECT_NEAR(results[1].parts[0].second, -2 / std::sqrt(19.0), 1e-12);
  rules.kind = "lexicon";
  ASSERT_OK_AND_ASSIGN(const auto valence,
                       ScoreSequences(rules, nullptr, inputs, false));
  EXPECT_NEAR(valence[1].total, -2 / std::sqrt(19.0), 1e-12);
}

TEST(RewardCoreTest, WithoutARewardNothingIsScored) {
  const RewardRules rules{.kind = "rm", .table = nullptr, .lexicon = nullptr};
  const std::vector<ScoreInput> inputs = {Sequence({1}, {2})};
  ASSERT_OK_AND_ASSIGN(const auto results,
                       ScoreSequences(rules, nullptr, inputs, false));
  EXPECT_FALSE(results[0].scored);
  EXPECT_FALSE(results[0].reason.empty());
}

TEST(ReferenceLogprobsTest, AreThoseOfThePolicyThatGenerated) {
  auto engine = MakeFakePolicyEngine();
  ASSERT_OK(engine->Load(*FakeSnapshot(FakeModelConfig(7, 8), "policy", 1)));
  GenerateRequest request;
  request.prompts = {{1, 2}, {3}};
  request.prompt_ids = {10, 11};
  request.sample_indices = {0, 0};
  request.seed = 5;
  request.max_new_tokens = 4;
  request.sampling.temperature = 0.7;
  ASSERT_OK_AND_ASSIGN(const GenerateResult generated,
                       engine->Generate(request));
  const std::vector<ScoreInput> inputs = {Sequence({1, 2}, generated.tokens[0]),
                                          Sequence({3}, generated.tokens[1])};
  ASSERT_OK_AND_ASSIGN(const auto rows,
                       ReferenceLogprobs(engine.get(), inputs, 0.7));
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_EQ(rows[i].size(), generated.logprobs[i].size());
    for (size_t j = 0; j < rows[i].size(); ++j) {
      EXPECT_NEAR(rows[i][j], generated.logprobs[i][j], 1e-5);
    }
  }
}

MonoTime At(int64_t ms) { return MonoTime{1} + absl::Milliseconds(ms); }

RequestTicket Ticket(uint64_t id, std::string hash, int64_t deadline_ms,
                     ModelSlot slot = ModelSlot::kReward) {
  return {.id = id,
          .slot = slot,
          .hash = std::move(hash),
          .deadline = At(deadline_ms)};
}

TEST(RequestQueueTest, WhatCanBeServedOvertakesWhatMustWait) {
  RequestQueue queue(8);
  ASSERT_OK(queue.Push(Ticket(1, "new", 100)));
  ASSERT_OK(queue.Push(Ticket(2, "old", 100)));
  ASSERT_OK(queue.Push(Ticket(3, "", 100)));
  ASSERT_OK(queue.Push(Ticket(4, "old", 100, ModelSlot::kReference)));
  std::map<ModelSlot, std::string> held = {{ModelSlot::kReward, "old"}};
  EXPECT_EQ(queue.Next(At(0), held)->id, 2u);
  EXPECT_EQ(queue.Next(At(0), held)->id, 3u);  // needs no model
  EXPECT_FALSE(queue.Next(At(0), held).has_value());
  held[ModelSlot::kReward] = "new";
  const auto first = queue.Next(At(1), held);
  EXPECT_EQ(first->id, 1u);
  EXPECT_THAT(first->verdict, IsOk());
  held[ModelSlot::kReference] = "old";
  EXPECT_EQ(queue.Next(At(1), held)->id, 4u);
}

TEST(RequestQueueTest, OverdueRequestsAreToldWhatIsHeld) {
  RequestQueue queue(8);
  ASSERT_OK(queue.Push(Ticket(1, "new", 50)));
  ASSERT_OK(queue.Push(Ticket(2, "old", 40)));
  EXPECT_EQ(*queue.NextDeadline(), At(40));
  const std::map<ModelSlot, std::string> held = {{ModelSlot::kReward, "old"}};
  const auto late = queue.Next(At(50), held);
  EXPECT_EQ(late->id, 1u);
  EXPECT_THAT(late->verdict, StatusIs(absl::StatusCode::kFailedPrecondition,
                                      HasSubstr("expected new, held old")));
  EXPECT_THAT(queue.Next(At(50), held)->verdict,
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(queue.NextDeadline().has_value());
}

TEST(RequestQueueTest, IsBounded) {
  RequestQueue queue(2);
  ASSERT_OK(queue.Push(Ticket(1, "", 1)));
  ASSERT_OK(queue.Push(Ticket(2, "", 1)));
  EXPECT_THAT(queue.Push(Ticket(3, "", 1)),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace cox
