#ifndef COX_LEARNER_CHECKPOINT_WRITER_H_
#define COX_LEARNER_CHECKPOINT_WRITER_H_

// Writes checkpoints beside training (docs/durability.md, rule 19).

#include <memory>
#include <optional>
#include <string>

#include "learner/checkpoint.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"

namespace cox {

// One checkpoint to write. Owns copies: training goes on meanwhile.
struct CheckpointJob {
  std::string directory;
  CheckpointIdentity identity;
  CheckpointContents contents;
};

// WriteCheckpoint, then every byte is read back. After an error neither the
// folder nor its temporary is left, if the file system can still delete.
absl::StatusOr<WrittenCheckpoint> WriteVerifiedCheckpoint(
    Fs& fs, const CheckpointJob& job);

struct CheckpointOutcome {
  std::string directory;
  CheckpointIdentity identity;
  absl::StatusOr<WrittenCheckpoint> written;
  double seconds = 0;
};

// One job at a time on a thread of its own. Thread-compatible.
class CheckpointWriter {
 public:
  // `fs` is used from the thread until the outcome was taken.
  explicit CheckpointWriter(Fs& fs) : fs_(fs) {}
  // Waits for the write in progress.
  ~CheckpointWriter() = default;
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // REQUIRES: !busy().
  void Start(CheckpointJob job);
  // Started, and its outcome was not taken yet.
  bool busy() const { return running_ != nullptr; }
  // Its outcome, once; nullopt while it is written. REQUIRES: busy().
  std::optional<CheckpointOutcome> Poll();
  CheckpointOutcome Wait();

 private:
  struct Running {
    CheckpointOutcome outcome;  // valid after done
    Notification done;
  };
  Fs& fs_;
  std::unique_ptr<Running> running_;
  Thread thread_;  // after what it uses: joined first
};

}  // namespace cox

#endif  // COX_LEARNER_CHECKPOINT_WRITER_H_
