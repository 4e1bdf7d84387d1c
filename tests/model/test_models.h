#ifndef COX_TESTS_MODEL_TEST_MODELS_H_
#define COX_TESTS_MODEL_TEST_MODELS_H_

// Tiny models of every family, and batches for them.

#include <memory>
#include <string>
#include <vector>

#include "lib/engine/engine.h"
#include "lib/model/api.h"
#include "lib/model/ops_api.h"

namespace cox {

// The pinned tiny models of docs/algorithms.md §12 by name: "gpt2", "llama",
// "llama3", "qwen2", "qwen3"; and "encdec" of the same size (§13).
ModelConfig TinyConfig(const std::string& name);
std::vector<std::string> TinyNames();  // all six

// A GPT-2 of training size.
ModelConfig Gpt2Config(int64_t hidden, int64_t layers, int64_t vocab);

std::shared_ptr<const Snapshot> SineSnapshot(const ModelConfig& config);
std::shared_ptr<const Snapshot> RandomSnapshot(const ModelConfig& config,
                                               uint64_t seed);

// Sequences right-padded with garbage that must not be read; every token that
// has a successor is scored.
TokenBatch MakeBatch(const std::vector<std::vector<int32_t>>& sequences,
                     const std::vector<std::vector<int32_t>>& instructions);
// Two sequences of different length, with instructions if the family has an
// encoder.
TokenBatch SmallBatch(const ModelConfig& config);

// Prompts of 1 to 6 tokens, with instructions if the family has an encoder; up
// to 8 new tokens each, by nucleus sampling.
GenerateRequest SomeRequest(const ModelConfig& config, size_t rows);

// One sequence without padding.
ModelForwardRequest ForwardRequest(const ModelConfig& config,
                                   const std::vector<int64_t>& ids);

std::unique_ptr<TrainEngine> LoadedTrainEngine(
    std::shared_ptr<const Snapshot> snapshot,
    const EngineOptions& options = EngineOptions());

}  // namespace cox

#endif  // COX_TESTS_MODEL_TEST_MODELS_H_
