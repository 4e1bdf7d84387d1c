#ifndef COX_LEARNER_PREFERENCE_OBJECTIVE_H_
#define COX_LEARNER_PREFERENCE_OBJECTIVE_H_

// What tells dpo and kto apart. Used by the preference_trainer files only.

#include <cstdint>
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

// Around an objective: batches, optimizer, state.
absl::StatusOr<std::unique_ptr<StageTrainer>> MakePreferenceTrainer(
    const PreferenceTrainOptions& options, const PreferenceParts& parts,
    Shards shards, std::unique_ptr<PreferenceObjective> objective);

// Of both Make functions, before anything is computed.
absl::StatusOr<Shards> CheckPreference(const PreferenceTrainOptions& options,
                                       const PreferenceParts& parts);

// INVALID_ARGUMENT when a reference log-prob is not finite.
absl::Status CheckReference(
    const std::vector<std::vector<float>>& logprobs);

}  // namespace cox

#endif  // COX_LEARNER_PREFERENCE_OBJECTIVE_H_
