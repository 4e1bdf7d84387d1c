#ifndef COX_TESTS_SIM_EVENT_LOOP_H_
#define COX_TESTS_SIM_EVENT_LOOP_H_

// Virtual time: events run one after the other in the order of their time,
// equal times in the order of scheduling.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "lib/base/clock.h"

namespace cox::sim {

using Ns = int64_t;
constexpr Ns kMs = 1000000;
constexpr Ns kSecond = 1000 * kMs;

class EventLoop {
 public:
  using Task = std::function<void()>;

  Ns now() const { return now_; }
  MonoTime mono() const { return {now_}; }
  int64_t events() const { return sequence_; }
  void At(Ns time, Task task) {
    heap_.push_back({std::max(time, now_), ++sequence_, std::move(task)});
    std::push_heap(heap_.begin(), heap_.end(), Later);
  }
  // False when nothing is left.
  bool RunOne() {
    if (heap_.empty()) {
      return false;
    }
    std::pop_heap(heap_.begin(), heap_.end(), Later);
    Event event = std::move(heap_.back());
    heap_.pop_back();
    now_ = event.time;
    event.task();
    return true;
  }

 private:
  struct Event {
    Ns time = 0;
    int64_t sequence = 0;
    Task task;
  };
  static bool Later(const Event& a, const Event& b) {
    return std::pair(a.time, a.sequence) > std::pair(b.time, b.sequence);
  }

  Ns now_ = kSecond;
  int64_t sequence_ = 0;
  std::vector<Event> heap_;
};

}  // namespace cox::sim

#endif  // COX_TESTS_SIM_EVENT_LOOP_H_
