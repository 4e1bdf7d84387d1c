#include "tests/sim/campaign.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/clock.h"
#include "lib/base/sync.h"
#include "lib/base/thread.h"

namespace cox::sim {
namespace {

constexpr uint64_t kBlock = 64;  // seeds that a thread takes at a time

class Campaign {
 public:
  explicit Campaign(const CampaignOptions& options)
      : options_(options), next_(options.first) {}

  void Work() {
    CampaignResult own;
    std::map<Variant, std::string> weights;
    while (!stop_) {
      const uint64_t first = next_.fetch_add(kBlock);
      if (first > options_.last) {
        break;
      }
      const uint64_t last = std::min(first + kBlock - 1, options_.last);
      for (uint64_t seed = first; seed <= last && !stop_; ++seed) {
        Run(seed, own, weights);
      }
    }
    MutexLock lock(&mutex_);
    total_.schedules += own.schedules;
    total_.failed_units += own.failed_units;
    total_.removed_segments += own.removed_segments;
    total_.events += own.events;
    total_.virtual_s += own.virtual_s;
    total_.coverage.Add(own.coverage);
    if (own.failed.has_value() &&
        (!total_.failed.has_value() || *own.failed < *total_.failed)) {
      total_.failed = own.failed;
      total_.violation = own.violation;
    }
  }

  CampaignResult Take() {
    MutexLock lock(&mutex_);
    return std::move(total_);
  }

 private:
  void Run(uint64_t seed, CampaignResult& own,
           std::map<Variant, std::string>& weights) {
    SimOptions options;
    options.seed = seed;
    options.rules = options_.rules;
    SimResult result = Simulate(options);
    ++own.schedules;
    own.events += result.events;
    own.virtual_s += static_cast<double>(result.virtual_time) / kSecond;
    own.coverage.Add(result.coverage);
    own.failed_units += static_cast<int64_t>(result.failed_units);
    own.removed_segments += static_cast<int64_t>(result.removed_segments);
    if (result.ok && result.variant.schedule != kSchedules - 1 &&
        result.failed_units == 0) {
      const auto [known, inserted] =
          weights.emplace(result.variant, result.final_weights);
      if (known->second != result.final_weights) {
        result.ok = false;
        result.violation = "invariant 15: final weights differ between seeds";
      }
    }
    if (!result.ok && !own.failed.has_value()) {
      own.failed = seed;
      own.violation = result.violation;
      stop_ = stop_ || options_.stop_at_first;
    }
  }

  const CampaignOptions& options_;
  std::atomic<uint64_t> next_;
  std::atomic<bool> stop_ = false;
  Mutex mutex_;
  CampaignResult total_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

CampaignResult RunCampaign(const CampaignOptions& options) {
  const MonoTime start = Clock::Real().Now();
  Campaign campaign(options);
  std::vector<Thread> threads;
  for (int i = 1; i < options.threads; ++i) {
    threads.emplace_back("simulate", [&campaign] { campaign.Work(); });
  }
  campaign.Work();
  for (Thread& thread : threads) {
    thread.Join();
  }
  CampaignResult result = campaign.Take();
  result.wall_s = absl::ToDoubleSeconds(Clock::Real().Now() - start);
  return result;
}

SimOptions Shrink(SimOptions options) {
  options.trace = true;
  const size_t count = Simulate(options).faults.size();
  options.left_out.assign(count, false);
  bool smaller = true;
  while (smaller) {
    smaller = false;
    for (size_t i = 0; i < count; ++i) {
      if (options.left_out[i]) {
        continue;
      }
      options.left_out[i] = true;
      if (Simulate(options).ok) {
        options.left_out[i] = false;
      } else {
        smaller = true;
      }
    }
  }
  return options;
}

std::string Describe(const SimOptions& options, const SimResult& result) {
  std::string text = absl::StrCat(
      "seed ", options.seed, ": ",
      result.ok ? "finished" : absl::StrCat("VIOLATION ", result.violation),
      "\nschedule ", ScheduleName(result.variant), ", stages ",
      result.variant.stages, ", ", result.events, " events\nfaults:\n");
  for (size_t i = 0; i < result.faults.size(); ++i) {
    const bool out = i < options.left_out.size() && options.left_out[i];
    absl::StrAppend(&text, out ? "  (left out) " : "  ",
                    result.faults[i].ToString(), "\n");
  }
  absl::StrAppend(&text, "last events:\n");
  for (const std::string& event : result.last_events) {
    absl::StrAppend(&text, "  ", event, "\n");
  }
  return text;
}

}  // namespace cox::sim
