#ifndef COX_LIB_MODEL_OPS_API_H_
#define COX_LIB_MODEL_OPS_API_H_

// The forward pass in float32 or float64 with an arbitrary padding mask, for
// `cox-ops` (docs/ops-protocol.md §8) and for comparisons with other
// implementations. Runs the networks that the engines run.

#include <cstdint>
#include <vector>

#include "lib/base/status.h"
#include "lib/engine/model_config.h"

namespace cox {

struct ModelForwardRequest {
  ModelConfig config;
  // One per ParameterShapes() entry, row-major.
  std::vector<std::vector<double>> parameters;
  bool float64 = true;
  bool fused_attention = false;
  int64_t batch = 0;
  int64_t length = 0;
  std::vector<int64_t> ids;   // [B, L]; never read where the mask is 0
  std::vector<uint8_t> mask;  // [B, L], left or right padding
  // Encoder-decoder only, [B, LI].
  int64_t instruction_length = 0;
  std::vector<int64_t> instruction_ids;
  std::vector<uint8_t> instruction_mask;
  double temperature = 1.0;
};

struct ModelForwardResult {
  std::vector<double> logits;   // [B, L, V]; language-model head
  std::vector<double> logprob;  // [B, L]: entry j scores token j + 1, last 0
  std::vector<double> values;   // [B, L]; scalar head, raw
  std::vector<double> score;    // [B]: value at the last real token
};

// INVALID_ARGUMENT names the argument. Entries at mask 0 are finite.
absl::StatusOr<ModelForwardResult> ModelForward(
    const ModelForwardRequest& request);

// Exact in float64: the pinned fill, or a snapshot's float tensors (any
// dtype). FAILED_PRECONDITION names a tensor that does not fit the config.
std::vector<std::vector<double>> SineParameters(const ModelConfig& config,
                                                double a, double b);
absl::StatusOr<std::vector<std::vector<double>>> ParametersOf(
    const Snapshot& snapshot, const ModelConfig& config);

}  // namespace cox

#endif  // COX_LIB_MODEL_OPS_API_H_
