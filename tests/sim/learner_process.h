#ifndef COX_TESTS_SIM_LEARNER_PROCESS_H_
#define COX_TESTS_SIM_LEARNER_PROCESS_H_

// A learner rank: the production LineageCore and checkpoint files around a
// trainer that hashes. Ranks of a generation meet in a Group, which stands for
// the collective.

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "learner/lineage_core.h"
#include "tests/sim/worker_process.h"

namespace cox::sim {

class LearnerProcess : public WorkerProcess {
 public:
  LearnerProcess(World& world, std::string its_name, int32_t rank);

  bool training() const { return lineage_.has_value(); }
  int64_t completed() const {
    return lineage_.has_value() ? lineage_->completed() : 0;
  }

 protected:
  void OnStart() override;
  void OnKilled() override;
  void OnFatal(const absl::Status& status) override;

 private:
  void Join();
  void NextAssignment(int64_t serial);
  void OnAssignment(const AssignmentData& assignment);
  void PublishOrders(size_t next, std::function<void()> then);
  void Publish(const std::string& model, const PolicyVersion& version,
               const std::string& hash, std::function<void()> then);
  void Train();
  bool Restore();
  absl::StatusOr<TrainerState> LoadCheckpoint(const CheckpointRow& row);
  std::optional<TrainerState> NewestFolder();  // rule 18 off

  // Carries out what the lineage names next.
  void Continue();
  void Done();
  void PublishVersion(int64_t step);
  void TakeBatch(int64_t step);
  void TrainStep(int64_t step);
  void Meet(const std::string& point, std::function<void()> then);
  void BeginCheckpoint(int64_t step);
  bool WriteCheckpointFiles(const std::string& directory,
                            const TrainerState& state);
  void Commit(const LineageAction& action);
  void SendCommit(const CommitStepEvent& event,
                  std::function<void()> acknowledged);
  void Retain(int64_t step);
  void KeepOnly();

  AssignmentData assignment_;
  std::map<std::pair<std::string, PolicyVersion>, std::string> ordered_;
  std::optional<LineageCore> lineage_;
  LineageAction action_;  // in progress
  TrainerState state_;
  std::string batch_sha256_;
  int64_t batches_since_start_ = 0;
  std::optional<CheckpointData> checkpoint_;  // written, not committed yet
  std::string checkpoint_weights_;
  std::set<std::string> met_;  // points of the collective this rank reached
  std::string waiting_at_;
  std::function<void()> then_;
};

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_LEARNER_PROCESS_H_
