#include "coordinator/core_turn.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "lib/base/failpoint.h"
#include "lib/base/hash.h"

namespace cox {

CoreTurn::CoreTurn(std::unique_ptr<CoordinatorCore> core,
                   std::unique_ptr<LedgerStore> ledger,
                   std::unique_ptr<SegmentStore> segments, absl::Duration tick)
    : core_(std::move(core)),
      ledger_(std::move(ledger)),
      segments_(std::move(segments)),
      tick_(tick),
      rules_(core_->rules()) {}

void CoreTurn::Start(EffectHandler* handler, MonoTime now) {
  handler_ = handler;
  last_turn_ = now;
}

MonoTime CoreTurn::NextWake() const {
  MonoTime until = next_tick_;
  for (const Parked& parked : parked_) {
    until = std::min(until, parked.deadline);
  }
  return until;
}

absl::Status CoreTurn::SyncPayloads() {
  if (!unsynced_) {
    return absl::OkStatus();
  }
  unsynced_ = false;
  COX_RETURN_IF_ERROR(FailpointStatus("segment.appended"));
  const absl::Status synced = segments_->Sync(ledger_->last_transaction());
  if (!synced.ok()) {
    return rules_.end_at_failed_sync ? synced : absl::OkStatus();
  }
  HitFailpoint("segment.synced");
  return absl::OkStatus();
}

absl::Status CoreTurn::StorePayloads(std::vector<Item>& items) {
  for (Item& item : items) {
    if (!item.submit.has_value()) {
      continue;
    }
    const absl::StatusOr<bool> wanted = core_->WantsPayload(*item.submit);
    // A task of this turn may make acceptable what is refused now, but then
    // its payload would be missing.
    item.refused = wanted.status();
    if (wanted.ok() && *wanted) {
      COX_ASSIGN_OR_RETURN(item.submit->payload,
                           segments_->Append(item.payload));
      unsynced_ = true;
    }
    item.payload = std::string();
  }
  return rules_.payload_before_row ? SyncPayloads() : absl::OkStatus();
}

absl::Status CoreTurn::Run(MonoTime now, double wall_time_s,
                           std::vector<Item> items, bool parking) {
  core_->AdvanceTo(now, wall_time_s);
  // After a long stop of this process another one may own the ledger: no
  // answer before that is known.
  const bool stalled = now - last_turn_ > 20 * tick_;
  last_turn_ = now;
  absl::Status ready = stalled ? ledger_->CheckFence() : absl::OkStatus();
  ready.Update(ready.ok() ? StorePayloads(items) : absl::OkStatus());
  if (!ready.ok()) {
    // Whoever sent them still has to get an answer (Abandon): a call that
    // never ends would keep the process from leaving.
    unanswered_ = std::move(items);
    return ready;
  }
  for (Item& item : items) {
    if (item.task) {
      item.task();
      continue;
    }
    absl::StatusOr<SubmitResult> result =
        item.refused.ok() ? core_->Submit(*item.submit)
                          : absl::StatusOr<SubmitResult>(item.refused);
    AfterCommit([result = std::move(result),
                 reply = std::move(item.reply)](const absl::Status& committed) {
      reply(committed.ok() ? result : absl::StatusOr<SubmitResult>(committed));
    });
  }
  if (now >= next_tick_) {
    next_tick_ = now + tick_;
    DropGone();
    core_->Tick();
    handler_->OnTick(*core_);
  }
  // Effects lead to further rows and changes; a turn ends when none are left.
  while (true) {
    RunParked(now, parking);
    if (!rules_.ack_after_commit) {
      SendReplies(absl::OkStatus());
    }
    COX_RETURN_IF_ERROR(CommitRows());
    COX_RETURN_IF_ERROR(SyncPayloads());
    SendReplies(absl::OkStatus());
    const std::vector<Effect> effects = core_->TakeEffects();
    for (const Effect& effect : effects) {
      COX_RETURN_IF_ERROR(CarryOut(effect));
    }
    if (effects.empty() && !core_->has_changes()) {
      return CommitRows();
    }
  }
}

absl::Status CoreTurn::CarryOut(const Effect& effect) {
  switch (effect.kind) {
    case Effect::Kind::kSegmentRemoved:
      // Its row is durable: what stays behind costs space until the next start.
      if (const absl::Status removed = segments_->Remove(effect.segment);
          !removed.ok()) {
        core_->AddEvent("retention",
                        absl::StrCat("segment ", effect.segment,
                                     " not deleted yet: ", removed.message()));
      }
      return absl::OkStatus();
    case Effect::Kind::kUnitGivenUp:
      return StorePlaceholder(effect);
    default:
      handler_->OnEffect(*core_, effect);
      return absl::OkStatus();
  }
}

// Like any payload: synced before its row (rule 4).
absl::Status CoreTurn::StorePlaceholder(const Effect& effect) {
  SubmitEvent event = effect.submit;
  COX_ASSIGN_OR_RETURN(const std::string payload,
                       handler_->MakePlaceholder(event.unit, event.policy_hash,
                                                 event.version_step));
  event.payload_sha256 = Sha256Hex(std::string_view(payload));
  COX_ASSIGN_OR_RETURN(event.payload, segments_->Append(payload));
  unsynced_ = true;
  COX_RETURN_IF_ERROR(SyncPayloads());
  core_->RecordFailed(event, effect.text);
  return absl::OkStatus();
}

absl::Status CoreTurn::CommitRows() {
  const std::vector<LedgerRow> rows = core_->TakeRows();
  if (rows.empty()) {
    return absl::OkStatus();
  }
  COX_RETURN_IF_ERROR(FailpointStatus("ledger.decided"));
  COX_RETURN_IF_ERROR(ledger_->Commit(rows));
  HitFailpoint("ledger.committed");
  ++commits_;
  return absl::OkStatus();
}

void CoreTurn::RunParked(MonoTime now, bool parking) {
  const unsigned changes = core_->TakeChanges();
  if (parked_.empty()) {
    return;
  }
  std::vector<Parked> waiting = std::exchange(parked_, {});
  for (Parked& parked : waiting) {
    const bool expired = !parking || parked.deadline <= now;
    const bool due = expired || (parked.awaits & changes) != 0;
    const bool done = due && parked.attempt(expired);
    if (!done && !expired) {
      parked_.push_back(std::move(parked));
    }
  }
}

void CoreTurn::Park(MonoTime deadline,
                    std::function<bool(bool expired)> attempt,
                    std::function<bool()> gone, unsigned awaits) {
  if (attempt(/*expired=*/false)) {
    return;
  }
  parked_.push_back({deadline, std::move(attempt), std::move(gone), awaits});
}

void CoreTurn::DropGone() {
  for (Parked& parked : std::exchange(parked_, {})) {
    const bool done =
        parked.gone && parked.gone() && parked.attempt(/*expired=*/false);
    if (!done) {
      parked_.push_back(std::move(parked));
    }
  }
}

void CoreTurn::SendReplies(const absl::Status& status) {
  std::vector<Reply> replies = std::exchange(replies_, {});
  for (Reply& reply : replies) {
    reply(status);
  }
  if (!replies.empty() && status.ok()) {
    HitFailpoint("ledger.replied");
  }
}

void CoreTurn::Abandon(std::vector<Item> rest) {
  const absl::Status gone =
      absl::UnavailableError("the coordinator is going down");
  (void)core_->TakeRows();
  for (Parked& parked : std::exchange(parked_, {})) {
    parked.attempt(/*expired=*/true);
  }
  unanswered_.insert(unanswered_.end(), std::make_move_iterator(rest.begin()),
                     std::make_move_iterator(rest.end()));
  for (Item& item : std::exchange(unanswered_, {})) {
    if (item.task) {
      item.task();
    } else {
      item.reply(gone);
    }
  }
  for (Parked& parked : std::exchange(parked_, {})) {
    parked.attempt(/*expired=*/true);
  }
  SendReplies(gone);
}

}  // namespace cox
