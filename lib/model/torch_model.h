#ifndef COX_LIB_MODEL_TORCH_MODEL_H_
#define COX_LIB_MODEL_TORCH_MODEL_H_

// What the three LibTorch engines share: weights as tensors, batches as rows,
// and the frozen passes.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "lib/gpu/api.h"
#include "lib/model/api.h"
#include "lib/model/attention.h"
#include "lib/model/language_head.h"
#include "lib/model/network.h"

namespace cox {

// INVALID_ARGUMENT or FAILED_PRECONDITION when no engine can be made. Loads
// what device cuda needs (lib/gpu/loader.h).
absl::Status CheckEngineOptions(const EngineOptions& options);
// Computed with LibTorch's operators only, on whatever device.
bool IsPortable(const EngineOptions& options);
// The functions of lib/gpu/api.h to compute with, null = LibTorch's operators.
// NOT_FOUND as LoadGpu().
absl::StatusOr<const CoxGpuApi*> KernelsOf(const EngineOptions& options);
at::Device DeviceOf(const EngineOptions& options);

// [V, d]-shaped float32 view of memory that outlives the tensor.
at::Tensor FloatView(const float* data, const std::vector<int64_t>& shape);

// Parameters in ParameterShapes() order, on the CPU. Float32 is borrowed from
// the snapshot, other dtypes are converted. FAILED_PRECONDITION names the
// tensor that is missing or has another shape.
absl::StatusOr<std::vector<at::Tensor>> ParametersFromSnapshot(
    const Snapshot& snapshot, const ModelConfig& config);

// A [B, L] batch as rows, padding ids replaced by 0.
TokenRows GridRows(int64_t batch, int64_t length,
                   const std::vector<int32_t>& ids,
                   const std::vector<int32_t>& lengths);

// Final-normed decoder states of a batch's real tokens; padding costs nothing
// outside attention.
struct BatchStates {
  at::Tensor rows;                   // [N, hidden]
  std::vector<int64_t> row_of_slot;  // [B * L], -1 at padding
  // Borrowed by the graph of `rows` when layers are recomputed.
  std::shared_ptr<AttentionBackend> attention;
};
// Of a validated batch; with graph where gradients are enabled and parameters
// require them, and then with the batch's dropout.
BatchStates StatesOf(const Network& network, const TokenBatch& batch,
                     bool fused_attention);
// [slots.size(), hidden] rows of the given grid slots (ascending, real).
at::Tensor SelectSlots(const BatchStates& states,
                       const std::vector<int64_t>& slots);

// Grid slots with `scored` set, and the ids that follow them.
struct ScoredSlots {
  std::vector<int64_t> slots;
  std::vector<int32_t> targets;
};
ScoredSlots FindScored(const TokenBatch& batch);
at::Tensor IndexTensor(const std::vector<int64_t>& values);
// Grid slots of all real tokens, and of the last one of each row.
std::vector<int64_t> RealSlots(const TokenBatch& batch);
std::vector<int64_t> LastSlots(const TokenBatch& batch);
// Scalar head of rows: [n].
at::Tensor ScalarHead(const Network& network, const at::Tensor& states);

// Weights plus the frozen passes of ScoreEngine; methods mirror it.
class TorchModel {
 public:
  explicit TorchModel(const EngineOptions& options) : options_(options) {}

  // Borrows the snapshot; or, where computing is portable, copies it, into the
  // tensors of the weights before when the configuration is theirs.
  absl::Status Load(std::shared_ptr<const Snapshot> snapshot);
  // Uses tensors that somebody else owns (a trainer's parameters), float32.
  // `copies`: empty, or their bfloat16 copies, which the owner keeps equal.
  void Adopt(const ModelConfig& config, std::vector<at::Tensor> parameters,
             std::vector<at::Tensor> copies = {});
  // The network for one pass. In bfloat16 adopted parameters without copies are
  // cast anew, since their owner changes them; with graph where gradients are
  // enabled.
  std::shared_ptr<const Network> PassNetwork() const;

  // FAILED_PRECONDITION without weights or with another head,
  // INVALID_ARGUMENT for a malformed batch.
  absl::Status Check(HeadKind head) const;
  absl::Status Check(const TokenBatch& batch, HeadKind head) const;

  absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                         double temperature,
                                         bool want_entropy) const;
  absl::StatusOr<std::vector<float>> Values(const TokenBatch& batch) const;
  absl::StatusOr<std::vector<float>> Scores(const TokenBatch& batch) const;

  LanguageHead::Options HeadOptions(const Network& network,
                                    double temperature) const;
  const ModelConfig& config() const { return config_; }
  const EngineOptions& options() const { return options_; }

 private:
  EngineOptions options_;
  ModelConfig config_;
  NetworkOptions NetworkSettings() const;

  std::shared_ptr<const Snapshot> snapshot_;  // owns borrowed weights
  std::vector<at::Tensor> adopted_, copies_;  // in bfloat16 only
  std::shared_ptr<Network> network_;
};

absl::Status CheckTemperature(double temperature);
// Row outputs back on the grid, 0 elsewhere.
LogprobOutput ScatterLogprobs(const TokenBatch& batch,
                              const ScoredSlots& scored,
                              const LanguageHead::Output& output,
                              bool want_entropy);

}  // namespace cox

#endif  // COX_LIB_MODEL_TORCH_MODEL_H_
