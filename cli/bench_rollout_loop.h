#ifndef COX_CLI_BENCH_ROLLOUT_LOOP_H_
#define COX_CLI_BENCH_ROLLOUT_LOOP_H_

// `cox bench train --stage ppo|grpo`: actor, reward, reference and learner of a
// synchronous run in one process, one after the other.

#include <map>
#include <string>
#include <vector>

#include "cli/bench_model.h"

namespace cox {

struct BenchTrainFlags {
  BenchModelFlags model;
  std::string stage = "sft";
  std::string docs, prompts, lengths;
  int64_t prompt_tokens = 16;
  int64_t new_tokens = 32;
  int64_t batch = 64;
  int64_t micro_batch = 0;
  int64_t group = 8;
  int64_t epochs = 4;
  int64_t minibatches = 4;
  int64_t updates = 4;
  std::string reward_model, value_model;
  std::string layout = "padded";
  int64_t max_len = 128;
  std::string roles = "inproc";
  std::string dump_loss;
};

absl::Status MeasureRolloutStage(const BenchTrainFlags& flags,
                                 BenchReport& report, bool* ok);

// JSONL of the losses, norms, KL and reward of each update; nothing for "".
absl::Status DumpLosses(
    const std::string& path,
    const std::vector<std::map<std::string, double>>& steps);

}  // namespace cox

#endif  // COX_CLI_BENCH_ROLLOUT_LOOP_H_
