#include "learner/replay_service.h"

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/thread.h"
#include "lib/comm/inprocess.h"

namespace cox {
namespace {

// Threads of one process cannot lose each other; they only wait for the
// slowest one.
constexpr absl::Duration kPatience = absl::Hours(24);

// Rank 0 decides for all.
absl::StatusOr<bool> Agree(Collective& group, bool go_on) {
  uint8_t flag = go_on ? 1 : 0;
  COX_RETURN_IF_ERROR(group.Broadcast(
      std::as_writable_bytes(std::span<uint8_t>(&flag, 1)), /*root=*/0));
  return flag != 0;
}

absl::Status RunRank(const ReplayOptions& options, Collective& group) {
  StageContext context = options.context;
  context.group = &group;
  COX_ASSIGN_OR_RETURN(StageRun run, BuildStage(context, options.assignment));
  ReplayedStep done;
  done.step = run.trainer->completed_steps();
  while (true) {
    bool go_on = true;
    if (group.rank() == 0) {
      COX_ASSIGN_OR_RETURN(done.trained, run.trainer->Trained());
      go_on = options.on_step(done);
    }
    COX_ASSIGN_OR_RETURN(go_on, Agree(group, go_on));
    if (!go_on || done.step >= options.last) {
      return absl::OkStatus();
    }
    ++done.step;
    BatchInput input;
    if (options.batch != nullptr) {
      COX_ASSIGN_OR_RETURN(input, options.batch(done.step));
    }
    COX_ASSIGN_OR_RETURN(done.result, run.trainer->Step(done.step, input));
  }
}

}  // namespace

absl::Status ReplayStage(const ReplayOptions& options) {
  std::vector<std::unique_ptr<Collective>> group =
      MakeInProcessGroup(options.ranks, kPatience);
  std::vector<absl::Status> statuses(group.size());
  {
    std::vector<Thread> threads;
    for (size_t rank = 0; rank < group.size(); ++rank) {
      threads.emplace_back(absl::StrCat("rank-", rank), [&, rank] {
        statuses[rank] = RunRank(options, *group[rank]);
        if (!statuses[rank].ok()) {
          group[rank]->Abort();
        }
      });
    }
  }
  absl::Status first;
  for (const absl::Status& status : statuses) {
    if (!status.ok() && !absl::IsAborted(status)) {
      return status;
    }
    first.Update(status);
  }
  return first;
}

}  // namespace cox
