#include "reward/engine_driver.h"

#include <optional>
#include <utility>

#include "lib/base/clock.h"

namespace cox {

EngineDriver::EngineDriver(EngineFactory factory, size_t queue_capacity)
    : factory_(std::move(factory)),
      queue_(queue_capacity),
      thread_("engine", [this] { Loop(); }) {}

EngineDriver::~EngineDriver() { Close(); }

absl::Status EngineDriver::Submit(ModelSlot slot, std::string hash,
                                  absl::Duration timeout, Job job) {
  MutexLock lock(&mutex_);
  if (closed_) return absl::UnavailableError("this replica is leaving");
  const uint64_t id = next_id_++;
  const bool needs_model = !hash.empty();
  COX_RETURN_IF_ERROR(queue_.Push({.id = id,
                                   .slot = slot,
                                   .hash = std::move(hash),
                                   .deadline = Clock::Real().Now() + timeout}));
  jobs_.emplace(
      id, PendingJob{
              .slot = slot, .needs_model = needs_model, .run = std::move(job)});
  ++changes_;
  work_.NotifyOne();
  return absl::OkStatus();
}

absl::Status EngineDriver::Load(ModelSlot slot,
                                std::shared_ptr<const Snapshot> snapshot) {
  MutexLock one_at_a_time(&load_mutex_);
  auto request = std::make_shared<LoadRequest>();
  request->slot = slot;
  request->snapshot = std::move(snapshot);
  {
    MutexLock lock(&mutex_);
    if (closed_) return absl::UnavailableError("this replica is leaving");
    load_ = request;
    ++changes_;
    work_.NotifyOne();
  }
  // The driver answers every request, also when it closes.
  while (!request->done.WaitFor(absl::Minutes(1))) {
  }
  return request->result;
}

std::string EngineDriver::Held(ModelSlot slot) const {
  MutexLock lock(&mutex_);
  const auto it = held_.find(slot);
  return it == held_.end() ? std::string() : it->second;
}

size_t EngineDriver::queued() const {
  MutexLock lock(&mutex_);
  return queue_.size();
}

void EngineDriver::Close() {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    ++changes_;
    work_.NotifyOne();
  }
  thread_.Join();
}

absl::Status EngineDriver::LoadNow(ModelSlot slot,
                                   std::shared_ptr<const Snapshot> snapshot) {
  std::unique_ptr<ScoreEngine>& engine = engines_[slot];
  if (engine == nullptr) {
    COX_ASSIGN_OR_RETURN(engine, factory_());
  }
  return engine->Load(std::move(snapshot));
}

EngineDriver::Work EngineDriver::WaitForWork() {
  Work work;
  MutexLock lock(&mutex_);
  const uint64_t seen = changes_;
  work.load = std::exchange(load_, nullptr);
  work.closed = closed_;
  if (closed_) {
    work.refused = std::exchange(jobs_, {});
    return work;
  }
  if (work.load != nullptr) {
    // From here on nobody may be served by the weights that go.
    held_.erase(work.load->slot);
    return work;
  }
  const MonoTime now = Clock::Real().Now();
  if (auto decision = queue_.Next(now, held_); decision.has_value()) {
    const auto it = jobs_.find(decision->id);
    work.job = std::move(it->second);
    work.verdict = std::move(decision->verdict);
    jobs_.erase(it);
    return work;
  }
  const std::optional<MonoTime> next = queue_.NextDeadline();
  work_.WaitFor(mutex_, next.has_value() ? *next - now : absl::Hours(1),
                [this, seen]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                  return changes_ != seen;
                });
  return work;
}

void EngineDriver::Loop() {
  while (true) {
    Work work = WaitForWork();
    if (work.load != nullptr) {
      work.load->result =
          work.closed ? absl::UnavailableError("this replica is leaving")
                      : LoadNow(work.load->slot, work.load->snapshot);
      if (work.load->result.ok()) {
        MutexLock lock(&mutex_);
        held_[work.load->slot] = work.load->snapshot->content_hash;
      }
      work.load->done.Notify();
    }
    for (auto& [id, job] : work.refused) {
      job.run(absl::UnavailableError("this replica is leaving"), nullptr);
    }
    if (work.closed) {
      engines_.clear();  // where they were made
      return;
    }
    if (!work.job.run) continue;
    ScoreEngine* engine = nullptr;
    if (work.verdict.ok() && work.job.needs_model) {
      engine = engines_[work.job.slot].get();
    }
    work.job.run(work.verdict, engine);
  }
}

}  // namespace cox
