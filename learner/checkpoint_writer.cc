#include "learner/checkpoint_writer.h"

#include <utility>

#include "lib/base/clock.h"
#include "lib/base/failpoint.h"
#include "lib/base/log.h"

namespace cox {
namespace {

absl::StatusOr<WrittenCheckpoint> WriteAndReadBack(Fs& fs,
                                                   const CheckpointJob& job) {
  COX_ASSIGN_OR_RETURN(
      WrittenCheckpoint written,
      WriteCheckpoint(fs, job.directory, job.identity, job.contents));
  COX_RETURN_IF_ERROR(
      VerifyCheckpoint(fs, job.directory, written.manifest_sha256).status());
  HitFailpoint("checkpoint.verified");
  return written;
}

}  // namespace

absl::StatusOr<WrittenCheckpoint> WriteVerifiedCheckpoint(
    Fs& fs, const CheckpointJob& job) {
  absl::StatusOr<WrittenCheckpoint> written = WriteAndReadBack(fs, job);
  // One that was there already is not ours to remove.
  if (written.ok() || absl::IsAlreadyExists(written.status())) {
    return written;
  }
  for (const std::string& folder : {job.directory + ".tmp", job.directory}) {
    const absl::Status removed =
        fs.Exists(folder) ? fs.RemoveAll(folder) : absl::OkStatus();
    if (!removed.ok()) {
      LogWarning("unfinished checkpoint not deleted",
                 {{"folder", folder}, {"error", removed.ToString()}});
    }
  }
  return written;
}

void CheckpointWriter::Start(CheckpointJob job) {
  COX_CHECK(!busy());
  running_ = std::make_unique<Running>();
  running_->outcome.directory = job.directory;
  running_->outcome.identity = job.identity;
  thread_ = Thread(
      "checkpoint", [this, running = running_.get(), job = std::move(job)] {
        const MonoTime start = Clock::Real().Now();
        running->outcome.written = WriteVerifiedCheckpoint(fs_, job);
        running->outcome.seconds =
            absl::ToDoubleSeconds(Clock::Real().Now() - start);
        running->done.Notify();
      });
}

std::optional<CheckpointOutcome> CheckpointWriter::Poll() {
  if (!running_->done.HasBeenNotified()) {
    return std::nullopt;
  }
  return Wait();
}

CheckpointOutcome CheckpointWriter::Wait() {
  COX_CHECK(busy());
  thread_.Join();
  CheckpointOutcome outcome = std::move(running_->outcome);
  running_.reset();
  return outcome;
}

}  // namespace cox
