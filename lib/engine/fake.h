#ifndef COX_LIB_ENGINE_FAKE_H_
#define COX_LIB_ENGINE_FAKE_H_

// Engines for tests of roles, without LibTorch: a model small enough that its
// gradient is written out by hand, but real: it generates, learns and is exact.
//
//   h_j = wte[x_j] + wpe[j];  logits_j = h_j wte^T;  value_j = h_j . score
//
// that is, a GPT-2 without layers. Snapshots have GPT-2's whole layout (tied),
// so that WithHead, checkpoints and broadcasts work on them unchanged; the
// tensors inside the layers are carried along with gradient 0. With hidden >=
// vocabulary every next-token distribution after a fixed prompt is reachable.

#include <memory>
#include <string>

#include "lib/engine/engine.h"

namespace cox {

// A GPT-2 configuration of one layer and one head.
ModelConfig FakeModelConfig(int64_t vocab_size, int64_t hidden,
                            HeadKind head = HeadKind::kLanguageModel,
                            int64_t max_positions = 64);

// InitializeParameters(seed) as a snapshot; with the fake's configuration the
// initial policy is close to uniform.
absl::StatusOr<std::shared_ptr<const Snapshot>> FakeSnapshot(
    const ModelConfig& config, std::string model, uint64_t seed);

// Load() takes gpt2 configurations with tied embeddings,
// FAILED_PRECONDITION otherwise. Results do not depend on the batch.
std::unique_ptr<PolicyEngine> MakeFakePolicyEngine();
std::unique_ptr<TrainEngine> MakeFakeTrainEngine();

}  // namespace cox

#endif  // COX_LIB_ENGINE_FAKE_H_
