#ifndef COX_CLI_CHAOS_PROXY_H_
#define COX_CLI_CHAOS_PROXY_H_

// A TCP proxy on loopback that can be slow or swallow one direction. Where it
// connects to is asked anew for every connection, because a coordinator that
// was restarted may listen elsewhere.

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "lib/base/status.h"
#include "lib/base/thread.h"

namespace cox {

class ChaosProxy {
 public:
  enum class Mode {
    kPass,
    kSlow,     // kSlowBytesPerSecond in each direction
    kCutUp,    // what clients send is swallowed
    kCutDown,  // what the server sends is swallowed
  };
  static constexpr int kSlowBytesPerSecond = 2000;

  // `upstream()` gives 127.0.0.1's port; 0 = nobody listens now.
  static absl::StatusOr<std::unique_ptr<ChaosProxy>> Start(
      std::function<int()> upstream);
  ~ChaosProxy();
  ChaosProxy(const ChaosProxy&) = delete;
  ChaosProxy& operator=(const ChaosProxy&) = delete;

  int port() const { return port_; }
  // Connections that had bytes swallowed are closed when the mode changes: a
  // stream with a hole in it is of no use to anybody.
  void SetMode(Mode mode) { mode_ = mode; }

 private:
  class Loop;
  ChaosProxy() = default;

  int port_ = 0;
  std::atomic<Mode> mode_{Mode::kPass};
  std::atomic<bool> stopping_{false};
  std::unique_ptr<Loop> loop_;
  Thread thread_;
};

}  // namespace cox

#endif  // COX_CLI_CHAOS_PROXY_H_
