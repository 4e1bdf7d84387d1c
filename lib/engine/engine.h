#ifndef COX_LIB_ENGINE_ENGINE_H_
#define COX_LIB_ENGINE_ENGINE_H_

// What a role needs from a model, without LibTorch. An engine is owned by one
// driver thread; none of its methods is thread-safe. Fakes for tests:
// lib/engine/fake.h. Implementations: lib/model/api.h.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/algo/optim.h"
#include "lib/algo/sampling.h"
#include "lib/base/status.h"
#include "lib/comm/collective.h"
#include "lib/data/tokenizer.h"
#include "lib/data/trajectory.h"
#include "lib/engine/model_config.h"
#include "lib/weights/snapshot.h"

namespace cox {

// B sequences, right-padded to [B, L]. Values at padding are never read.
struct TokenBatch {
  int64_t batch = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;      // [B, L]
  std::vector<int32_t> lengths;  // [B], real tokens, >= 1
  // [B, L]; 1 at j when the log-prob of token j + 1 is wanted (so the
  // language-model head runs on those rows only). Ignored by scalar heads.
  std::vector<uint8_t> scored;
  // Encoder-decoder only: instructions [B, LI], right-padded.
  int64_t instruction_length = 0;
  std::vector<int32_t> instruction_ids;
  std::vector<int32_t> instruction_lengths;
  // Of training passes; frozen ones ignore it: the probability with which an
  // activation is dropped (docs/algorithms.md §13.1). What is dropped in row b
  // is a function of dropout_keys[b] [B] and of the place in network and row.
  double dropout = 0;  // [0, 1)
  std::vector<uint64_t> dropout_keys;

  absl::Status Validate(const ModelConfig& config) const;
};

// [B, L] each, 0 where `scored` is 0: log-prob of token j + 1 under
// softmax(logits_j / temperature), and that distribution's entropy (nats).
struct LogprobOutput {
  std::vector<float> logprobs;
  std::vector<float> entropies;
};
// d loss / d output, same shape. `entropies` may stay empty (= zero).
struct LogprobGradient {
  std::vector<float> logprobs;
  std::vector<float> entropies;
};

// Frozen forward passes.
class ScoreEngine {
 public:
  virtual ~ScoreEngine() = default;
  // Copies (or borrows, keeping the pointer) the weights. FAILED_PRECONDITION
  // when they do not fit their own config_json.
  virtual absl::Status Load(std::shared_ptr<const Snapshot> snapshot) = 0;
  virtual const ModelConfig& config() const = 0;
  // Language-model head. Chunked over rows so that no [B, L, V] tensor is held
  // beyond a bounded size.
  virtual absl::StatusOr<LogprobOutput> Logprobs(const TokenBatch& batch,
                                                 double temperature,
                                                 bool want_entropy) = 0;
  // Scalar head, raw (no gain or bias): [B, L], 0 at padding.
  virtual absl::StatusOr<std::vector<float>> Values(
      const TokenBatch& batch) = 0;
  // Scalar head at the last real token, raw: [B].
  virtual absl::StatusOr<std::vector<float>> Scores(
      const TokenBatch& batch) = 0;
};

struct GenerateRequest {
  std::vector<std::vector<int32_t>> prompts;       // not empty each
  std::vector<std::vector<int32_t>> instructions;  // encoder-decoder only
  std::vector<uint64_t> prompt_ids;                // RNG key, one per row
  std::vector<uint64_t> sample_indices;            // RNG key, one per row
  uint64_t seed = 0;
  int64_t max_new_tokens = 0;
  int32_t pad_id = 0;
  SamplingOptions sampling;  // temperature, truncation, eos_ids, ...
  // A row also stops with the token that completes one of these in its text,
  // from min_new_tokens on. The text is that of StreamDecoder with special
  // tokens written out, so the decision is a function of the row's tokens.
  std::vector<std::string> stop_strings;
  std::shared_ptr<const Tokenizer> tokenizer;  // for stop_strings only
  // Scheduled lengths, one per row, for benchmarks: the row's lengths[r]-th
  // token is the first of sampling.eos_ids, and no EOS is drawn before. Empty:
  // the model decides.
  std::vector<int64_t> lengths;
  // Called by Generate after each draw, in the order of the draws; for showing
  // an answer as it grows.
  std::function<void(int64_t row, int32_t token)> on_token;
};
struct GenerateResult {
  std::vector<std::vector<int32_t>> tokens;  // with the one that stops
  std::vector<std::vector<float>> logprobs;  // behaviour log-probs
  std::vector<FinishReason> finish;
};

class PolicyEngine : public ScoreEngine {
 public:
  // KV-cached decoding. Tokens and log-probs are a function of (weights, row's
  // prompt, seed, prompt id, sample index, options), never of the other rows.
  virtual absl::StatusOr<GenerateResult> Generate(
      const GenerateRequest& request) = 0;
};

// Training state that stays where the engine computes: gradients, parameters
// and Adam's moments (0 at first) as flat float32 buffers of one size.
class DeviceState {
 public:
  virtual ~DeviceState() = default;
  // Copies the gradients aside; `place` counts from 0, used ones are reused.
  virtual absl::Status KeepGradients(size_t place) = 0;
  // gradients := kept + gradients, of floats begin .. begin + count - 1.
  virtual absl::Status AddKeptGradients(size_t place, size_t begin,
                                        size_t count) = 0;
  // Starts Collective::AllReduceSum of that range, behind what was computed so
  // far; may wait for it, too. All ranks start the same ranges in the same
  // order, and call nothing else of the group before WaitAllReduce().
  virtual absl::Status StartAllReduce(Collective& group, size_t begin,
                                      size_t count) = 0;
  // Until all that was started is done.
  virtual absl::Status WaitAllReduce(Collective& group) = 0;
  // Sum of squares in float64; NaN or infinite if a gradient is.
  virtual absl::StatusOr<double> SquaredGradientNorm() = 0;
  // AdamUpdate of floats begin .. begin + count - 1.
  virtual absl::Status AdamUpdate(size_t begin, size_t count,
                                  const AdamFactors<float>& factors) = 0;
  virtual absl::Status ReadMoments(std::span<float> m, std::span<float> v) = 0;
  virtual absl::Status WriteMoments(std::span<const float> m,
                                    std::span<const float> v) = 0;
  // Makes a gradient NaN.
  virtual absl::Status PoisonGradients() = 0;
};

// Training passes. Parameters and gradients are flat float32 buffers in
// manifest order, so that all-reduce, clipping, optimizer and snapshot are
// single passes over memory.
class TrainEngine : public ScoreEngine {
 public:
  virtual std::span<float> Parameters() = 0;
  virtual std::span<float> Gradients() = 0;
  // Null: the two spans are the state itself. Else it is there, and each call
  // of Parameters() or Gradients() brings the state to the host; what is then
  // written into Parameters() reaches the device before the next pass, what is
  // written into Gradients() does not.
  virtual DeviceState* device() { return nullptr; }
  virtual const Manifest& layout() const = 0;  // no tensor hashes
  virtual void ZeroGradients() = 0;

  // Forward with graph, `loss` is called once with the outputs and fills their
  // gradient, backward accumulates into Gradients(). An error from `loss` is
  // returned and nothing is accumulated.
  using LogprobLoss = std::function<absl::Status(const LogprobOutput& output,
                                                 LogprobGradient* gradient)>;
  virtual absl::Status AccumulateLogprobs(const TokenBatch& batch,
                                          double temperature, bool want_entropy,
                                          const LogprobLoss& loss) = 0;
  // outputs [B, L] (Values) or [B] (Scores), gradient of the same size.
  using ScalarLoss = std::function<absl::Status(std::span<const float> output,
                                                std::span<float> gradient)>;
  virtual absl::Status AccumulateValues(const TokenBatch& batch,
                                        const ScalarLoss& loss) = 0;
  virtual absl::Status AccumulateScores(const TokenBatch& batch,
                                        const ScalarLoss& loss) = 0;

  // `ready` is told a place in layout().tensors when nothing more will be added
  // to that gradient: by the Accumulate call after LastPass(), from the thread
  // that computes, one call at a time. An engine may tell of some tensors only.
  // Null: nobody listens any more. While somebody does, no pass may follow the
  // last one.
  using GradientReady = std::function<void(size_t tensor)>;
  virtual void OnGradientReady(GradientReady /*ready*/) {}
  virtual void LastPass() {}
};

}  // namespace cox

#endif  // COX_LIB_ENGINE_ENGINE_H_
