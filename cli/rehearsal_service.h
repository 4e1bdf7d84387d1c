#ifndef COX_CLI_REHEARSAL_SERVICE_H_
#define COX_CLI_REHEARSAL_SERVICE_H_

// A run's own data, read as the run will read them, and what cox-rates finds
// out with them on this machine (docs/planning.md).

#include <string>

#include "cli/plan_model.h"
#include "cox/v1/run_config.pb.h"
#include "lib/base/status.h"
#include "lib/engine/model_config.h"
#include "nlohmann/json.hpp"

namespace cox {

struct RehearsalOptions {
  double prompt_tokens = 0;  // > 0: instead of the prompts' own
  double answer_tokens = 0;  // > 0: instead of the estimate
};

// A scratch folder with everything that the processes of the run would read;
// removed with it.
class Rehearsal {
 public:
  // Reads, tokenises and plans as the coordinator does and measures the
  // batches that the learners would see. INVALID_ARGUMENT / NOT_FOUND: the
  // run's files, in the coordinator's and the learners' words.
  static absl::StatusOr<Rehearsal> Prepare(const cox::v1::RunConfig& config,
                                           const RehearsalOptions& options);
  ~Rehearsal();
  Rehearsal(Rehearsal&& other) noexcept;
  Rehearsal& operator=(Rehearsal&&) = delete;
  Rehearsal(const Rehearsal&) = delete;
  Rehearsal& operator=(const Rehearsal&) = delete;

  const ModelConfig& model() const { return model_; }
  const RunSizes& sizes() const { return sizes_; }

  // Runs cox-rates in each role, as many processes at once as the run has and
  // `spec.cores` hold, and fills in what `spec` leaves open. `local`: the run
  // will be on this machine, so memory is taken from here, too. INTERNAL: a
  // process failed; its words are on stderr.
  absl::Status Measure(bool local, ClusterSpec* spec) const;

 private:
  Rehearsal() = default;

  cox::v1::RunConfig config_;
  std::string dir_;  // "" = moved away
  ModelConfig model_;
  RunSizes sizes_;
  nlohmann::json job_;  // rehearsal.json
  // Private memory of this process: with a configuration, as `cox run` has it,
  // and with a run's plan and data, as its coordinator has them.
  double run_bytes_ = 0;
  double coordinator_bytes_ = 0;
  double coordinator_program_ = 0;
};

// Lengths of answers as the demonstrations have them, `count` of them in the
// order of the stage sft; at most `limit` each. What the policy imitates is the
// best that is known of answers before there is one.
std::vector<int64_t> AnswerLengths(const std::vector<int64_t>& demonstrations,
                                   int64_t limit, size_t count);

}  // namespace cox

#endif  // COX_CLI_REHEARSAL_SERVICE_H_
