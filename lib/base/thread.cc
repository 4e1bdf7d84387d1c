#include "lib/base/thread.h"

#include <pthread.h>

#include <cstdlib>
#include <exception>
#include <utility>

#include "lib/base/log.h"

namespace cox {

Thread::Thread(std::string name, std::function<void()> body)
    : thread_([name = std::move(name), body = std::move(body)] {
        // The kernel keeps 15 characters.
        pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
        try {
          body();
        } catch (const std::exception& e) {
          LogError("exception at the top of a thread",
                   {{"thread", name}, {"what", e.what()}});
          std::abort();
        }
      }) {}

Thread& Thread::operator=(Thread&& other) {
  if (this != &other) {
    Join();
    thread_ = std::move(other.thread_);
  }
  return *this;
}

void Thread::Join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace cox
