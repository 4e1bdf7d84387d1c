#include "coordinator/core_host.h"

#include <algorithm>
#include <utility>

#include "lib/base/log.h"

namespace cox {
namespace {

constexpr size_t kMaxTurn = 128;  // events in one transaction

}  // namespace

CoreHost::CoreHost(CoreHostOptions options,
                   std::unique_ptr<CoordinatorCore> core,
                   std::unique_ptr<LedgerStore> ledger,
                   std::unique_ptr<SegmentStore> segments)
    : options_(options),
      core_(std::move(core)),
      ledger_(std::move(ledger)),
      segments_(std::move(segments)) {}

CoreHost::~CoreHost() { Stop(); }

void CoreHost::Start(EffectHandler* handler) {
  handler_ = handler;
  last_turn_ = options_.clock->Now();
  thread_ = Thread("core", [this] { Loop(); });
  io_thread_ = Thread("core-io", [this] { IoLoop(); });
}

void CoreHost::StopParking() {
  MutexLock lock(&mutex_);
  parking_ = false;
  wake_.NotifyAll();
}

void CoreHost::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    parking_ = false;
    wake_.NotifyAll();
    io_wake_.NotifyAll();
  }
  thread_.Join();
  io_thread_.Join();
  (void)ledger_->Close();
}

bool CoreHost::parking() const {
  MutexLock lock(&mutex_);
  return parking_;
}

absl::Status CoreHost::fatal() const {
  MutexLock lock(&mutex_);
  return fatal_;
}

bool CoreHost::Enqueue(Item item) {
  MutexLock lock(&mutex_);
  if (stopping_ || !fatal_.ok() || queue_.size() >= options_.max_queue) {
    return false;
  }
  queue_.push_back(std::move(item));
  wake_.NotifyOne();
  return true;
}

bool CoreHost::Post(Task task) {
  Item item;
  item.task = std::move(task);
  return Enqueue(std::move(item));
}

bool CoreHost::PostSubmit(
    SubmitEvent event, std::string payload,
    std::function<void(const absl::StatusOr<SubmitResult>&)> reply) {
  Item item;
  item.submit = std::move(event);
  item.payload = std::move(payload);
  item.reply = std::move(reply);
  return Enqueue(std::move(item));
}

bool CoreHost::PostIo(Task task) {
  MutexLock lock(&mutex_);
  if (stopping_ || io_queue_.size() >= options_.max_queue) {
    return false;
  }
  io_queue_.push_back(std::move(task));
  io_wake_.NotifyOne();
  return true;
}

void CoreHost::IoLoop() {
  while (true) {
    Task task;
    {
      MutexLock lock(&mutex_);
      io_wake_.WaitFor(mutex_, absl::InfiniteDuration(),
                       [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                         return stopping_ || !io_queue_.empty();
                       });
      if (io_queue_.empty()) {
        return;
      }
      task = std::move(io_queue_.front());
      io_queue_.pop_front();
    }
    task();
  }
}

std::vector<CoreHost::Item> CoreHost::NextItems() {
  MonoTime until = next_tick_;
  for (const Parked& parked : parked_) {
    until = std::min(until, parked.deadline);
  }
  std::vector<Item> items;
  MutexLock lock(&mutex_);
  wake_.WaitFor(mutex_,
                std::max(absl::ZeroDuration(), until - options_.clock->Now()),
                [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                  return stopping_ || !queue_.empty() ||
                         (!parking_ && !parked_.empty());
                });
  while (!queue_.empty() && items.size() < kMaxTurn) {
    items.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  return items;
}

void CoreHost::Loop() {
  while (true) {
    std::vector<Item> items = NextItems();
    const bool idle = items.empty();
    const absl::Status status = Turn(std::move(items));
    if (!status.ok()) {
      Die(status);
      return;
    }
    MutexLock lock(&mutex_);
    if (stopping_ && idle && queue_.empty()) {
      return;
    }
  }
}

absl::Status CoreHost::StorePayloads(std::vector<Item>& items) {
  bool appended = false;
  for (Item& item : items) {
    if (!item.submit.has_value()) {
      continue;
    }
    const absl::StatusOr<bool> wanted = core_->WantsPayload(*item.submit);
    if (wanted.ok() && *wanted) {
      COX_ASSIGN_OR_RETURN(item.submit->payload,
                           segments_->Append(item.payload));
      appended = true;
    }
    item.payload = std::string();
  }
  return appended ? segments_->Sync() : absl::OkStatus();
}

absl::Status CoreHost::Turn(std::vector<Item> items) {
  const MonoTime now = options_.clock->Now();
  core_->AdvanceTo(now,
                   absl::ToDoubleSeconds(options_.clock->WallNow() -
                                         absl::UnixEpoch()));
  // After a long stop of this process another one may own the ledger: no
  // answer before that is known.
  const bool stalled = now - last_turn_ > 20 * options_.tick;
  last_turn_ = now;
  if (stalled) {
    COX_RETURN_IF_ERROR(ledger_->CheckFence());
  }
  COX_RETURN_IF_ERROR(StorePayloads(items));
  for (Item& item : items) {
    if (item.task) {
      item.task();
      continue;
    }
    absl::StatusOr<SubmitResult> result = core_->Submit(*item.submit);
    AfterCommit([result = std::move(result), reply = std::move(item.reply)](
                    const absl::Status& committed) {
      reply(committed.ok() ? result
                           : absl::StatusOr<SubmitResult>(committed));
    });
  }
  if (now >= next_tick_) {
    next_tick_ = now + options_.tick;
    core_->Tick();
    handler_->OnTick(*core_);
  }
  // Effects lead to further rows and changes; a turn ends when none are left.
  while (true) {
    RunParked();
    COX_RETURN_IF_ERROR(CommitRows());
    SendReplies(absl::OkStatus());
    const std::vector<Effect> effects = core_->TakeEffects();
    for (const Effect& effect : effects) {
      handler_->OnEffect(*core_, effect);
    }
    if (effects.empty() && core_->change_count() == seen_changes_) {
      return CommitRows();
    }
  }
}

absl::Status CoreHost::CommitRows() {
  const std::vector<LedgerRow> rows = core_->TakeRows();
  return rows.empty() ? absl::OkStatus() : ledger_->Commit(rows);
}

void CoreHost::RunParked() {
  const bool parking = this->parking();
  const bool changed = core_->change_count() != seen_changes_;
  seen_changes_ = core_->change_count();
  if (parked_.empty()) {
    return;
  }
  const MonoTime now = options_.clock->Now();
  std::vector<Parked> waiting = std::exchange(parked_, {});
  for (Parked& parked : waiting) {
    const bool expired = !parking || parked.deadline <= now;
    const bool done = (expired || changed) && parked.attempt(expired);
    if (!done && !expired) {
      parked_.push_back(std::move(parked));
    }
  }
}

void CoreHost::Park(absl::Duration wait,
                    std::function<bool(bool expired)> attempt) {
  if (attempt(/*expired=*/false)) {
    return;
  }
  parked_.push_back({options_.clock->Now() + wait, std::move(attempt)});
}

void CoreHost::SendReplies(const absl::Status& status) {
  for (Reply& reply : std::exchange(replies_, {})) {
    reply(status);
  }
}

void CoreHost::Die(const absl::Status& status) {
  LogError("the ledger cannot be written",
           {Field("error", std::string(status.message()))});
  std::deque<Item> rest;
  {
    MutexLock lock(&mutex_);
    fatal_ = status;
    rest = std::exchange(queue_, {});
  }
  const absl::Status gone =
      absl::UnavailableError("the coordinator is going down");
  (void)core_->TakeRows();
  for (Parked& parked : std::exchange(parked_, {})) {
    parked.attempt(/*expired=*/true);
  }
  for (Item& item : rest) {
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
