#ifndef COX_COORDINATOR_CORE_TURN_H_
#define COX_COORDINATOR_CORE_TURN_H_

// One turn of the coordinator: payloads appended and synced, events decided by
// the core, all rows committed in one synced transaction, and only then the
// replies sent and the effects carried out (rules 3, 4 and 5 of
// docs/durability.md). No thread, queue or clock: CoreHost puts those around
// it, the simulator (tests/sim/) calls it directly.
//
// Thread-compatible.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/core.h"
#include "coordinator/segments.h"
#include "lib/base/clock.h"

namespace cox {

// Called after the rows that led to the effect are durable. May block on
// files, may call the core.
class EffectHandler {
 public:
  virtual ~EffectHandler() = default;
  virtual void OnEffect(CoordinatorCore& core, const Effect& effect) = 0;
  virtual void OnTick(CoordinatorCore& core) = 0;
  // The payload of a unit that is given up: its prompts, without answers. A
  // function of its arguments alone.
  virtual absl::StatusOr<std::string> MakePlaceholder(
      const UnitId& unit, const std::string& policy_hash,
      int64_t version_step) = 0;
};

class CoreTurn {
 public:
  using Task = std::function<void()>;
  // Gets OK after the commit, otherwise why there was none.
  using Reply = std::function<void(const absl::Status& committed)>;
  using SubmitReply = std::function<void(const absl::StatusOr<SubmitResult>&)>;
  // A task, or a submission with its payload.
  struct Item {
    Task task;
    std::optional<SubmitEvent> submit;
    std::string payload;
    SubmitReply reply;
    absl::Status refused;  // filled in by Run()
  };

  // `tick`: how often expiries are looked at.
  CoreTurn(std::unique_ptr<CoordinatorCore> core,
           std::unique_ptr<LedgerStore> ledger,
           std::unique_ptr<SegmentStore> segments, absl::Duration tick);

  void Start(EffectHandler* handler, MonoTime now);
  // `parking` false: whoever waits is answered now. An error is final: call
  // Abandon() and end the process.
  absl::Status Run(MonoTime now, double wall_time_s, std::vector<Item> items,
                   bool parking);
  // Answers everybody, `rest` (not begun) included, with UNAVAILABLE.
  void Abandon(std::vector<Item> rest);
  // When Run() is due without items.
  MonoTime NextWake() const;
  bool has_parked() const { return !parked_.empty(); }
  absl::Status Close() { return ledger_->Close(); }

  // --- For tasks and attempts
  CoordinatorCore& core() { return *core_; }
  void AfterCommit(Reply reply) { replies_.push_back(std::move(reply)); }
  // `attempt(expired)` runs now, whenever one of the changes `awaits` (of enum
  // Change) happened, and once with true at `deadline`; it returns true when it
  // has answered. `gone()` is asked at every tick; when it says true, so is the
  // attempt.
  void Park(MonoTime deadline, std::function<bool(bool expired)> attempt,
            std::function<bool()> gone = nullptr, unsigned awaits = kAnyChange);

  // Any thread.
  const SegmentStore& segments() const { return *segments_; }
  int64_t commits() const { return commits_; }  // transactions so far

 private:
  struct Parked {
    MonoTime deadline;
    std::function<bool(bool)> attempt;
    std::function<bool()> gone;
    unsigned awaits = kAnyChange;
  };

  absl::Status StorePayloads(std::vector<Item>& items);
  absl::Status SyncPayloads();
  absl::Status CommitRows();
  absl::Status CarryOut(const Effect& effect);
  absl::Status StorePlaceholder(const Effect& effect);
  void RunParked(MonoTime now, bool parking);
  void DropGone();
  void SendReplies(const absl::Status& status);

  std::unique_ptr<CoordinatorCore> core_;
  std::unique_ptr<LedgerStore> ledger_;
  std::unique_ptr<SegmentStore> segments_;
  const absl::Duration tick_;
  const CoreRules rules_;
  EffectHandler* handler_ = nullptr;
  std::vector<Reply> replies_;
  std::vector<Item> unanswered_;  // of a turn that failed before it decided
  std::vector<Parked> parked_;
  MonoTime next_tick_;
  MonoTime last_turn_;
  bool unsynced_ = false;  // payloads were appended
  std::atomic<int64_t> commits_ = 0;
};

}  // namespace cox

#endif  // COX_COORDINATOR_CORE_TURN_H_
