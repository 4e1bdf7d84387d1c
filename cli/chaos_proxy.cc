#include "cli/chaos_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <list>
#include <utility>
#include <vector>

#include "lib/base/clock.h"

namespace cox {
namespace {

constexpr int kTickMs = 10;
constexpr size_t kBuffer = 64 << 10;

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

// One direction of a connection.
struct Pipe {
  int from = -1;
  int to = -1;
  std::string buffer;
  bool ended = false;  // `from` sends no more
};

struct Connection {
  std::array<Pipe, 2> pipes;  // up, down
  bool swallowed = false;
  bool broken = false;
};

}  // namespace

class ChaosProxy::Loop {
 public:
  Loop(int listener, std::function<int()> upstream)
      : listener_(listener), upstream_(std::move(upstream)) {}
  ~Loop() {
    for (Connection& connection : connections_) CloseBoth(connection);
    close(listener_);
  }

  // One round: waits for at most a tick, moves what may be moved.
  void Turn(Mode mode) {
    if (mode != mode_) {
      for (Connection& c : connections_) c.broken |= c.swallowed;
      mode_ = mode;
    }
    std::vector<pollfd> fds = {{listener_, POLLIN, 0}};
    for (const Connection& connection : connections_) {
      for (const Pipe& pipe : connection.pipes) {
        const bool reads = !pipe.ended && pipe.buffer.size() < kBuffer;
        // Slow pipes are moved by time, not by readiness.
        const bool writes = !pipe.buffer.empty() && mode != Mode::kSlow;
        fds.push_back({pipe.from, static_cast<short>(reads ? POLLIN : 0), 0});
        fds.push_back({pipe.to, static_cast<short>(writes ? POLLOUT : 0), 0});
      }
    }
    poll(fds.data(), fds.size(), kTickMs);
    if ((fds[0].revents & POLLIN) != 0) Accept();
    const MonoTime now = Clock::Real().Now();
    budget_ += absl::ToDoubleSeconds(now - last_) * kSlowBytesPerSecond;
    budget_ = std::min<double>(budget_, kSlowBytesPerSecond);
    last_ = now;
    for (Connection& connection : connections_) {
      for (size_t i = 0; i < 2; ++i) Move(connection, i);
    }
    connections_.remove_if([](Connection& connection) {
      const bool over =
          connection.broken ||
          (connection.pipes[0].ended && connection.pipes[0].buffer.empty()) ||
          (connection.pipes[1].ended && connection.pipes[1].buffer.empty());
      if (over) CloseBoth(connection);
      return over;
    });
  }

 private:
  static void CloseBoth(Connection& connection) {
    close(connection.pipes[0].from);
    close(connection.pipes[0].to);
  }

  void Accept() {
    const int client =
        accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) return;
    const int port = upstream_();
    const int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = Loopback(port);
    // Loopback: connect() answers at once.
    if (port == 0 || server < 0 ||
        connect(server, reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)) != 0) {
      close(client);
      if (server >= 0) close(server);
      return;
    }
    fcntl(server, F_SETFL, O_NONBLOCK);
    Connection& connection = connections_.emplace_back();
    connection.pipes[0] = {client, server, "", false};
    connection.pipes[1] = {server, client, "", false};
  }

  void Move(Connection& connection, size_t direction) {
    Pipe& pipe = connection.pipes[direction];
    const bool cut = (mode_ == Mode::kCutUp && direction == 0) ||
                     (mode_ == Mode::kCutDown && direction == 1);
    if (!pipe.ended && pipe.buffer.size() < kBuffer) {
      std::array<char, 16 << 10> bytes;
      const ssize_t n = read(pipe.from, bytes.data(), bytes.size());
      if (n > 0) {
        pipe.buffer.append(bytes.data(), static_cast<size_t>(n));
      } else if (n == 0) {
        pipe.ended = true;
      } else if (errno != EAGAIN && errno != EINTR) {
        connection.broken = true;
      }
    }
    if (pipe.buffer.empty()) return;
    if (cut) {
      connection.swallowed = true;
      pipe.buffer.clear();
      return;
    }
    size_t size = pipe.buffer.size();
    if (mode_ == Mode::kSlow) {
      size = std::min(size, static_cast<size_t>(std::max(0.0, budget_)));
      if (size == 0) return;
    }
    const ssize_t n = send(pipe.to, pipe.buffer.data(), size, MSG_NOSIGNAL);
    if (n > 0) {
      pipe.buffer.erase(0, static_cast<size_t>(n));
      budget_ -= static_cast<double>(n);
    } else if (errno != EAGAIN && errno != EINTR) {
      connection.broken = true;
    }
  }

  const int listener_;
  const std::function<int()> upstream_;
  std::list<Connection> connections_;
  Mode mode_ = Mode::kPass;
  double budget_ = 0;  // bytes that may pass now, over all connections
  MonoTime last_ = Clock::Real().Now();
};

absl::StatusOr<std::unique_ptr<ChaosProxy>> ChaosProxy::Start(
    std::function<int()> upstream) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (listener < 0 || bind(listener, generic, size) != 0 ||
      listen(listener, 64) != 0 || getsockname(listener, generic, &size) != 0) {
    const int error = errno;
    if (listener >= 0) close(listener);
    return absl::UnavailableError(
        absl::StrCat("proxy: no port on loopback: ", std::strerror(error)));
  }
  fcntl(listener, F_SETFL, O_NONBLOCK);
  std::unique_ptr<ChaosProxy> proxy(new ChaosProxy());
  proxy->port_ = ntohs(address.sin_port);
  proxy->loop_ = std::make_unique<Loop>(listener, std::move(upstream));
  ChaosProxy* self = proxy.get();
  proxy->thread_ = Thread("chaos-proxy", [self] {
    while (!self->stopping_) self->loop_->Turn(self->mode_);
  });
  return proxy;
}

ChaosProxy::~ChaosProxy() {
  stopping_ = true;
  thread_.Join();
}

}  // namespace cox
