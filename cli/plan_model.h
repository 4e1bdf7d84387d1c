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
#include <map>
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
  double commit_ms = 5;   // a step's commit and publication, without bytes
  double unit_ms = 10;    // lease, submit and scoring calls of a unit
  double process_mb = 0;  // private memory of a process with an engine and
                          // its servers, without weights
  double shared_mb = 0;   // libraries that processes of a node share

  // What was found with the run's own batches (cli/rehearsal_service.h); never
  // from a file. Rates by kind of stage, in place of those above.
  std::map<std::string, double> stage_train_gflop_s;
  std::map<std::string, double> stage_score_gflop_s;
  std::map<std::string, double> stage_decode_gflop_s;
  // Of one process in bytes, by role: private, at its peak; and what is
  // resident of its binary, which the processes of a role share. "learner-0" is
  // the rank that also serves weights and writes checkpoints; "run" is `cox
  // run` itself.
  std::map<std::string, double> role_private;
  std::map<std::string, double> role_program;
};
// Keys are the numbers' names, on one level. INVALID_ARGUMENT with line and
// key.
absl::StatusOr<ClusterSpec> ParseClusterSpec(const std::string& yaml,
                                             const std::string& name);

// Of a kind of stage, where the configuration does not fix it by itself.
struct StageSizes {
  double rows = 0;     // sequences of a step, over all ranks
  double tokens = 0;   // of a sequence, mean, padding not counted
  double targets = 0;  // of a sequence, mean: what the head computes
  int64_t steps = 0;   // 0 = unknown
  double prompts = 0;  // of a step, in stages with units
};

// Where a length was found, for people.
struct LengthSource {
  std::string what;  // "sft rows"
  double tokens = 0;
  std::string source;  // "measured on 512 rows of FILE", "assumed: KEY"
};

struct RunSizes {
  int64_t parameters = 0;  // of the policy
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t vocab = 0;
  double prompt_tokens = 0;                  // mean
  double answer_tokens = 0;                  // mean
  std::map<std::string, StageSizes> stages;  // by kind; absent = assumed
  std::vector<LengthSource> lengths;
};

struct RoleEstimate {
  std::string role;  // "coordinator", "learner", "actor", "reward", "run"
  int64_t processes = 0;
  double weight_bytes = 0;      // parameters that one process holds
  double memory_bytes = 0;      // of one process, private; the largest one's
  double all_memory_bytes = 0;  // of all its processes, private
  double sent_bytes = 0;        // per step, by all of them
  double busy_s = 0;            // per step, of one of them
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

// Model GFLOP/s of one thread of one of `config.roles.learners` ranks whose
// step of stage `name` takes `step_s` without the commit. With it as the
// stage's rate, EstimateRun gives back that time.
double TrainRate(const cox::v1::RunConfig& config, const RunSizes& sizes,
                 const ClusterSpec& cluster, const std::string& name,
                 double step_s);

RunEstimate EstimateRun(const cox::v1::RunConfig& config, const RunSizes& sizes,
                        const ClusterSpec& cluster);

}  // namespace cox

#endif  // COX_CLI_PLAN_MODEL_H_
