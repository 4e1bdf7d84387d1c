// Conversations through real processes: prompts are messages written with a
// chat template, answers end with stop strings and stop ids.

#include <cstdlib>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "coordinator/ledger_reader.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/data/tokenizer.h"
#include "nlohmann/json.hpp"
#include "tests/process/run_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using cox::testing::TempDir;
using ::testing::HasSubstr;

constexpr size_t kMaxNewTokens = 8;
constexpr int32_t kFirstStopId = 300;
constexpr int32_t kLastStopId = 329;

void Write(const std::string& path, const std::string& text) {
  ASSERT_TRUE(WriteFileDurably(Fs::Real(), path, text).ok());
}

// A policy of random weights: its answers are random tokens.
std::string WriteTask(const std::string& dir) {
  const std::string data =
      absl::StrCat(std::getenv("COX_SOURCE_DIR"), "/examples/data");
  Write(JoinPath(dir, "chatml.jinja"),
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  Write(JoinPath(dir, "prompts.jsonl"),
        R"({"messages":[{"role":"user","content":"good?"}]})"
        "\n"
        R"({"messages":[{"role":"system","content":"Be kind."},)"
        R"({"role":"user","content":"Why?"}]})"
        "\n"
        R"({"messages":[{"role":"user","content":"a b"},)"
        R"({"role":"assistant","content":"never seen"}]})"
        "\n");
  std::string ids;
  for (int32_t id = kFirstStopId; id <= kLastStopId; ++id) {
    absl::StrAppend(&ids, ids.empty() ? "" : ", ", id);
  }
  Write(JoinPath(dir, "run.yaml"),
        absl::StrCat(
            "name: messages\nseed: 5\nstages: [ppo]\n"
            "model: {type: gpt2, hidden: 16, layers: 1, heads: 2, "
            "max_positions: 80}\n"
            "tokenizer: {kind: train, vocab_size: 600, files: [",
            data,
            "/reviews/sft.jsonl], eos_token: '<|im_end|>', "
            "chat_template: chatml.jinja}\n"
            "roles: {actors: 2, rewards: 1, learners: 1}\n"
            "generation: {max_prompt_tokens: 64, max_new_tokens: ",
            kMaxNewTokens, ", stop: [e, 'in'], stop_ids: [", ids,
            "]}\n"
            "reward: {kind: lexicon, lexicon: ",
            data,
            "/lexicon/vader_lexicon.tsv, monitor_gold: false}\n"
            "log: {samples_per_step: 100}\n"
            "ppo: {prompts: [prompts.jsonl], steps: 2, prompts_per_step: 12, "
            "unit_prompts: 3, samples_per_prompt: 4, epochs: 1, "
            "minibatches: 1, missing_eos: none}\n"));
  return JoinPath(dir, "run.yaml");
}

struct Ends {
  int by_string = 0;
  int by_id = 0;
  int by_length = 0;
};

// The answer ends with the first token after which it contains a stop string
// or that is a stop id, and nowhere else.
void ExpectEnd(const Tokenizer& tokenizer, const Trajectory& sample,
               Ends* ends) {
  SCOPED_TRACE(sample.id.ToString());
  const std::vector<int32_t>& ids = sample.response_ids;
  ASSERT_FALSE(ids.empty());
  ASSERT_LE(ids.size(), kMaxNewTokens);
  EXPECT_EQ(sample.behaviour_logprobs.size(), ids.size());
  const std::optional<int32_t> end = tokenizer.TokenToId("<|im_end|>");
  for (size_t t = 0; t < ids.size(); ++t) {
    ASSERT_OK_AND_ASSIGN(const std::string text,
                         tokenizer.Decode(std::span(ids).first(t + 1),
                                          /*skip_special_tokens=*/false));
    const bool by_string = text.find('e') != std::string::npos ||
                           text.find("in") != std::string::npos;
    const bool by_id =
        ids[t] == end || (ids[t] >= kFirstStopId && ids[t] <= kLastStopId);
    if (t + 1 < ids.size()) {
      EXPECT_FALSE(by_string || by_id) << "went on after '" << text << "'";
    } else if (by_string || by_id) {
      EXPECT_EQ(sample.finish, FinishReason::kStop) << text;
      ends->by_string += by_string ? 1 : 0;
      ends->by_id += by_id && !by_string ? 1 : 0;
    } else {
      EXPECT_EQ(sample.finish, FinishReason::kLength) << text;
      EXPECT_EQ(ids.size(), kMaxNewTokens) << text;
      ++ends->by_length;
    }
  }
}

TEST(MessageRunTest, AnswersToMessagesEndWhereTheyMust) {
  TempDir dir;
  const std::string file = WriteTask(dir.path());
  const std::string two = JoinPath(dir.path(), "two");
  const RunResult result = Cox({"run", file, "run_dir=" + two}, dir.path());
  ASSERT_EQ(result.exit_code, 0) << result.output;
  ASSERT_OK_AND_ASSIGN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), two));
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<const Tokenizer> tokenizer,
                       Tokenizer::FromFile(JoinPath(two, "tokenizer.json")));
  Ends ends;
  std::set<std::string> prompts;
  std::map<std::string, std::string> responses;
  for (int64_t step = 1; step <= 2; ++step) {
    ASSERT_OK_AND_ASSIGN(const std::vector<UnitRow> units,
                         run.UnitsOfStep(0, step));
    ASSERT_EQ(units.size(), 4u);
    for (const UnitRow& unit : units) {
      ASSERT_OK_AND_ASSIGN(const std::vector<Trajectory> samples,
                           run.ReadUnit(unit));
      for (const Trajectory& sample : samples) {
        ExpectEnd(*tokenizer, sample, &ends);
        ASSERT_OK_AND_ASSIGN(const std::string prompt,
                             tokenizer->Decode(sample.prompt_ids,
                                               /*skip_special_tokens=*/false));
        prompts.insert(prompt);
        // As people see it: without special tokens.
        ASSERT_OK_AND_ASSIGN(responses[sample.id.ToString()],
                             tokenizer->Decode(sample.response_ids));
      }
    }
  }
  EXPECT_EQ(responses.size(), 96u);
  EXPECT_GT(ends.by_string, 10);
  EXPECT_GT(ends.by_id, 3);
  EXPECT_GT(ends.by_length, 0);
  EXPECT_THAT(
      prompts,
      ::testing::UnorderedElementsAre(
          "<|im_start|>user\ngood?<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?"
          "<|im_end|>\n<|im_start|>assistant\n",
          "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n"));

  // What people see, with the token that completed a stop string.
  const RunResult shown = Cox({"samples", two, "--limit", "1000"}, dir.path());
  EXPECT_EQ(shown.exit_code, 0) << shown.output;
  int compared = 0;
  for (const auto& [id, response] : responses) {
    EXPECT_THAT(shown.output, HasSubstr(id));
    if (response.find('e') == std::string::npos) continue;
    EXPECT_THAT(shown.output, HasSubstr(response)) << id;
    ++compared;
  }
  EXPECT_GT(compared, 10);

  const std::string one = JoinPath(dir.path(), "one");
  const RunResult alone =
      Cox({"run", file, "run_dir=" + one, "roles.actors=1"}, dir.path());
  ASSERT_EQ(alone.exit_code, 0) << alone.output;
  EXPECT_EQ(UnitHashes(one), UnitHashes(two));
  EXPECT_EQ(CommittedSteps(one), CommittedSteps(two));
}

}  // namespace
}  // namespace cox
