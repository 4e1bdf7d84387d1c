#include "learner/stage_service.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/config/config.h"
#include "lib/engine/fake.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

using ::testing::HasSubstr;
using testing::StatusIsWith;

class StageServiceTest : public ::testing::Test {
 protected:
  StageServiceTest() : group_(MakeSingleRank()) {
    BpeOptions bpe;
    bpe.vocab_size = 300;
    bpe.texts = {"the food was good and the staff was kind. the room was bad."};
    context_.tokenizer = *Tokenizer::TrainByteLevelBpe(bpe);
    context_.vocab_size = context_.tokenizer->vocab_size();
    context_.eos_ids = {0};
    context_.pad_id = 1;
    context_.fs = &Fs::Real();
    context_.group = group_.get();
    context_.make_engine = [] { return MakeFakeTrainEngine(); };
    context_.fetch_file =
        [this](const std::string& name) -> absl::StatusOr<std::string> {
      const auto it = files_.find(name);
      if (it == files_.end()) {
        return absl::NotFoundError(name);
      }
      return it->second;
    };
    v1::RunConfig& config = context_.config;
    config = DefaultConfig();
    for (const char* stage : {"pretrain", "sft", "collect", "rm", "ppo"}) {
      config.add_stages(stage);
    }
    v1::ModelSettings* model = config.mutable_model();
    model->set_hidden(8);
    model->set_layers(1);
    model->set_heads(1);
    model->set_max_positions(24);
    std::string text;
    std::string sft;
    std::string pairs;
    for (int i = 0; i < 12; ++i) {
      absl::StrAppend(&text, R"({"text": "the food was good )", i, "\"}\n");
      absl::StrAppend(&sft, R"({"prompt": "the staff was", "completion": )",
                      R"(" kind and the room was good )", i, "\"}\n");
      absl::StrAppend(&pairs, R"({"chosen": "good )", i,
                      R"(", "rejected": "a very long complaint about the )",
                      R"(room that does not fit into the model at all"})",
                      "\n");
      absl::StrAppend(&files_["comparisons.jsonl"],
                      R"({"prompt": "x", "prompt_ids": [5, 6], "responses": )",
                      R"(["a", "b"], "response_ids": [[7, 0], [8]], )",
                      R"("ranking": [1, 2]})", "\n");
    }
    const auto write = [this](const std::string& name,
                              const std::string& data) {
      COX_CHECK(WriteFileDurably(Fs::Real(), dir_.Join(name), data).ok());
      return dir_.Join(name);
    };
    config.mutable_pretrain()->add_train(write("text.jsonl", text));
    config.mutable_pretrain()->add_heldout(dir_.Join("text.jsonl"));
    config.mutable_pretrain()->set_sequence_length(16);
    config.mutable_pretrain()->set_batch(4);
    config.mutable_sft()->add_train(write("sft.jsonl", sft));
    config.mutable_sft()->add_heldout(dir_.Join("text.jsonl"));
    config.mutable_sft()->set_sequence_length(16);
    config.mutable_sft()->set_batch(4);
    config.mutable_rm()->add_human_pairs(write("pairs.jsonl", pairs));
    config.mutable_rm()->set_batch(4);
    config.mutable_ppo()->mutable_ptx()->set_coef(0.5);
    config.mutable_ppo()->mutable_ptx()->set_sequence_length(12);
  }

  v1::Assignment Assignment(const std::string& kind, int32_t stage) {
    v1::Assignment assignment;
    assignment.set_kind(v1::Assignment::TRAIN);
    assignment.set_stage(stage);
    assignment.set_stage_kind(kind);
    assignment.set_total_steps(2);
    return assignment;
  }

  // Writes a finished stage's checkpoint.
  v1::CheckpointRef Checkpoint(StageRun& run, int32_t stage) {
    CheckpointContents contents;
    contents.models = *run.trainer->Models();
    contents.state = run.trainer->SaveState();
    contents.save.tokenizer_json = context_.tokenizer->ToJson();
    contents.save.eos_ids = context_.eos_ids;
    v1::CheckpointRef ref;
    ref.set_stage(stage);
    ref.set_step(run.trainer->completed_steps());
    ref.set_directory(dir_.Join(absl::StrCat(stage, "_step_000002.g1")));
    const auto written =
        WriteCheckpoint(Fs::Real(), ref.directory(), {}, contents);
    EXPECT_OK(written);
    ref.set_manifest_sha256(written->manifest_sha256);
    return ref;
  }

  StageRun RunStage(const v1::Assignment& assignment) {
    absl::StatusOr<StageRun> run = BuildStage(context_, assignment);
    COX_CHECK(run.ok());
    for (int64_t step = 1; step <= 2; ++step) {
      const auto result = run->trainer->Step(step, {});
      EXPECT_OK(result);
      last_ = *result;
    }
    return *std::move(run);
  }

  testing::TempDir dir_;
  std::map<std::string, std::string> files_;
  std::unique_ptr<Collective> group_;
  StageContext context_;
  StepResult last_;
};

TEST_F(StageServiceTest, EachStageStartsFromTheOneBefore) {
  StageRun pretrain = RunStage(Assignment("pretrain", 0));
  EXPECT_TRUE(last_.metrics.contains("text/heldout_ppl"));
  const v1::CheckpointRef first = Checkpoint(pretrain, 0);

  v1::Assignment next = Assignment("sft", 1);
  *next.mutable_policy() = first;
  {
    ASSERT_OK_AND_ASSIGN(const StageRun start, BuildStage(context_, next));
    EXPECT_EQ((*start.trainer->Trained())->content_hash,
              (*pretrain.trainer->Trained())->content_hash);
  }
  StageRun sft = RunStage(next);
  EXPECT_TRUE(last_.metrics.contains("text/heldout_ppl"));
  const v1::CheckpointRef second = Checkpoint(sft, 1);

  next = Assignment("rm", 3);
  *next.mutable_policy() = second;
  StageRun rm = RunStage(next);
  EXPECT_TRUE(last_.metrics.contains("rm/human_accuracy"));
  EXPECT_TRUE(last_.metrics.contains("rm/reward_bias"));
  const v1::CheckpointRef third = Checkpoint(rm, 3);

  next = Assignment("ppo", 4);
  *next.mutable_policy() = second;
  *next.mutable_reward() = third;
  ASSERT_OK_AND_ASSIGN(const StageRun ppo, BuildStage(context_, next));
  EXPECT_EQ((*ppo.trainer->Trained())->content_hash,
            (*sft.trainer->Trained())->content_hash);
  // The critic is the reward model, head, gain and bias included.
  EXPECT_EQ(ppo.critic->config().reward_bias,
            last_.metrics.at("rm/reward_bias"));
  EXPECT_TRUE(
      std::ranges::equal(ppo.critic->Parameters(), rm.policy->Parameters()));

  // An empty batch updates nothing; held-out text is measured all the same.
  ASSERT_OK_AND_ASSIGN(const StepResult measured, ppo.trainer->Step(1, {}));
  EXPECT_TRUE(measured.metrics.contains("text/heldout_ppl"));

  v1::PublishOrder order;
  order.mutable_ref()->set_model("reward");
  *order.mutable_checkpoint() = third;
  order.set_folder("reward");
  ASSERT_OK_AND_ASSIGN(const auto reward, OrderedModel(context_, order));
  EXPECT_EQ(reward->content_hash, (*rm.trainer->Trained())->content_hash);
  order.mutable_ref()->set_content_hash(std::string(64, '0'));
  EXPECT_THAT(OrderedModel(context_, order),
              testing::StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(StageServiceTest, PreferenceStagesStartAtTheirReference) {
  StageRun sft = RunStage(Assignment("sft", 1));
  const v1::CheckpointRef start = Checkpoint(sft, 1);
  context_.config.mutable_dpo()->set_batch(4);
  context_.config.mutable_kto()->set_batch(4);
  for (const char* kind : {"dpo", "kto"}) {
    const int32_t stage = kind == std::string("dpo") ? 3 : 4;
    v1::Assignment assignment = Assignment(kind, stage);
    *assignment.mutable_policy() = start;
    ASSERT_OK_AND_ASSIGN(const StageRun run, BuildStage(context_, assignment));
    EXPECT_EQ((*run.trainer->Trained())->content_hash,
              (*sft.trainer->Trained())->content_hash);
    ASSERT_OK_AND_ASSIGN(const StepResult first, run.trainer->Step(1, {}));
    EXPECT_EQ(first.metrics.at(absl::StrCat(kind, "/margin")), 0.0);
    EXPECT_TRUE(first.metrics.contains("text/heldout_ppl"));
    // Resumed, the reference is still where the stage began.
    StageRun trained = RunStage(assignment);
    assignment.set_total_steps(3);
    *assignment.mutable_resume() = Checkpoint(trained, stage);
    ASSERT_OK_AND_ASSIGN(const StageRun again,
                         BuildStage(context_, assignment));
    ASSERT_OK_AND_ASSIGN(const StepResult third, again.trainer->Step(3, {}));
    EXPECT_NE(third.metrics.at(absl::StrCat(kind, "/margin")), 0.0);
  }
}

TEST_F(StageServiceTest, RftTrainsOnTheBestAnswers) {
  StageRun rm = RunStage(Assignment("rm", 3));
  const v1::CheckpointRef reward = Checkpoint(rm, 3);
  for (const char* select : {"labeller", "reward"}) {
    context_.config.mutable_rft()->set_select(select);
    v1::Assignment assignment = Assignment("rft", 4);
    *assignment.mutable_reward() = reward;
    StageRun run = RunStage(assignment);
    EXPECT_TRUE(last_.metrics.contains("loss/lm"));
    EXPECT_GT(last_.metrics.at("text/tokens"), 0.0);
  }
  EXPECT_THAT(BuildStage(context_, Assignment("rft", 4)),
              StatusIsWith(absl::StatusCode::kInvalidArgument,
                           HasSubstr("no reward model")));
}

TEST_F(StageServiceTest, ResumesAtTheCheckpointOfItsStage) {
  StageRun run = RunStage(Assignment("sft", 1));
  v1::Assignment again = Assignment("sft", 1);
  again.set_total_steps(5);
  *again.mutable_resume() = Checkpoint(run, 1);
  ASSERT_OK_AND_ASSIGN(const StageRun resumed, BuildStage(context_, again));
  EXPECT_EQ(resumed.trainer->completed_steps(), 2);
  EXPECT_EQ(resumed.trainer->SaveState(), run.trainer->SaveState());
}

TEST_F(StageServiceTest, ErrorsNameWhatIsWrong) {
  context_.config.mutable_pretrain()->set_sequence_length(100);
  EXPECT_THAT(BuildStage(context_, Assignment("pretrain", 0)),
              StatusIsWith(absl::StatusCode::kInvalidArgument,
                           HasSubstr("pretrain.sequence_length")));
  files_.clear();
  EXPECT_THAT(BuildStage(context_, Assignment("rm", 3)),
              StatusIsWith(absl::StatusCode::kNotFound,
                           HasSubstr("comparisons.jsonl")));
  context_.config.mutable_sft()->set_train(0, dir_.Join("absent.jsonl"));
  EXPECT_THAT(
      BuildStage(context_, Assignment("sft", 1)),
      StatusIsWith(absl::StatusCode::kNotFound, HasSubstr("absent.jsonl")));
  EXPECT_FALSE(BuildStage(context_, Assignment("eval", 5)).ok());
}

}  // namespace
}  // namespace cox
