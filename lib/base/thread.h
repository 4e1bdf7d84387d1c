#ifndef COX_LIB_BASE_THREAD_H_
#define COX_LIB_BASE_THREAD_H_

// Named, joined threads. An exception that reaches the top is logged with the
// thread's name, then the process aborts.

#include <functional>
#include <string>
#include <thread>

namespace cox {

// Joins in its destructor. Movable; a moved-from Thread is empty.
class Thread {
 public:
  Thread() = default;
  Thread(std::string name, std::function<void()> body);
  Thread(Thread&&) = default;
  Thread& operator=(Thread&& other);
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() { Join(); }
  void Join();

 private:
  std::thread thread_;
};

}  // namespace cox

#endif  // COX_LIB_BASE_THREAD_H_
