#include "tests/model/test_models.h"

#include "gtest/gtest.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

// One compute thread for every test of the binary.
class TorchEnvironment : public ::testing::Environment {
 public:
  void SetUp() override { ASSERT_TRUE(InitTorch(EngineOptions()).ok()); }
};
const ::testing::Environment* const kTorchEnvironment =
    ::testing::AddGlobalTestEnvironment(new TorchEnvironment);

}  // namespace

ModelConfig TinyConfig(const std::string& name) {
  ModelConfig config;
  config.vocab_size = 11;
  config.hidden = 8;
  config.layers = 2;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 4;
  config.intermediate = 12;
  config.max_positions = 64;
  if (name == "gpt2") {
    config.family = ModelFamily::kGpt2;
    config.kv_heads = 2;
    config.intermediate = 32;
    config.max_positions = 16;
    config.attention_bias = config.mlp_bias = true;
  } else if (name == "llama" || name == "llama3") {
    config.family = ModelFamily::kLlama;
    config.tied_embeddings = false;
    if (name == "llama3") config.rope_scaling = RopeScaling{8, 1, 4, 16};
  } else if (name == "qwen2" || name == "qwen3") {
    config.family = name == "qwen2" ? ModelFamily::kQwen2 : ModelFamily::kQwen3;
    config.rope_theta = 1e6;
    config.norm_eps = 1e-6;
    if (name == "qwen3") config.head_dim = 6;
  } else {
    EXPECT_EQ(name, "encdec");
    config.family = ModelFamily::kInstructEncdec;
    config.encoder_layers = 2;
    config.kv_heads = 2;
    config.intermediate = 32;
    config.max_positions = 16;
    config.tied_embeddings = false;
    config.attention_bias = config.mlp_bias = true;
  }
  return config;
}

std::vector<std::string> TinyNames() {
  return {"gpt2", "llama", "llama3", "qwen2", "qwen3", "encdec"};
}

ModelConfig Gpt2Config(int64_t hidden, int64_t layers, int64_t vocab) {
  ModelConfig config = TinyConfig("gpt2");
  config.hidden = hidden;
  config.layers = layers;
  config.vocab_size = vocab;
  config.heads = config.kv_heads = 4;
  config.head_dim = hidden / 4;
  config.intermediate = 4 * hidden;
  config.max_positions = 256;
  return config;
}

namespace {

std::shared_ptr<const Snapshot> Filled(
    const ModelConfig& config,
    const std::function<void(std::span<float>)>& fill) {
  Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> values(layout.arena_bytes / sizeof(float));
  fill(values);
  auto snapshot = SnapshotFromFloats(layout, values);
  EXPECT_TRUE(snapshot.ok()) << snapshot.status();
  return *snapshot;
}

}  // namespace

std::shared_ptr<const Snapshot> SineSnapshot(const ModelConfig& config) {
  return Filled(config,
                [&](std::span<float> out) { SineFill(config, 1.3, 0.7, out); });
}

std::shared_ptr<const Snapshot> RandomSnapshot(const ModelConfig& config,
                                               uint64_t seed) {
  return Filled(config, [&](std::span<float> out) {
    InitializeParameters(config, seed, out);
  });
}

TokenBatch MakeBatch(const std::vector<std::vector<int32_t>>& sequences,
                     const std::vector<std::vector<int32_t>>& instructions) {
  auto pad = [](const std::vector<std::vector<int32_t>>& rows, int64_t* length,
                std::vector<int32_t>* ids, std::vector<int32_t>* lengths) {
    for (const auto& row : rows) {
      *length = std::max(*length, static_cast<int64_t>(row.size()));
    }
    for (const auto& row : rows) {
      ids->insert(ids->end(), row.begin(), row.end());
      ids->resize(ids->size() + static_cast<size_t>(*length) - row.size(),
                  -12345);
      lengths->push_back(static_cast<int32_t>(row.size()));
    }
  };
  TokenBatch batch;
  batch.batch = static_cast<int64_t>(sequences.size());
  pad(sequences, &batch.length, &batch.ids, &batch.lengths);
  pad(instructions, &batch.instruction_length, &batch.instruction_ids,
      &batch.instruction_lengths);
  batch.scored.assign(batch.ids.size(), 0);
  for (int64_t b = 0; b < batch.batch; ++b) {
    for (int64_t j = 0; j + 1 < batch.lengths[static_cast<size_t>(b)]; ++j) {
      batch.scored[static_cast<size_t>(b * batch.length + j)] = 1;
    }
  }
  return batch;
}

TokenBatch SmallBatch(const ModelConfig& config) {
  const bool encdec = config.family == ModelFamily::kInstructEncdec;
  return MakeBatch({{3, 1, 4, 1, 5}, {2, 7, 10}},
                   encdec ? std::vector<std::vector<int32_t>>{{6, 2}, {8, 1, 9}}
                          : std::vector<std::vector<int32_t>>{});
}

GenerateRequest SomeRequest(const ModelConfig& config, size_t rows) {
  GenerateRequest request;
  CounterRng rng(4, "prompts");
  const auto some_ids = [&](uint64_t most) {
    std::vector<int32_t> ids(1 + rng.NextBelow(most));
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(
          rng.NextBelow(static_cast<uint64_t>(config.vocab_size)));
    }
    return ids;
  };
  for (size_t r = 0; r < rows; ++r) {
    request.prompts.push_back(some_ids(6));
    if (config.family == ModelFamily::kInstructEncdec) {
      // Some rows share theirs.
      request.instructions.push_back(r % 3 == 1 ? request.instructions.back()
                                                : some_ids(5));
    }
    request.prompt_ids.push_back(50 + r);
    request.sample_indices.push_back(r % 3);
  }
  request.seed = 9;
  request.max_new_tokens = 8;
  request.sampling.eos_ids = {2};
  request.sampling.top_p = 0.95;
  return request;
}

ModelForwardRequest ForwardRequest(const ModelConfig& config,
                                   const std::vector<int64_t>& ids) {
  ModelForwardRequest request;
  request.config = config;
  request.parameters = SineParameters(config, 1.3, 0.7);
  request.batch = 1;
  request.length = static_cast<int64_t>(ids.size());
  request.ids = ids;
  request.mask.assign(ids.size(), 1);
  if (config.family == ModelFamily::kInstructEncdec) {
    request.instruction_length = 2;
    request.instruction_ids = {6, 2};
    request.instruction_mask = {1, 1};
  }
  return request;
}

std::unique_ptr<TrainEngine> LoadedTrainEngine(
    std::shared_ptr<const Snapshot> snapshot, const EngineOptions& options) {
  auto engine = MakeTrainEngine(options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  absl::Status loaded = (*engine)->Load(std::move(snapshot));
  EXPECT_TRUE(loaded.ok()) << loaded;
  return *std::move(engine);
}

}  // namespace cox
