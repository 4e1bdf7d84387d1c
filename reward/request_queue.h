#ifndef COX_REWARD_REQUEST_QUEUE_H_
#define COX_REWARD_REQUEST_QUEUE_H_

// Which waiting request a reward replica serves next. Pure: no threads, no
// clock. A request names the weights it wants; while they are still on their
// way it waits, without holding up requests that can be served.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>

#include "lib/base/clock.h"
#include "lib/base/status.h"

namespace cox {

enum class ModelSlot { kReward, kReference };

struct RequestTicket {
  uint64_t id = 0;
  ModelSlot slot = ModelSlot::kReward;
  std::string hash;   // content hash wanted; "" = needs no model
  MonoTime deadline;  // refuse then
};

class RequestQueue {
 public:
  explicit RequestQueue(size_t capacity) : capacity_(capacity) {}

  // RESOURCE_EXHAUSTED when full: slow down.
  absl::Status Push(RequestTicket ticket);

  struct Decision {
    uint64_t id = 0;
    // OK: run it now. FAILED_PRECONDITION: the weights did not arrive in time.
    // DEADLINE_EXCEEDED: they are here, but nobody waits any more.
    absl::Status verdict;
  };
  // Overdue requests first, then the oldest one whose weights are in `held`.
  // nullopt: nothing to do before NextDeadline() or a change of `held`.
  std::optional<Decision> Next(MonoTime now,
                               const std::map<ModelSlot, std::string>& held);

  // Earliest deadline of what waits.
  std::optional<MonoTime> NextDeadline() const;
  size_t size() const { return tickets_.size(); }

 private:
  const size_t capacity_;
  std::deque<RequestTicket> tickets_;  // by arrival
};

}  // namespace cox

#endif  // COX_REWARD_REQUEST_QUEUE_H_
