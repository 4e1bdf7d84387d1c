#ifndef COX_COORDINATOR_RUN_SETUP_H_
#define COX_COORDINATOR_RUN_SETUP_H_

// From a configuration and a run directory to everything the coordinator needs
// before its port opens: ledger, tokenizer, prompts, plan.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/core_types.h"
#include "coordinator/ledger.h"
#include "coordinator/plan.h"
#include "coordinator/prompt_book.h"
#include "coordinator/segments.h"
#include "coordinator/stage_outputs.h"
#include "lib/base/fs.h"
#include "lib/config/config.h"
#include "lib/data/tokenizer.h"

namespace cox {

struct PreparedRun {
  cox::v1::RunConfig config;
  std::string run_dir;
  std::string run_id;  // 32 hex digits
  std::string config_hash;
  // Shared with gRPC's threads, immutable; null with tokenizer none.
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string tokenizer_sha256;
  std::optional<ChatTemplateOptions> chat;  // for rows of messages
  std::vector<int32_t> eos_ids;
  int32_t pad_id = 0;
  int64_t vocab_size = 0;
  // ModelConfig::DecoderStart of the policy.
  std::optional<int32_t> decoder_start;
  std::optional<RunPlan> plan;
  std::unique_ptr<PromptBook> prompts;
  CoreOptions core_options;
  LedgerState state;
  std::unique_ptr<LedgerStore> ledger;
  std::unique_ptr<SegmentStore> segments;
};

// Creates or resumes. INVALID_ARGUMENT / NOT_FOUND: the configuration or its
// files are wrong, or differ from those of the run in `run_dir` (the message
// has one line per difference); nothing of the run was changed then.
// DATA_LOSS: the run directory is damaged.
absl::StatusOr<PreparedRun> PrepareRun(Fs& fs, const cox::v1::RunConfig& config,
                                       const std::string& run_dir);

// What Register tells of a run that exists (tokenizer, ids of the vocabulary),
// without opening its ledger or writing anything. NOT_FOUND: its files are
// gone.
absl::StatusOr<PreparedRun> DescribeRun(Fs& fs,
                                        const cox::v1::RunConfig& config,
                                        const std::string& run_dir);

CheckpointRetention RetentionOf(const cox::v1::CheckpointSettings& settings);

// Special tokens removed; empty function without a tokenizer.
DecodeFunction MakeDecode(std::shared_ptr<const Tokenizer> tokenizer);

}  // namespace cox

#endif  // COX_COORDINATOR_RUN_SETUP_H_
