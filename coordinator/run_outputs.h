#ifndef COX_COORDINATOR_RUN_OUTPUTS_H_
#define COX_COORDINATOR_RUN_OUTPUTS_H_

// What a run writes for people and for its later stages: metrics.jsonl,
// TensorBoard files, samples.jsonl, comparisons*.jsonl, eval.json,
// report.html. All of it can be made again from the ledger and the segments;
// files that later stages read are written durably before the stage is done.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "coordinator/core.h"
#include "coordinator/core_host.h"
#include "coordinator/segments.h"
#include "coordinator/stage_outputs.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/sync.h"
#include "lib/metrics/jsonl.h"
#include "lib/metrics/prometheus.h"
#include "lib/metrics/tensorboard.h"

namespace cox {

struct RunOutputsOptions {
  std::string run_dir;
  std::string name;         // of the run
  std::string config_yaml;  // for the report
  uint64_t seed = 0;
  bool label_by_people = false;
  double label_noise = 0;
  double heldout_fraction = 0;
  int bootstrap = 2000;
  int samples_per_step = 0;
  bool tensorboard = false;
  // Total steps of a stage over rows of comparisons (stage_steps.h), asked
  // when the stage before it is done.
  std::function<absl::StatusOr<int64_t>(StageKind)> steps_over_rows;
  // Told when the run has failed.
  std::function<void(const std::string& text, int exit_code)> on_failure;
};

// One trajectory as people read it.
struct SampleText {
  std::string id;
  std::string prompt;
  std::string response;
  double reward = 0;
  std::string finish;
};

// Methods run on the core thread, except metrics() and ReadSamples().
class RunOutputs {
 public:
  // Brings metrics.jsonl up to the ledger's steps.
  static absl::StatusOr<std::unique_ptr<RunOutputs>> Open(
      Fs& fs, RunOutputsOptions options, const SegmentStore* segments,
      DecodeFunction decode, const CoordinatorCore& core);

  void OnEffect(CoordinatorCore& core, const Effect& effect);
  void OnTick(CoordinatorCore& core);

  PrometheusRegistry& metrics() { return metrics_; }
  // Reads payloads; for the thread that may block.
  absl::StatusOr<std::vector<SampleText>> ReadSamples(
      const std::vector<UnitRow>& units, size_t limit) const;

 private:
  RunOutputs(Fs& fs, RunOutputsOptions options, const SegmentStore* segments,
             DecodeFunction decode)
      : fs_(fs),
        options_(std::move(options)),
        segments_(segments),
        decode_(std::move(decode)) {}
  absl::Status OpenFiles(const CoordinatorCore& core);
  void StepCommitted(const CoordinatorCore& core, int32_t stage, int64_t step);
  absl::Status WriteSamples(const CoordinatorCore& core, int32_t stage,
                            int64_t step);
  absl::Status CompleteStage(CoordinatorCore& core, int32_t stage);
  absl::StatusOr<std::vector<OutputUnit>> ReadUnits(const CoordinatorCore& core,
                                                    int64_t step) const;
  // False: labels are still missing.
  absl::StatusOr<bool> WriteCollect(CoordinatorCore& core,
                                    std::map<std::string, double>& metrics);
  absl::Status WriteEval(const CoordinatorCore& core,
                         std::map<std::string, double>& metrics);
  absl::Status WriteReportFile(const CoordinatorCore& core);
  std::string Path(const char* name) const {
    return JoinPath(options_.run_dir, name);
  }

  Fs& fs_;
  const RunOutputsOptions options_;
  const SegmentStore* const segments_;
  const DecodeFunction decode_;
  std::unique_ptr<MetricsWriter> writer_;
  std::unique_ptr<TensorboardWriter> tensorboard_;
  std::unique_ptr<WritableFile> samples_;
  PrometheusRegistry metrics_;
  bool waiting_for_labels_ = false;
  std::string rejected_labels_;  // hash of the labels file last refused
};

}  // namespace cox

#endif  // COX_COORDINATOR_RUN_OUTPUTS_H_
