#ifndef COX_LIB_ENGINE_MODEL_CONFIG_H_
#define COX_LIB_ENGINE_MODEL_CONFIG_H_

// Architecture of a model, read from and written to Hugging Face config.json.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/base/status.h"
#include "lib/weights/manifest.h"
#include "lib/weights/snapshot.h"

namespace cox {

enum class ModelFamily { kGpt2, kLlama, kQwen2, kQwen3, kInstructEncdec };
enum class HeadKind {
  kLanguageModel,  // lm_head (or the tied embedding)
  kScalar,         // score.weight [1, d] (+ score.bias): reward model, critic
};

// How rotary frequencies are stretched for long contexts
// (docs/algorithms.md §12).
enum class RopeKind { kLlama3, kLinear, kYarn };
struct RopeScaling {
  double factor = 1.0;
  double low_freq_factor = 1.0;       // llama3
  double high_freq_factor = 4.0;      // llama3
  int64_t original_max_position = 0;  // llama3, yarn
  RopeKind kind = RopeKind::kLlama3;
  double beta_fast = 32.0;  // yarn: rotations over the original length
  double beta_slow = 1.0;
  bool truncate = true;  // yarn: whole dimensions as bounds
  // yarn: of cos and sin; absent = 0.1 ln(factor) + 1.
  std::optional<double> attention_factor = std::nullopt;
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kGpt2;
  HeadKind head = HeadKind::kLanguageModel;
  int64_t vocab_size = 0;
  int64_t hidden = 0;
  int64_t layers = 0;          // decoder layers
  int64_t encoder_layers = 0;  // instruct_encdec only
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate = 0;
  int64_t max_positions = 0;
  double norm_eps = 1e-5;
  double rope_theta = 10000.0;
  std::optional<RopeScaling> rope_scaling;
  bool tied_embeddings = true;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool scale_by_inverse_layer = false;  // GPT-2 option
  bool score_bias = false;              // score.bias present
  std::vector<int32_t> eos_ids;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> pad_id;
  // Reward models: r <- gain * raw + bias. Stored as cox_reward_gain/_bias.
  double reward_gain = 1.0;
  double reward_bias = 0.0;

  // INVALID_ARGUMENT with the key, expected and found.
  static absl::StatusOr<ModelConfig> FromJson(std::string_view config_json);
  // config.json that transformers loads.
  std::string ToJson() const;
  absl::Status Validate() const;
  int64_t ParameterCount() const;
  // The first token of an encoder-decoder's decoder: BOS, else EOS, else 0.
  // None for other families.
  std::optional<int32_t> DecoderStart() const;
};

// Names and shapes in arena order (= the fill order of the pinned tiny models,
// docs/algorithms.md §12, §13), the head last.
std::vector<std::pair<std::string, std::vector<int64_t>>> ParameterShapes(
    const ModelConfig& config);

// Float32 manifest of the architecture with `model` as its role's name.
Manifest ParameterLayout(const ModelConfig& config, std::string model);

// Initial weights: normal(0, 0.02), residual projections scaled by
// 1/sqrt(2 layers), norms 1, biases 0, scalar head normal(0, 1/sqrt(d+1)).
// Function of (config, seed) only; `parameters` has the layout above.
void InitializeParameters(const ModelConfig& config, uint64_t seed,
                          std::span<float> parameters);

// The pinned fill of docs/algorithms.md §12: element n of tensor number k from
// sin(a k + b n). `parameters` has the layout above.
void SineFill(const ModelConfig& config, double a, double b,
              std::span<float> parameters);
double SineFillValue(const TensorInfo& tensor, int64_t k, int64_t n, double a,
                     double b);

// The same trunk with another head: tensors are copied by name; the new
// head is initialised from `seed` unless `from` carries it.
absl::StatusOr<std::shared_ptr<const Snapshot>> WithHead(const Snapshot& from,
                                                         HeadKind head,
                                                         std::string model,
                                                         uint64_t seed);

}  // namespace cox

#endif  // COX_LIB_ENGINE_MODEL_CONFIG_H_
