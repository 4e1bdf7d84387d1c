#ifndef COX_CLI_PLAN_MODEL_H_
#define COX_CLI_PLAN_MODEL_H_

// What a run will need, by arithmetic alone (docs/planning.md): bytes, memory
// and step time of every role in every stage, from the configuration, the
// model's shapes and the rates of a machine.
//
// Work is counted in model FLOPs: 2 per parameter and token forward, 6 for
// forward and backward. A rate is what one compute thread (or one GPU) does of
// them per second in that kind of work, so it holds what the kernels lose.

#include <cstdint>
#include <string>
#include <vector>

#include "cox/v1/run_config.pb.h"
#include "lib/base/status.h"

namespace cox {

struct ClusterSpec {
  int64_t nodes = 1;
  double cores = 2;         // per node
  double memory_gb = 0;     // per node; 0 = not checked
  double link_gbit_s = 10;  // between nodes; on one node that of loopback
  double disk_gb_s = 0.5;   // checkpoints
  int64_t gpus = 0;         // per node; models run there if any
  // Rates of one thread or GPU. 0 = to be measured.
  double train_gflop_s = 0;
  double score_gflop_s = 0;
  double decode_gflop_s = 0;
  double update_mparams_s = 0;  // 10^6 parameters per second through clipping,
                                // Adam and hashing
  double commit_ms = 5;    // a step's commit and publication, without bytes
  double unit_ms = 10;     // lease, submit and scoring calls of a unit
  double process_mb = 0;   // private memory of an engine's process,
                           // without weights
  double service_mb = 45;  // what gRPC and its threads add to a process
  double shared_mb = 0;    // libraries that processes of a node share
};
// Keys are the fields' names, on one level. INVALID_ARGUMENT with line and key.
absl::StatusOr<ClusterSpec> ParseClusterSpec(const std::string& yaml,
                                             const std::string& name);

// Sizes that the configuration does not fix by itself.
struct RunSizes {
  int64_t parameters = 0;  // of the policy
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t vocab = 0;
  double prompt_tokens = 0;  // mean, as padded in a unit
  double answer_tokens = 0;  // of the longest answer of a unit
  int64_t rm_steps = 0;      // 0 = unknown
};

struct RoleEstimate {
  std::string role;  // "coordinator", "learner", "actor", "reward"
  int64_t processes = 0;
  double weight_bytes = 0;  // parameters that one process holds
  double memory_bytes = 0;  // of one process, private
  double sent_bytes = 0;    // per step, by all of them
  double busy_s = 0;        // per step, of one of them
};

struct StageEstimate {
  std::string stage;
  int64_t steps = 0;  // 0 = unknown
  double step_s = 0;
  double checkpoint_bytes = 0;
  double broadcast_bytes = 0;  // weights to actors, per step
  double payload_bytes = 0;    // trajectories, per step
  std::vector<RoleEstimate> roles;
  std::string bottleneck;  // the role that step_s waits for most
};

struct RunEstimate {
  std::vector<StageEstimate> stages;
  double memory_bytes = 0;  // of all processes together, at its peak
  double total_s = 0;       // of the stages whose steps are known
  std::vector<std::string> warnings;
};

// Model FLOPs of a forward pass over `tokens` tokens in sequences of `length`,
// the language-model head over `heads` of them; training takes three times
// that.
double ForwardFlops(const RunSizes& sizes, double tokens, double length,
                    double heads);

RunEstimate EstimateRun(const cox::v1::RunConfig& config, const RunSizes& sizes,
                        const ClusterSpec& cluster);

}  // namespace cox

#endif  // COX_CLI_PLAN_MODEL_H_
