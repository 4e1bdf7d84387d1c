#ifndef COX_CLI_RATES_ROLES_H_
#define COX_CLI_RATES_ROLES_H_

// A role's work on a run's own data, without the other roles: how long it takes
// here and how much memory it needs (docs/planning.md). The parts of cox-rates.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actor/unit_work.h"
#include "cox/v1/run_config.pb.h"
#include "lib/base/status.h"
#include "lib/data/tokenizer.h"
#include "nlohmann/json.hpp"

namespace cox {

struct RatesStage {  // of learners
  int32_t stage = 0;
  std::string kind;
  int64_t steps = 1;  // to be timed
};

struct RatesUnit {
  std::string kind;  // stage
  bool scored = false;
  UnitWork work;
  std::vector<int64_t> lengths;  // of the answers, prompt-major
};

// What `cox plan` writes into a folder: config.yaml, tokenizer.json,
// comparisons.jsonl where a stage learns from the run's own, and
// rehearsal.json with the rest.
struct RatesJob {
  std::string dir;
  cox::v1::RunConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;  // null with tokenizer none
  std::optional<ChatTemplateOptions> chat;
  std::vector<int32_t> eos_ids;
  int32_t pad_id = 0;
  int64_t vocab_size = 0;
  std::vector<RatesStage> stages;
  std::vector<RatesUnit> units;
};
absl::StatusOr<RatesJob> ReadRatesJob(const std::string& dir);

// Ids of an answer of `length`, the last one ends it.
std::vector<int32_t> RatesAnswer(const RatesJob& job, int64_t length,
                                 size_t row);

// {"private_bytes": the largest so far, "libraries_bytes": resident parts of
// shared libraries, "program_bytes": of the binary itself}.
nlohmann::json PeakMemory();

// Median of what repeats within a second take, the first one left out.
absl::StatusOr<double> MedianSeconds(const std::function<absl::Status()>& pass);

// {"stages": [{"kind", "step_s"}], "update_s", "memory"}. `world` processes
// meet at `port`.
absl::StatusOr<nlohmann::json> RehearseLearner(const RatesJob& job, int rank,
                                               int world, int port);
// {"stages": [{"kind", "unit_s"}], "memory"}
absl::StatusOr<nlohmann::json> RehearseActor(const RatesJob& job);
absl::StatusOr<nlohmann::json> RehearseReward(const RatesJob& job);

}  // namespace cox

#endif  // COX_CLI_RATES_ROLES_H_
