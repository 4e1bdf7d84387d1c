#ifndef COX_LEARNER_PREFERENCE_OBJECTIVE_H_
#define COX_LEARNER_PREFERENCE_OBJECTIVE_H_

// What tells dpo and kto apart. Used by the preference_trainer files only.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "learner/preference_trainer.h"
#include "lib/base/hash.h"

namespace cox {

// Where an objective computes. Borrowed by the caller.
struct PreferenceRun {
  TrainEngine& policy;
  Shards& shards;
  int64_t micro_batch = 0;   // of backward passes
  int64_t forward_rows = 0;  // bounds passes over whole data sets
};

class PreferenceObjective {
 public:
  virtual ~PreferenceObjective() = default;
  virtual std::string_view name() const = 0;  // "dpo": stream of the order
  virtual int64_t rows() const = 0;
  virtual void HashRow(int64_t row, Sha256* hash) const = 0;
  virtual int64_t Tokens(int64_t row) const = 0;  // targets
  // Gradient of the step's rows, of this rank's shards; metrics over all.
  virtual absl::Status Backward(std::span<const int64_t> batch,
                                const PreferenceRun& run,
                                std::map<std::string, double>* metrics) = 0;
  // Held-out data under the weights as they are.
  virtual absl::Status Measure(const PreferenceRun& run,
                               std::map<std::string, double>* metrics) = 0;
};

// Some rows of a shard: their sequences, none if there is nothing to learn, and
// the loss of the sequences' log-probs. It adds to `gradient`, all 0 before.
struct PreferenceMicroBatch {
  std::vector<const Sequence*> sequences;
  std::function<absl::Status(const TokenBatch& tokens,
                             std::span<const float> logprobs,
                             std::vector<float>* gradient)>
      loss;
};
// Backward of the shard's part of `batch`, micro-batch by micro-batch. False:
// an output was not finite; the gradient is poisoned (learner/batching.h).
absl::StatusOr<bool> BackwardShard(
    std::span<const int64_t> batch, int64_t shard, const PreferenceRun& run,
    const std::function<PreferenceMicroBatch(std::span<const int64_t> rows)>&
        make);

// Around an objective: batches, optimizer, state.
absl::StatusOr<std::unique_ptr<StageTrainer>> MakePreferenceTrainer(
    const PreferenceTrainOptions& options, const PreferenceParts& parts,
    Shards shards, std::unique_ptr<PreferenceObjective> objective);

// Of both Make functions, before anything is computed.
absl::StatusOr<Shards> CheckPreference(const PreferenceTrainOptions& options,
                                       const PreferenceParts& parts);

// INVALID_ARGUMENT when a reference log-prob is not finite.
absl::Status CheckReference(const std::vector<std::vector<float>>& logprobs);

}  // namespace cox

#endif  // COX_LEARNER_PREFERENCE_OBJECTIVE_H_
