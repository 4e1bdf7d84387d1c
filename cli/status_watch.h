#ifndef COX_CLI_STATUS_WATCH_H_
#define COX_CLI_STATUS_WATCH_H_

// What can be seen of a run from outside: its processes, and what its
// coordinator says of itself.

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>

#include "cox/v1/monitor.pb.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"

namespace cox {

// Children of process `parent`, by name ("actor-0", "coordinator").
std::map<std::string, pid_t> RoleProcesses(pid_t parent);

// Asks for the status again and again, in a thread of its own, because a
// stopped coordinator does not answer.
class StatusWatch {
 public:
  struct View {
    bool answered = false;           // at the last attempt
    MonoTime asked;                  // when the last attempt began
    MonoTime answered_at;            // of `status`
    cox::v1::StatusResponse status;  // the last one
    // Grows with every committed step, over all stages.
    int64_t progress() const;
    // gRPC address of the living session of that name; "" = none.
    std::string AddressOf(const std::string& name) const;
  };

  // `pause` between two questions.
  StatusWatch(std::string run_dir, absl::Duration pause);
  ~StatusWatch();
  View Now() const;
  // "who waits for whom", for a run that does not go on.
  std::string Stuck() const;

 private:
  void Loop();

  const std::string run_dir_;
  const absl::Duration pause_;
  Notification stopping_;
  mutable Mutex mutex_;
  View view_ ABSL_GUARDED_BY(mutex_);
  Thread thread_;
};

}  // namespace cox

#endif  // COX_CLI_STATUS_WATCH_H_
