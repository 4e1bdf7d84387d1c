#ifndef COX_CLI_CKPT_COMMAND_H_
#define COX_CLI_CKPT_COMMAND_H_

#include <string>

namespace cox {

// `cox ckpt ls RUN`: stage, step, generation, size of every checkpoint folder,
// and why it is kept.
int ListCheckpoints(const std::string& run_dir);

// `cox ckpt verify DIR`: hashes every file of a checkpoint, or of all
// checkpoints of a run directory. Exit code 1 when one differs.
int VerifyCheckpoints(const std::string& dir);

// `cox ckpt export CHECKPOINT OUT`: one model folder that `transformers`
// loads, after the checkpoint was verified; dtype "fp32" or "bf16".
int ExportCheckpoint(const std::string& checkpoint, const std::string& out,
                     const std::string& model, const std::string& dtype);

}  // namespace cox

#endif  // COX_CLI_CKPT_COMMAND_H_
