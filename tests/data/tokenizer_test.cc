#include "lib/data/tokenizer.h"

#include <cstdlib>
#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using TokenizerPtr = std::shared_ptr<const Tokenizer>;

BpeOptions SmallBpe() {
  BpeOptions options;
  options.vocab_size = 300;
  options.texts = {"the cat sat on the mat", "the cat ate the rat",
                   "that cat, the fat cat"};
  return options;
}

TokenizerPtr MakeTokenizer() {
  absl::StatusOr<TokenizerPtr> made = Tokenizer::TrainByteLevelBpe(SmallBpe());
  COX_CHECK(made.ok());
  return *made;
}

// Random characters of every UTF-8 length.
std::string RandomText(CounterRng& rng) {
  std::string text;
  const uint64_t length = rng.NextBelow(40);
  for (uint64_t i = 0; i < length; ++i) {
    const uint64_t kind = rng.NextBelow(4);
    if (kind == 0) {
      text.push_back(static_cast<char>(rng.NextBelow(0x80)));
    } else if (kind == 1) {
      const uint64_t c = 0x80 + rng.NextBelow(0x800 - 0x80);
      text.push_back(static_cast<char>(0xC0 | (c >> 6)));
      text.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    } else if (kind == 2) {
      const uint64_t c = 0x800 + rng.NextBelow(0xD800 - 0x800);
      text.push_back(static_cast<char>(0xE0 | (c >> 12)));
      text.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
      text.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    } else {
      const uint64_t c = 0x10000 + rng.NextBelow(0x110000 - 0x10000);
      text.push_back(static_cast<char>(0xF0 | (c >> 18)));
      text.push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
      text.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
      text.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    }
  }
  return text;
}

TEST(TokenizerTest, DecodeUndoesEncodeForRandomText) {
  const TokenizerPtr tokenizer = MakeTokenizer();
  CounterRng rng(1, "tokenizer-test");
  for (int i = 0; i < 300; ++i) {
    const std::string text = RandomText(rng);
    ASSERT_OK_AND_ASSIGN(const std::vector<int32_t> ids,
                         tokenizer->Encode(text));
    EXPECT_THAT(tokenizer->Decode(ids), IsOkAndHolds(text));
  }
}

TEST(TokenizerTest, TrainingTwiceGivesTheSameBytes) {
  const TokenizerPtr first = MakeTokenizer();
  const TokenizerPtr second = MakeTokenizer();
  EXPECT_EQ(first->ToJson(), second->ToJson());
  EXPECT_EQ(first->Hash(), second->Hash());
  EXPECT_EQ(first->Hash(), Sha256Hex(first->ToJson()));
}

TEST(TokenizerTest, MergesTheMostFrequentPairsFirst) {
  // In "ababab ab" the pair (a, b) occurs 4 times; then "abab" does twice.
  BpeOptions options;
  options.vocab_size = 1 + 256 + 2;
  options.texts = {"ababab", "abab"};
  ASSERT_OK_AND_ASSIGN(const TokenizerPtr tokenizer,
                       Tokenizer::TrainByteLevelBpe(options));
  EXPECT_EQ(tokenizer->TokenToId("ab"), 257);
  EXPECT_EQ(tokenizer->TokenToId("abab"), 258);
  EXPECT_THAT(tokenizer->Encode("ababa"),
              IsOkAndHolds(ElementsAre(258, *tokenizer->TokenToId("a"))));
}

TEST(TokenizerTest, EqualCountsMergeTheSmallestIdsFirst) {
  BpeOptions options;
  options.vocab_size = 1 + 256 + 1;
  options.texts = {"yz", "bc", "yz", "bc"};
  ASSERT_OK_AND_ASSIGN(const TokenizerPtr tokenizer,
                       Tokenizer::TrainByteLevelBpe(options));
  EXPECT_EQ(tokenizer->IdToToken(257), "bc");
}

TEST(TokenizerTest, StopsWhenNoPairIsFrequentEnough) {
  BpeOptions options;
  options.vocab_size = 2048;
  options.texts = {"abc"};  // every pair once, below min_frequency 2
  ASSERT_OK_AND_ASSIGN(const TokenizerPtr tokenizer,
                       Tokenizer::TrainByteLevelBpe(options));
  EXPECT_EQ(tokenizer->vocab_size(), 257);
}

TEST(TokenizerTest, TextsAndFilesTrainAlike) {
  const testing::TempDir dir;
  const std::string path = dir.Join("corpus.txt");
  BpeOptions from_texts = SmallBpe();
  from_texts.texts = {"one two one two"};
  BpeOptions from_files = from_texts;
  from_files.texts.clear();
  from_files.files = {path};
  ASSERT_OK(WriteFileDurably(Fs::Real(), path, from_texts.texts[0]));
  ASSERT_OK_AND_ASSIGN(const TokenizerPtr a,
                       Tokenizer::TrainByteLevelBpe(from_texts));
  ASSERT_OK_AND_ASSIGN(const TokenizerPtr b,
                       Tokenizer::TrainByteLevelBpe(from_files));
  EXPECT_EQ(a->Hash(), b->Hash());
}

TEST(TokenizerTest, SpecialTokensHaveTheFirstIdsAndDoNotMerge) {
  BpeOptions options = SmallBpe();
  options.special_tokens = {"<|endoftext|>", "<pad>"};
  for (std::string& text : options.texts) {
    text += "<|endoftext|>";
  }
  ASSERT_OK_AND_ASSIGN(const TokenizerPtr tokenizer,
                       Tokenizer::TrainByteLevelBpe(options));
  EXPECT_EQ(tokenizer->TokenToId("<|endoftext|>"), 0);
  EXPECT_EQ(tokenizer->TokenToId("<pad>"), 1);
  ASSERT_OK_AND_ASSIGN(const std::vector<int32_t> ids,
                       tokenizer->Encode("cat<|endoftext|>"));
  EXPECT_EQ(ids.back(), 0);
  EXPECT_THAT(tokenizer->Decode(ids), IsOkAndHolds("cat"));
  EXPECT_THAT(tokenizer->Decode(ids, /*skip_special_tokens=*/false),
              IsOkAndHolds("cat<|endoftext|>"));
  EXPECT_FALSE(tokenizer->TokenToId("end").has_value());
}

TEST(TokenizerTest, EncodeAddsNothingByItself) {
  const TokenizerPtr tokenizer = MakeTokenizer();
  EXPECT_THAT(tokenizer->Encode(""), IsOkAndHolds(ElementsAre()));
  EXPECT_THAT(tokenizer->Decode({}), IsOkAndHolds(""));
}

TEST(TokenizerTest, ReloadedFromItsJsonItIsTheSame) {
  const TokenizerPtr tokenizer = MakeTokenizer();
  const testing::TempDir dir;
  const std::string path = dir.Join("tokenizer.json");
  ASSERT_OK(WriteFileDurably(Fs::Real(), path, tokenizer->ToJson()));
  ASSERT_OK_AND_ASSIGN(const TokenizerPtr loaded, Tokenizer::FromFile(path));
  EXPECT_EQ(loaded->Hash(), tokenizer->Hash());
  EXPECT_EQ(loaded->vocab_size(), tokenizer->vocab_size());
  EXPECT_EQ(*loaded->Encode("the fat cat"), *tokenizer->Encode("the fat cat"));
}

TEST(TokenizerTest, LoadErrorsAreStatuses) {
  EXPECT_THAT(Tokenizer::FromJson("{"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("tokenizer.json")));
  EXPECT_THAT(Tokenizer::FromJson(""),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Tokenizer::FromJson(R"({"model": {"type": "Zipf"}})"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  // The Rust crate panics on this one.
  std::string bad_decoder = MakeTokenizer()->ToJson();
  const size_t decoder = bad_decoder.find("\"decoder\":{");
  ASSERT_NE(decoder, std::string::npos);
  bad_decoder.replace(decoder + 11, 0, "\"x\":");
  EXPECT_THAT(Tokenizer::FromJson(bad_decoder),
              StatusIs(absl::StatusCode::kInvalidArgument));
  const testing::TempDir dir;
  const std::string path = dir.Join("none.json");
  EXPECT_THAT(Tokenizer::FromFile(path),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(path)));
}

TEST(TokenizerTest, TruncatedJsonIsAnErrorAtEveryLength) {
  const std::string json = MakeTokenizer()->ToJson();
  for (size_t size = 0; size < json.size(); size += 97) {
    EXPECT_THAT(Tokenizer::FromJson(json.substr(0, size)),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << size;
  }
}

TEST(TokenizerTest, BadTextAndIdsAreErrors) {
  const TokenizerPtr tokenizer = MakeTokenizer();
  EXPECT_THAT(tokenizer->Encode("a\xFFz"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("UTF-8")));
  const std::vector<int32_t> above = {1, tokenizer->vocab_size()};
  EXPECT_THAT(
      tokenizer->Decode(above),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at position 1")));
  const std::vector<int32_t> negative = {-1};
  EXPECT_THAT(tokenizer->Decode(negative),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(tokenizer->TokenToId("no such token").has_value());
  EXPECT_FALSE(tokenizer->IdToToken(-1).has_value());
  EXPECT_FALSE(tokenizer->IdToToken(1 << 20).has_value());
}

TEST(TokenizerTest, BadTrainingOptionsAreErrors) {
  const auto train = [](auto change) {
    BpeOptions options = SmallBpe();
    change(options);
    return Tokenizer::TrainByteLevelBpe(options).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(train([](BpeOptions& o) { o.vocab_size = 256; }), kInvalid);
  EXPECT_EQ(train([](BpeOptions& o) { o.texts.clear(); }), kInvalid);
  EXPECT_EQ(train([](BpeOptions& o) { o.texts = {"\xC3"}; }), kInvalid);
  EXPECT_EQ(train([](BpeOptions& o) { o.min_frequency = 0; }), kInvalid);
  EXPECT_EQ(train([](BpeOptions& o) { o.special_tokens = {"a"}; }), kInvalid);
  EXPECT_EQ(train([](BpeOptions& o) { o.special_tokens = {"a b"}; }), kInvalid);
  EXPECT_EQ(train([](BpeOptions& o) {
              o.special_tokens = {"<e>", "<e>"};
            }),
            kInvalid);
  EXPECT_EQ(train([](BpeOptions& o) { o.files = {"/nonexistent/x"}; }),
            absl::StatusCode::kNotFound);
}

TEST(TokenizerTest, ManyThreadsMayEncodeAtOnce) {
  const TokenizerPtr tokenizer = MakeTokenizer();
  const std::vector<int32_t> expected = *tokenizer->Encode("the cat sat");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        wrong[t] += *tokenizer->Encode("the cat sat") == expected ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(std::accumulate(wrong.begin(), wrong.end(), 0), 0);
}

TEST(StreamDecoderTest, PiecesJoinedEqualTheWholeText) {
  const TokenizerPtr tokenizer = MakeTokenizer();
  CounterRng rng(2, "tokenizer-test");
  for (int i = 0; i < 100; ++i) {
    const std::string text = RandomText(rng);
    ASSERT_OK_AND_ASSIGN(const std::vector<int32_t> ids,
                         tokenizer->Encode(text));
    StreamDecoder decoder(tokenizer);
    std::string joined;
    for (const int32_t id : ids) {
      ASSERT_OK_AND_ASSIGN(const std::string piece, decoder.Push(id));
      joined += piece;
    }
    ASSERT_OK_AND_ASSIGN(const std::string rest, decoder.Finish());
    EXPECT_EQ(joined + rest, text);
  }
}

TEST(StreamDecoderTest, HoldsBackHalfACharacter) {
  const TokenizerPtr tokenizer = MakeTokenizer();
  // U+00E9 is two bytes, and the vocabulary has each as a token of its own.
  ASSERT_OK_AND_ASSIGN(const std::vector<int32_t> ids,
                       tokenizer->Encode("\xC3\xA9"));
  ASSERT_EQ(ids.size(), 2U);
  StreamDecoder decoder(tokenizer);
  EXPECT_THAT(decoder.Push(ids[0]), IsOkAndHolds(""));
  EXPECT_THAT(decoder.Push(ids[1]), IsOkAndHolds("\xC3\xA9"));
  EXPECT_THAT(decoder.Push(ids[0]), IsOkAndHolds(""));
  EXPECT_THAT(decoder.Finish(), IsOkAndHolds("\xEF\xBF\xBD"));
}

TEST(RenderChatTest, FollowsTheTemplate) {
  ChatTemplateOptions options;
  options.template_text =
      "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>"
      "{{ m.content.strip() }}{{ eos_token }}\n{% endfor %}"
      "{% if add_generation_prompt %}<|assistant|>{% endif %}";
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  EXPECT_THAT(RenderChat(options, {{"user", " hi "}, {"assistant", "ho"}}),
              IsOkAndHolds("<s><|user|>hi</s>\n<|assistant|>ho</s>\n"
                           "<|assistant|>"));
}

TEST(RenderChatTest, ReportsErrorsOfTheTemplate) {
  ChatTemplateOptions options;
  options.template_text = "{% for %}";
  EXPECT_THAT(RenderChat(options, {{"user", "hi"}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  options.template_text = "{{ raise_exception('only two roles') }}";
  EXPECT_THAT(RenderChat(options, {{"user", "hi"}}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("only two roles")));
  options.template_text = std::string(100000, 'x');
  EXPECT_THAT(
      RenderChat(options, {{"user", "hi"}}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most")));
}

}  // namespace
}  // namespace cox
