#include "coordinator/model_folder_check.h"

#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/engine/model_config.h"
#include "lib/weights/model_folder.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;
using ::testing::HasSubstr;

std::shared_ptr<const Tokenizer> Train(const std::string& text) {
  BpeOptions options;
  options.vocab_size = 300;
  options.special_tokens = {"<|endoftext|>", "<|pad|>"};
  options.texts = {text};
  return Tokenizer::TrainByteLevelBpe(options).value();
}

// A tiny GPT-2 folder of `vocab` tokens with `tokenizer`'s file.
void Save(const std::string& dir, int64_t vocab, const Tokenizer& tokenizer) {
  ModelConfig config;
  config.vocab_size = vocab;
  config.hidden = 8;
  config.layers = 1;
  config.heads = 2;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.intermediate = 32;
  config.max_positions = 8;
  const Manifest layout = ParameterLayout(config, "policy");
  auto arena = std::make_shared<Arena>(layout.arena_bytes);
  InitializeParameters(config, 1, arena->floats());
  auto snapshot = MakeSnapshot(layout, arena).value();
  SaveFolderOptions options;
  options.tokenizer_json = tokenizer.ToJson();
  ASSERT_TRUE(Fs::Real().MakeDirs(dir).ok());
  ASSERT_TRUE(SaveModelFolder(Fs::Real(), dir, *snapshot, options).ok());
}

class ModelFolderCheckTest : public ::testing::Test {
 protected:
  absl::Status Check(const Tokenizer* tokenizer, int64_t vocab) {
    return CheckModelFolder(Fs::Real(), "model.init", model_, tokenizer, vocab);
  }
  TempDir dir_;
  const std::string model_ = JoinPath(dir_.path(), "model");
  std::shared_ptr<const Tokenizer> tokenizer_ = Train("the cat and the hat");
};

TEST_F(ModelFolderCheckTest, AcceptsAWholeFolderWithTheRunsTokenizer) {
  Save(model_, 400, *tokenizer_);
  EXPECT_TRUE(Check(tokenizer_.get(), tokenizer_->vocab_size()).ok());
}

TEST_F(ModelFolderCheckTest, NamesAFileCutShort) {
  Save(model_, 400, *tokenizer_);
  const std::string file = JoinPath(model_, "model.safetensors");
  const uint64_t size = Fs::Real().FileSize(file).value();
  ASSERT_TRUE(Fs::Real().Truncate(file, size - 1).ok());
  EXPECT_THAT(Check(tokenizer_.get(), 300),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model.safetensors")));
}

TEST_F(ModelFolderCheckTest, RefusesASmallerVocabularyAndAnotherTokenizer) {
  Save(model_, 290, *tokenizer_);
  EXPECT_THAT(Check(nullptr, 300), StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr("at least 300 tokens")));
  const auto other = Train("quite another text with other words");
  EXPECT_THAT(Check(other.get(), 280),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("expected the run's tokenizer")));
}

TEST_F(ModelFolderCheckTest, AFolderThatIsNotThereIsNotFound) {
  EXPECT_THAT(Check(nullptr, 1),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("config.json")));
}

}  // namespace
}  // namespace cox
