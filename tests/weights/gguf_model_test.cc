#include "lib/weights/gguf_model.h"

#include <cmath>
#include <cstring>
#include <numbers>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "nlohmann/json.hpp"
#include "tests/testing/status_matchers.h"
#include "tests/weights/gguf_writer.h"

namespace cox {
namespace {

using ::cox::testing::GgufWriter;
using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::vector<float> Ramp(size_t count, float start) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = start + static_cast<float>(i);
  return out;
}

struct Shape {
  std::string architecture = "llama";
  std::string pre = "smollm";
  bool untied = false;
  float rope_factor = 0;  // > 0: rope_freqs.weight of Llama 3
};

// Hidden 4, 2 heads of 4, 1 kv head, 1 layer, 5 tokens.
GgufWriter TinyModel(const Shape& shape) {
  GgufWriter out;
  const std::string& a = shape.architecture;
  out.Text("general.architecture", a);
  out.U32(a + ".block_count", 1);
  out.U32(a + ".context_length", 64);
  out.U32(a + ".embedding_length", 4);
  out.U32(a + ".feed_forward_length", 6);
  out.U32(a + ".attention.head_count", 2);
  out.U32(a + ".attention.head_count_kv", 1);
  out.U32(a + ".attention.key_length", 4);
  out.F32(a + ".attention.layer_norm_rms_epsilon", 1e-5f);
  out.F32(a + ".rope.freq_base", 1e5f);
  out.Text("tokenizer.ggml.model", "gpt2");
  out.Text("tokenizer.ggml.pre", shape.pre);
  out.Texts("tokenizer.ggml.tokens", {"<e>", "a", "b", "ab", "[PAD4]"});
  out.I32s("tokenizer.ggml.token_type", {3, 1, 1, 1, 5});
  out.Texts("tokenizer.ggml.merges", {"a b"});
  out.U32("tokenizer.ggml.eos_token_id", 0);
  out.U32("tokenizer.ggml.eot_token_id", 3);
  out.U32("tokenizer.ggml.bos_token_id", 1);
  out.Text("tokenizer.chat_template", "{{ messages }}");
  out.Floats("token_embd.weight", {5, 4}, Ramp(20, 0));
  out.Floats("blk.0.attn_norm.weight", {4}, Ramp(4, 100));
  out.Floats("blk.0.attn_q.weight", {8, 4}, Ramp(32, 200));
  out.Floats("blk.0.attn_k.weight", {4, 4}, Ramp(16, 300));
  out.Floats("blk.0.attn_v.weight", {4, 4}, Ramp(16, 400));
  out.Floats("blk.0.attn_output.weight", {4, 8}, Ramp(32, 500));
  out.Floats("blk.0.ffn_norm.weight", {4}, Ramp(4, 600));
  out.Floats("blk.0.ffn_gate.weight", {6, 4}, Ramp(24, 700));
  out.Floats("blk.0.ffn_up.weight", {6, 4}, Ramp(24, 800));
  out.Floats("blk.0.ffn_down.weight", {4, 6}, Ramp(24, 900));
  out.Floats("output_norm.weight", {4}, Ramp(4, 1000));
  if (shape.untied) out.Floats("output.weight", {5, 4}, Ramp(20, 1100));
  if (shape.rope_factor > 0) {
    // Wavelengths 2 pi and 2 pi sqrt(1e5) = 1987 < 8192 / 4: unchanged.
    out.Floats("rope_freqs.weight", {2}, {1.0f, shape.rope_factor});
  }
  return out;
}

absl::StatusOr<ModelFolder> Read(const GgufWriter& writer) {
  FaultFs fs;
  COX_CHECK(WriteFileDurably(fs, "m.gguf", writer.File()).ok());
  return ReadModelFolder(fs, "m.gguf");
}

std::vector<float> Floats(const ModelFolder& folder, const std::string& name) {
  const auto it = folder.tensors.find(name);
  if (it == folder.tensors.end()) return {};
  std::vector<float> out(it->second.data.size() / sizeof(float));
  std::memcpy(out.data(), it->second.data.data(), it->second.data.size());
  return out;
}

// First element of each row of a matrix with 4 columns.
std::vector<float> Rows(const ModelFolder& folder, const std::string& name) {
  std::vector<float> out;
  const std::vector<float> all = Floats(folder, name);
  for (size_t i = 0; i < all.size(); i += 4) out.push_back(all[i]);
  return out;
}

TEST(GgufModelTest, LlamaBecomesAModelFolder) {
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, Read(TinyModel({})));
  const Json config = Json::parse(folder.config_json);
  EXPECT_EQ(config["model_type"], "llama");
  EXPECT_EQ(config["vocab_size"], 5);
  EXPECT_EQ(config["hidden_size"], 4);
  EXPECT_EQ(config["head_dim"], 4);
  EXPECT_EQ(config["num_key_value_heads"], 1);
  // The decimals that the float32 stood for.
  EXPECT_EQ(config["rms_norm_eps"], 1e-5);
  EXPECT_EQ(config["rope_theta"], 1e5);
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config["eos_token_id"], 0);
  EXPECT_EQ(folder.tensors.size(), 11u);
  EXPECT_EQ(Floats(folder, "model.norm.weight"), Ramp(4, 1000));
  EXPECT_EQ(Floats(folder, "model.layers.0.mlp.down_proj.weight"),
            Ramp(24, 900));
}

// The file's row 2j + s is row s * 2 + j of the head.
TEST(GgufModelTest, RotaryRowsOfLlamaAreSortedBack) {
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, Read(TinyModel({})));
  const std::string attention = "model.layers.0.self_attn.";
  EXPECT_THAT(Rows(folder, attention + "q_proj.weight"),
              ElementsAre(200, 208, 204, 212, 216, 224, 220, 228));
  EXPECT_THAT(Rows(folder, attention + "k_proj.weight"),
              ElementsAre(300, 308, 304, 312));
  EXPECT_EQ(Floats(folder, attention + "v_proj.weight"), Ramp(16, 400));
}

TEST(GgufModelTest, RowsOfQwenStay) {
  Shape shape;
  shape.architecture = "qwen2";
  shape.pre = "qwen2";
  shape.untied = true;
  GgufWriter writer = TinyModel(shape);
  writer.Floats("blk.0.attn_q.bias", {8}, Ramp(8, 1));
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, Read(writer));
  const std::string attention = "model.layers.0.self_attn.";
  EXPECT_EQ(Floats(folder, attention + "q_proj.weight"), Ramp(32, 200));
  EXPECT_EQ(Floats(folder, attention + "q_proj.bias"), Ramp(8, 1));
  EXPECT_EQ(Floats(folder, "lm_head.weight"), Ramp(20, 1100));
  EXPECT_EQ(Json::parse(folder.config_json)["tie_word_embeddings"], false);
}

TEST(GgufModelTest, Llama3DivisorsBecomeItsScaling) {
  Shape shape;
  shape.rope_factor = 32;
  EXPECT_THAT(Read(TinyModel(shape)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("rope_freqs.weight")));
  // 8 frequencies of theta 5e5: expected divisors by docs/algorithms.md §12.
  GgufWriter writer;
  writer.Text("general.architecture", "llama");
  for (const auto& [key, value] : std::vector<std::pair<std::string, uint32_t>>{
           {"block_count", 1},
           {"context_length", 64},
           {"embedding_length", 32},
           {"feed_forward_length", 6},
           {"attention.head_count", 2}}) {
    writer.U32("llama." + key, value);
  }
  writer.F32("llama.rope.freq_base", 5e5f);
  writer.Text("tokenizer.ggml.model", "gpt2");
  writer.Text("tokenizer.ggml.pre", "llama-bpe");
  writer.Texts("tokenizer.ggml.tokens", {"a"});
  writer.Texts("tokenizer.ggml.merges", {});
  writer.Floats("token_embd.weight", {1, 32}, Ramp(32, 0));
  std::vector<float> divisors;
  for (int i = 0; i < 8; ++i) {
    const double wavelength = 2 * std::numbers::pi * std::pow(5e5, i / 8.0);
    const double smooth = (8192 / wavelength - 1) / 3;
    divisors.push_back(
        static_cast<float>(smooth >= 1   ? 1.0
                           : smooth <= 0 ? 32.0
                                         : 1 / ((1 - smooth) / 32 + smooth)));
  }
  ASSERT_GT(divisors[5], 0.9f);
  writer.Floats("rope_freqs.weight", {8}, divisors);
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, Read(writer));
  const Json scaling = Json::parse(folder.config_json)["rope_scaling"];
  EXPECT_EQ(scaling["rope_type"], "llama3");
  EXPECT_EQ(scaling["factor"], 32);
  EXPECT_EQ(scaling["original_max_position_embeddings"], 8192);
}

TEST(GgufModelTest, TokenizerAndTemplateComeAlong) {
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, Read(TinyModel({})));
  const Json tokenizer = Json::parse(*folder.tokenizer_json);
  EXPECT_EQ(tokenizer["model"]["vocab"],
            Json::parse(R"({"<e>": 0, "a": 1, "b": 2, "ab": 3})"));
  EXPECT_EQ(tokenizer["model"]["merges"], Json::parse(R"([["a", "b"]])"));
  ASSERT_EQ(tokenizer["added_tokens"].size(), 1u);
  EXPECT_EQ(tokenizer["added_tokens"][0]["content"], "<e>");
  EXPECT_EQ(tokenizer["added_tokens"][0]["special"], true);
  EXPECT_EQ(tokenizer["pre_tokenizer"]["pretokenizers"][0]["type"], "Digits");
  const Json named = Json::parse(*folder.tokenizer_config_json);
  EXPECT_EQ(named["chat_template"], "{{ messages }}");
  EXPECT_EQ(named["eos_token"], "<e>");
  EXPECT_EQ(named["bos_token"], "a");
  EXPECT_EQ(Json::parse(*folder.generation_config_json)["eos_token_id"],
            Json::parse("[0, 3]"));
}

TEST(GgufModelTest, ABeginningTokenIsAddedWhereTheFileSaysSo) {
  GgufWriter writer = TinyModel({});
  writer.Flag("tokenizer.ggml.add_bos_token", true);
  ASSERT_OK_AND_ASSIGN(const ModelFolder folder, Read(writer));
  const Json post = Json::parse(*folder.tokenizer_json)["post_processor"];
  EXPECT_EQ(post["type"], "TemplateProcessing");
  EXPECT_EQ(post["special_tokens"]["a"]["ids"], Json::parse("[1]"));
  EXPECT_EQ(post["single"].size(), 2u);
}

TEST(GgufModelTest, WhatHasNoPlaceIsRefused) {
  Shape other;
  other.architecture = "falcon";
  EXPECT_THAT(Read(TinyModel(other)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("found 'falcon'")));
  Shape pre;
  pre.pre = "poro-chat";
  EXPECT_THAT(Read(TinyModel(pre)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("found 'poro-chat'")));
  GgufWriter tensor = TinyModel({});
  tensor.Floats("blk.0.attn_rot_embd", {1}, {1});
  EXPECT_THAT(Read(tensor), StatusIs(absl::StatusCode::kFailedPrecondition,
                                     HasSubstr("has no place")));
  GgufWriter experts = TinyModel({});
  experts.U32("llama.expert_count", 8);
  EXPECT_THAT(Read(experts), StatusIs(absl::StatusCode::kFailedPrecondition,
                                      HasSubstr("mixtures of experts")));
}

TEST(GgufModelTest, BadTokenizersAreRefused) {
  const auto with = [](const std::vector<std::string>& tokens,
                       const std::vector<std::string>& merges) {
    GgufWriter out;
    out.Text("tokenizer.ggml.model", "gpt2");
    out.Text("tokenizer.ggml.pre", "gpt-2");
    out.Texts("tokenizer.ggml.tokens", tokens);
    out.Texts("tokenizer.ggml.merges", merges);
    const std::string file = out.File();
    return GgufTokenizerJson(*ParseGgufHeader(file, file.size()));
  };
  EXPECT_OK(with({"a", "b"}, {"a b"}));
  EXPECT_THAT(with({"a", "a"}, {}), StatusIs(absl::StatusCode::kDataLoss,
                                             HasSubstr("token 1 occurs")));
  EXPECT_THAT(with({"a", "\xff"}, {}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("not UTF-8")));
  for (const char* merge : {"ab", " b", "a ", "a b c"}) {
    EXPECT_THAT(with({"a"}, {merge}),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("entry 0")));
  }
  GgufWriter spm;
  spm.Text("tokenizer.ggml.model", "llama");
  const std::string file = spm.File();
  EXPECT_THAT(GgufTokenizerJson(*ParseGgufHeader(file, file.size())),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("found 'llama'")));
}

TEST(ModelTextsTest, NeedNoWeightsAndPreferTheTemplateFile) {
  FaultFs fs;
  ASSERT_OK(fs.MakeDirs("m"));
  ASSERT_OK(WriteFileDurably(fs, "m/config.json", "{}"));
  ASSERT_OK(WriteFileDurably(fs, "m/tokenizer.json", "{\"t\":1}"));
  ASSERT_OK_AND_ASSIGN(ModelFolder folder, ReadModelTexts(fs, "m"));
  EXPECT_FALSE(folder.tokenizer_config_json.has_value());
  ASSERT_OK(WriteFileDurably(fs, "m/chat_template.jinja", "new"));
  ASSERT_OK(WriteFileDurably(fs, "m/tokenizer_config.json",
                             R"({"chat_template":"old","eos_token":"e"})"));
  ASSERT_OK_AND_ASSIGN(folder, ReadModelTexts(fs, "m"));
  EXPECT_EQ(Json::parse(*folder.tokenizer_config_json),
            Json::parse(R"({"chat_template":"new","eos_token":"e"})"));
  for (const char* path : {"m", "m/tokenizer.json"}) {
    EXPECT_EQ(ReadTokenizerJson(fs, path).value(), "{\"t\":1}");
  }
}

}  // namespace
}  // namespace cox
