#ifndef COX_COORDINATOR_STAGE_OUTPUTS_H_
#define COX_COORDINATOR_STAGE_OUTPUTS_H_

// What the stages without learner steps leave behind: comparisons for the
// reward model (collect) and the final table (eval). Pure functions of the
// submitted units, so a restarted coordinator writes the same bytes.

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "lib/base/ids.h"
#include "lib/base/status.h"
#include "lib/data/trajectory.h"

namespace cox {

struct OutputUnit {
  UnitId id;
  std::vector<Trajectory> trajectories;  // prompt-major, samples ascending
};

// Text of token ids without special tokens; empty function = no tokenizer.
using DecodeFunction = std::function<std::string(std::span<const int32_t>)>;

// The prompt as people read it: of an encoder-decoder "instruction\ncontext".
std::string ReadablePrompt(const Trajectory& trajectory,
                           const DecodeFunction& decode);

struct CollectOptions {
  double label_noise = 0.0;       // standard deviation added to the score
  double heldout_fraction = 0.0;  // of prompts, [0, 1)
  uint64_t seed = 0;
};

struct CollectFiles {
  // One row per prompt: prompt, prompt_ids, responses, response_ids, ranking
  // (1 = best, equal scores share a rank), scores (without noise).
  std::string train_jsonl;
  std::string heldout_jsonl;
  std::map<std::string, double> metrics;  // collect/* of the registry
};

// Ranks the samples of each prompt by their part "gold" plus noise keyed by
// (seed, prompt id, sample). Prompts whose samples have no gold part are left
// out and counted. INVALID_ARGUMENT when nothing can be ranked.
absl::StatusOr<CollectFiles> MakeCollectFiles(
    const CollectOptions& options, const std::vector<OutputUnit>& units,
    const DecodeFunction& decode);

// The samples that people are asked to rank: one row per prompt with
// "prompt_id", "prompt", "responses" (labeller: file).
std::string MakeLabelRequests(const std::vector<OutputUnit>& units,
                              const DecodeFunction& decode);

// Joins people's rankings (rows {"prompt_id", "ranking"}) with the samples.
// INVALID_ARGUMENT with the line: unknown or repeated prompt_id, wrong number
// of ranks, ranks outside 1..K; or prompts without a ranking.
absl::StatusOr<CollectFiles> MakeLabelledFiles(
    const CollectOptions& options, const std::vector<OutputUnit>& units,
    std::string_view labels_jsonl, const DecodeFunction& decode);

struct EvalOptions {
  int bootstrap = 2000;  // resamples of the 95 % intervals
  uint64_t seed = 0;
};

struct EvalOutput {
  // {"rows": [{"name", "n", "gold": {"mean","low","high"}, ...}], "samples":
  // [...]}; written as eval.json and read by `cox` and report.html.
  std::string json;
  std::map<std::string, double> metrics;  // eval/*
};

// `reference` are the units of step 1 (n samples per prompt from the reference
// policy), `policy` those of step 2 (may be empty: nothing tuned the policy).
// `run_metrics` carries what learners measured ("text_ppl/sft", ...), copied
// into the table.
absl::StatusOr<EvalOutput> MakeEvalOutput(
    const EvalOptions& options, const std::vector<OutputUnit>& reference,
    const std::vector<OutputUnit>& policy,
    const std::map<std::string, double>& run_metrics,
    const DecodeFunction& decode);

}  // namespace cox

#endif  // COX_COORDINATOR_STAGE_OUTPUTS_H_
