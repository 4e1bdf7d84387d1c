#include "lib/rpc/heartbeater.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <utility>

#include "lib/base/log.h"
#include "lib/rpc/trace_metadata.h"

namespace cox {

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t total = 0;
  uint64_t resident = 0;
  if (!(file >> total >> resident)) return 0;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

Heartbeater::Heartbeater(CoordinatorClient* client, absl::Duration interval,
                         std::function<void()> on_stop)
    : client_(client),
      interval_(interval),
      on_stop_(std::move(on_stop)),
      since_(Clock::Real().Now()),
      thread_("heartbeat", [this] { Loop(); }) {}

Heartbeater::~Heartbeater() {
  {
    MutexLock lock(&mutex_);
    closing_ = true;
    changed_.NotifyAll();
  }
  thread_.Join();
}

void Heartbeater::SetState(std::string state, std::string waiting_for) {
  MutexLock lock(&mutex_);
  if (state == state_ && waiting_for == waiting_for_) return;
  state_ = std::move(state);
  waiting_for_ = std::move(waiting_for);
  since_ = Clock::Real().Now();
}

void Heartbeater::SetHeld(std::vector<std::string> content_hashes) {
  MutexLock lock(&mutex_);
  held_ = std::move(content_hashes);
}

bool Heartbeater::stop_requested() const {
  MutexLock lock(&mutex_);
  return stop_requested_;
}

void Heartbeater::Loop() {
  bool failing = false;
  while (true) {
    cox::v1::HeartbeatRequest request;
    for (const RecordedSpan& span :
         TraceRecorder::Process().Take(kMaxSpansPerBeat)) {
      ToProto(span, request.add_spans());
    }
    bool last = false;
    {
      MutexLock lock(&mutex_);
      last = closing_;
      // The last beat only carries what would be lost.
      if (last && request.spans().empty()) return;
      request.set_state(state_);
      request.set_waiting_for(waiting_for_);
      request.set_state_ms(
          absl::ToInt64Milliseconds(Clock::Real().Now() - since_));
      request.mutable_held()->Assign(held_.begin(), held_.end());
    }
    request.set_rss_bytes(ResidentBytes());
    const auto response = client_->Heartbeat(std::move(request));
    if (response.ok() == failing) {
      failing = !response.ok();
      if (failing) {
        LogWarning("heartbeat failed",
                   {{"error", response.status().ToString()}});
      } else {
        LogInfo("heartbeat answered again");
      }
    }
    bool stops = false;
    {
      MutexLock lock(&mutex_);
      stops = response.ok() && response->stop() && !stop_requested_;
      stop_requested_ = stop_requested_ || stops;
    }
    if (last) return;
    if (stops && on_stop_) on_stop_();
    MutexLock lock(&mutex_);
    changed_.WaitFor(mutex_, interval_,
                     [this]()
                         ABSL_NO_THREAD_SAFETY_ANALYSIS { return closing_; });
  }
}

}  // namespace cox
