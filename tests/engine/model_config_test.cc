#include "lib/engine/model_config.h"

#include <cmath>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::HasSubstr;

constexpr char kGpt2[] = R"({"model_type": "gpt2",
  "architectures": ["GPT2LMHeadModel"], "vocab_size": 11, "n_embd": 8,
  "n_layer": 2, "n_head": 2, "n_inner": null, "n_positions": 16,
  "activation_function": "gelu_new", "eos_token_id": 7, "bos_token_id": null})";
constexpr char kLlama[] = R"({"model_type": "llama",
  "architectures": ["LlamaForCausalLM"], "vocab_size": 11, "hidden_size": 8,
  "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
  "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "hidden_act": "silu",
  "rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0,
  "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16}, "eos_token_id": [1, 2]})";
constexpr char kEncdec[] = R"({"model_type": "instruct_encdec",
  "vocab_size": 11, "d_model": 8, "nhead": 2, "num_encoder_layers": 1,
  "num_decoder_layers": 2, "dim_feedforward": 16, "max_len": 12,
  "dropout": 0.1, "pad_token_id": 0})";

std::string Replace(std::string text, const std::string& from,
                    const std::string& to) {
  size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

ModelConfig Parsed(const std::string& json) {
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(json);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

std::string ErrorOf(const std::string& json) {
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(json);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

TEST(ModelConfigTest, ReadsGpt2WithItsDefaults) {
  ModelConfig config = Parsed(kGpt2);
  EXPECT_EQ(config.family, ModelFamily::kGpt2);
  EXPECT_EQ(config.intermediate, 32);  // n_inner null: 4 * n_embd
  EXPECT_EQ(config.head_dim, 4);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-5);
  EXPECT_EQ(config.eos_ids, std::vector<int32_t>{7});
  EXPECT_FALSE(config.bos_id.has_value());
}

TEST(ModelConfigTest, ReadsBothSpellingsOfRopeScaling) {
  ModelConfig old_form = Parsed(kLlama);
  ASSERT_TRUE(old_form.rope_scaling.has_value());
  EXPECT_DOUBLE_EQ(old_form.rope_scaling->factor, 8.0);
  EXPECT_EQ(old_form.rope_scaling->original_max_position, 16);
  EXPECT_EQ(old_form.head_dim, 4);
  EXPECT_EQ(old_form.eos_ids, (std::vector<int32_t>{1, 2}));
  ModelConfig new_form = Parsed(R"({"model_type": "llama", "vocab_size": 11,
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "rope_parameters": {"rope_type": "default",
    "rope_theta": 123.0}})");
  EXPECT_DOUBLE_EQ(new_form.rope_theta, 123.0);
  EXPECT_FALSE(new_form.rope_scaling.has_value());
  EXPECT_EQ(new_form.kv_heads, 2);
  EXPECT_FALSE(new_form.tied_embeddings);
}

TEST(ModelConfigTest, KeepsEveryKindOfRopeScaling) {
  const auto parsed = [](const std::string& rope) {
    return Parsed(R"({"model_type": "qwen2", "vocab_size": 11,
      "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
      "num_attention_heads": 2, "max_position_embeddings": 64,
      "rope_scaling": )" +
                  rope + "}");
  };
  for (const char* rope :
       {R"({"rope_type": "linear", "factor": 4.0})",
        R"({"type": "yarn", "factor": 4.0, "beta_fast": 16.0,
            "attention_factor": 1.5, "truncate": false})",
        R"({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
            "high_freq_factor": 2.0,
            "original_max_position_embeddings": 32})"}) {
    const ModelConfig config = parsed(rope);
    ASSERT_TRUE(config.rope_scaling.has_value()) << rope;
    const RopeScaling again = *Parsed(config.ToJson()).rope_scaling;
    EXPECT_EQ(again.kind, config.rope_scaling->kind) << rope;
    EXPECT_EQ(again.factor, config.rope_scaling->factor);
    EXPECT_EQ(again.beta_fast, config.rope_scaling->beta_fast);
    EXPECT_EQ(again.truncate, config.rope_scaling->truncate);
    EXPECT_EQ(again.attention_factor, config.rope_scaling->attention_factor);
    EXPECT_EQ(again.original_max_position,
              config.rope_scaling->original_max_position);
  }
  // Absent: the length that the model was trained for.
  EXPECT_EQ(parsed(R"({"rope_type": "yarn", "factor": 4.0})")
                .rope_scaling->original_max_position,
            64);
}

TEST(ModelConfigTest, WritesWhatItReads) {
  for (const char* json : {kGpt2, kLlama, kEncdec}) {
    ModelConfig config = Parsed(json);
    ModelConfig again = Parsed(config.ToJson());
    EXPECT_EQ(again.ToJson(), config.ToJson());
    EXPECT_EQ(ParameterShapes(again), ParameterShapes(config));
    EXPECT_EQ(again.eos_ids, config.eos_ids);
  }
}

TEST(ModelConfigTest, OneLabelMeansScalarHead) {
  const std::string scalar =
      Replace(kGpt2, "GPT2LMHeadModel", "GPT2ForSequenceClassification");
  // transformers means two labels when it writes none.
  EXPECT_THAT(ErrorOf(scalar), HasSubstr("num_labels"));
  ModelConfig config =
      Parsed(Replace(scalar, "{\"model_type\"",
                     "{\"num_labels\": 1, "
                     "\"cox_reward_gain\": 2.5, \"cox_reward_bias\": -1.0, "
                     "\"model_type\""));
  EXPECT_EQ(config.head, HeadKind::kScalar);
  EXPECT_DOUBLE_EQ(config.reward_gain, 2.5);
  EXPECT_EQ(ParameterShapes(config).back().first, "score.weight");
  ModelConfig again = Parsed(config.ToJson());
  EXPECT_EQ(again.head, HeadKind::kScalar);
  EXPECT_DOUBLE_EQ(again.reward_bias, -1.0);
}

TEST(ModelConfigTest, ErrorsNameKeyExpectedAndFound) {
  EXPECT_THAT(ErrorOf("[1]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf("{"), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf(R"({"model_type": "bert"})"),
              HasSubstr("instruct_encdec, found \"bert\""));
  EXPECT_THAT(ErrorOf(Replace(kGpt2, "\"n_embd\": 8", "\"n_embd\": \"8\"")),
              HasSubstr("n_embd: expected an integer"));
  EXPECT_THAT(ErrorOf(Replace(kGpt2, "\"n_embd\": 8", "\"n_embd\": 9")),
              HasSubstr("multiple of 2 heads"));
  EXPECT_THAT(ErrorOf(Replace(kGpt2, "\"n_embd\": 8,", "")),
              HasSubstr("n_embd"));
  EXPECT_THAT(
      ErrorOf(Replace(kGpt2, "\"n_embd\": 8", "\"n_embd\": 99999999999999")),
      HasSubstr("n_embd"));
  EXPECT_THAT(ErrorOf(Replace(kGpt2, "\"n_layer\": 2", "\"n_layer\": -1")),
              HasSubstr("layers: expected 1"));
  EXPECT_THAT(ErrorOf(Replace(kGpt2, "gelu_new", "relu")),
              HasSubstr("activation_function"));
  EXPECT_THAT(ErrorOf(Replace(kLlama, "llama3", "dynamic")),
              HasSubstr("rope_type default, llama3, linear or yarn"));
  EXPECT_THAT(ErrorOf(Replace(kLlama, "\"num_key_value_heads\": 1",
                              "\"num_key_value_heads\": 2, "
                              "\"head_dim\": 3")),
              HasSubstr("head_dim: expected an even number"));
  EXPECT_THAT(
      ErrorOf(Replace(kGpt2, "\"eos_token_id\": 7", "\"eos_token_id\": 11")),
      HasSubstr("eos_token_id"));
}

TEST(ParameterShapesTest, FollowsTheFillOrder) {
  auto gpt2 = ParameterShapes(Parsed(kGpt2));
  ASSERT_EQ(gpt2.size(), 2u + 2 * 12 + 2);
  EXPECT_EQ(gpt2[0].first, "transformer.wte.weight");
  EXPECT_EQ(gpt2[1].first, "transformer.wpe.weight");
  EXPECT_EQ(gpt2[4].first, "transformer.h.0.attn.c_attn.weight");
  EXPECT_EQ(gpt2[4].second, (std::vector<int64_t>{8, 24}));  // [in, out]
  EXPECT_EQ(gpt2.back().first, "transformer.ln_f.bias");

  auto llama = ParameterShapes(Parsed(kLlama));
  ASSERT_EQ(llama.size(), 1u + 2 * 9 + 2);
  EXPECT_EQ(llama[3].first, "model.layers.0.self_attn.k_proj.weight");
  EXPECT_EQ(llama[3].second, (std::vector<int64_t>{4, 8}));  // [out, in]
  EXPECT_EQ(llama.back().first, "lm_head.weight");

  auto encdec = ParameterShapes(Parsed(kEncdec));
  // 3 tables, encoder layer 16, norm 2, decoder layers 26 each, norm 2, head 2.
  ASSERT_EQ(encdec.size(), 3u + 16 + 2 + 2 * 26 + 2 + 2);
  EXPECT_EQ(encdec[2].first, "decoder.embed_positions.weight");
  EXPECT_EQ(encdec[3].first, "encoder.layers.0.norm1.weight");
  EXPECT_EQ(encdec[19].first, "encoder.norm.weight");
  EXPECT_EQ(encdec.back().first, "lm_head.bias");
}

TEST(ParameterShapesTest, Qwen2HasQkvBiasesAndQwen3HeadNorms) {
  std::string json = Replace(kLlama, "\"llama\"", "\"qwen2\"");
  std::set<std::string> names;
  for (const auto& [name, shape] : ParameterShapes(Parsed(json))) {
    names.insert(name);
  }
  EXPECT_TRUE(names.contains("model.layers.1.self_attn.q_proj.bias"));
  EXPECT_FALSE(names.contains("model.layers.1.self_attn.o_proj.bias"));
  names.clear();
  json = Replace(kLlama, "\"llama\"", "\"qwen3\"");
  json = Replace(json, "\"vocab_size\"", "\"head_dim\": 6, \"vocab_size\"");
  for (const auto& [name, shape] : ParameterShapes(Parsed(json))) {
    names.insert(name);
    if (name == "model.layers.0.self_attn.q_proj.weight") {
      EXPECT_EQ(shape, (std::vector<int64_t>{12, 8}));
    }
  }
  EXPECT_TRUE(names.contains("model.layers.0.self_attn.q_norm.weight"));
}

TEST(InitializeParametersTest, HasTheStatedScales) {
  ModelConfig config =
      Parsed(Replace(kGpt2, "\"vocab_size\": 11", "\"vocab_size\": 4000"));
  Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> values(layout.arena_bytes / sizeof(float));
  InitializeParameters(config, 3, values);
  auto tensor = [&](const std::string& name) {
    for (const TensorInfo& info : layout.tensors) {
      if (info.name == name) {
        return std::span<const float>(values).subspan(
            info.offset / sizeof(float), info.bytes / sizeof(float));
      }
    }
    ADD_FAILURE() << name;
    return std::span<const float>();
  };
  auto rms = [](std::span<const float> x) {
    double sum = 0;
    for (float v : x) sum += double{v} * double{v};
    return std::sqrt(sum / static_cast<double>(x.size()));
  };
  EXPECT_NEAR(rms(tensor("transformer.wte.weight")), 0.02, 0.0005);
  // 0.02 / sqrt(2 * 2 layers).
  EXPECT_NEAR(rms(tensor("transformer.h.0.mlp.c_proj.weight")), 0.01, 0.002);
  for (float v : tensor("transformer.ln_f.weight")) EXPECT_EQ(v, 1.0f);
  for (float v : tensor("transformer.h.1.mlp.c_fc.bias")) EXPECT_EQ(v, 0.0f);
  std::vector<float> again(values.size(), 9.0f);
  InitializeParameters(config, 3, again);
  EXPECT_EQ(again, values);
  InitializeParameters(config, 4, again);
  EXPECT_NE(again, values);
}

TEST(WithHeadTest, KeepsTheTrunkAndMakesTheHeadFromTheSeed) {
  ModelConfig config = Parsed(kLlama);  // untied: lm_head goes and comes
  Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> values(layout.arena_bytes / sizeof(float));
  SineFill(config, 1.3, 0.7, values);
  auto policy = SnapshotFromFloats(layout, values);
  ASSERT_TRUE(policy.ok()) << policy.status();
  auto critic = WithHead(**policy, HeadKind::kScalar, "critic", 5);
  ASSERT_TRUE(critic.ok()) << critic.status();
  EXPECT_EQ((*critic)->manifest.model, "critic");
  EXPECT_EQ((*critic)->manifest.tensors.back().name, "score.weight");
  auto trunk = [](const Snapshot& s) {
    auto bytes = s.Tensor("model.layers.1.mlp.up_proj.weight");
    EXPECT_TRUE(bytes.ok());
    return std::vector<std::byte>(bytes->begin(), bytes->end());
  };
  EXPECT_EQ(trunk(**critic), trunk(**policy));
  // A head that is there is kept, whatever the seed.
  auto reward = WithHead(**critic, HeadKind::kScalar, "critic", 6);
  ASSERT_TRUE(reward.ok());
  EXPECT_EQ((*reward)->content_hash, (*critic)->content_hash);
  auto other = WithHead(**policy, HeadKind::kScalar, "critic", 6);
  ASSERT_TRUE(other.ok());
  EXPECT_NE((*other)->content_hash, (*critic)->content_hash);
}

}  // namespace
}  // namespace cox
