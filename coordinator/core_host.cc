#include "coordinator/core_host.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "lib/base/log.h"

namespace cox {
namespace {

constexpr size_t kMaxTurn = 1024;  // events in one transaction

}  // namespace

CoreHost::CoreHost(CoreHostOptions options,
                   std::unique_ptr<CoordinatorCore> core,
                   std::unique_ptr<LedgerStore> ledger,
                   std::unique_ptr<SegmentStore> segments)
    : options_(options),
      turn_(std::move(core), std::move(ledger), std::move(segments),
            options.tick) {}

CoreHost::~CoreHost() { Stop(); }

void CoreHost::Start(EffectHandler* handler) {
  turn_.Start(handler, options_.clock->Now());
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
  (void)turn_.Close();
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

bool CoreHost::PostSubmit(SubmitEvent event, std::string payload,
                          CoreTurn::SubmitReply reply) {
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
  const MonoTime until = turn_.NextWake();
  const bool has_parked = turn_.has_parked();
  std::vector<Item> items;
  MutexLock lock(&mutex_);
  wake_.WaitFor(
      mutex_, std::max(absl::ZeroDuration(), until - options_.clock->Now()),
      [this, has_parked]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return stopping_ || !queue_.empty() || (!parking_ && has_parked);
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
    const absl::Status status = turn_.Run(
        options_.clock->Now(),
        absl::ToDoubleSeconds(options_.clock->WallNow() - absl::UnixEpoch()),
        std::move(items), parking());
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

void CoreHost::Park(absl::Duration wait,
                    std::function<bool(bool expired)> attempt,
                    std::function<bool()> gone, unsigned awaits) {
  turn_.Park(options_.clock->Now() + wait, std::move(attempt), std::move(gone),
             awaits);
}

void CoreHost::Die(const absl::Status& status) {
  LogError("the ledger cannot be written",
           {Field("error", std::string(status.message()))});
  std::vector<Item> rest;
  {
    MutexLock lock(&mutex_);
    fatal_ = status;
    rest.assign(std::make_move_iterator(queue_.begin()),
                std::make_move_iterator(queue_.end()));
    queue_.clear();
  }
  turn_.Abandon(std::move(rest));
}

}  // namespace cox
