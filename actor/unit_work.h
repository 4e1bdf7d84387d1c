#ifndef COX_ACTOR_UNIT_WORK_H_
#define COX_ACTOR_UNIT_WORK_H_

// From a leased unit to the request of the policy engine, and from its result
// to trajectories. Pure.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/base/ids.h"
#include "lib/base/status.h"
#include "lib/data/trajectory.h"
#include "lib/engine/engine.h"

namespace cox {

struct PromptInput {
  uint64_t prompt_id = 0;  // occurrence in the run: RNG key
  std::vector<int32_t> ids;
  std::vector<int32_t> instruction_ids;  // encoder-decoder only
  std::string text;
};

struct UnitWork {
  UnitId unit;
  PolicyVersion version;
  std::string policy_hash;
  std::vector<PromptInput> prompts;
  int32_t samples_per_prompt = 1;
};

// The run's sampling; the same for every unit.
struct UnitSampling {
  uint64_t seed = 0;
  int64_t max_new_tokens = 0;
  int32_t pad_id = 0;
  SamplingOptions sampling;
  std::vector<std::string> stop_strings;
  std::shared_ptr<const Tokenizer> tokenizer;  // for stop_strings
};

// INVALID_ARGUMENT: no prompt, an empty one, samples < 1, too many rows.
absl::Status ValidateUnitWork(const UnitWork& work);

// One batch of prompts x samples, prompt-major: row p * K + k is sample k of
// prompt p. REQUIRES: ValidateUnitWork(work) is OK.
GenerateRequest MakeGenerateRequest(const UnitWork& work,
                                    const UnitSampling& sampling);

// In the same order, without rewards and reference log-probs. INTERNAL when
// the result has another shape or a trajectory is not valid.
absl::StatusOr<std::vector<Trajectory>> MakeTrajectories(
    const UnitWork& work, const GenerateResult& result);

}  // namespace cox

#endif  // COX_ACTOR_UNIT_WORK_H_
