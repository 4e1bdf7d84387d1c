#include "lib/comm/id_store.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "lib/base/clock.h"

namespace cox {
namespace {

constexpr char kHello[] = "COXID1";
constexpr size_t kMaxLine = 4096;
// A stranger that connects and says nothing must not keep the ranks waiting.
constexpr absl::Duration kPeerPatience = absl::Seconds(2);
constexpr absl::Duration kRetry = absl::Milliseconds(20);

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

bool Ready(int fd, short events, MonoTime deadline) {
  pollfd entry = {fd, events, 0};
  while (true) {
    const absl::Duration left =
        std::max(deadline - Clock::Real().Now(), absl::ZeroDuration());
    const int ready =
        poll(&entry, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

// Without the line end; "" when the peer leaves or the time is over.
std::string ReadLine(int fd, MonoTime deadline) {
  std::string line;
  char c = 0;
  while (line.size() < kMaxLine && Ready(fd, POLLIN, deadline) &&
         recv(fd, &c, 1, 0) == 1) {
    if (c == '\n') return line;
    line.push_back(c);
  }
  return "";
}

// A line fits any socket buffer.
bool SendLine(int fd, const std::string& line) {
  const std::string text = line + "\n";
  return send(fd, text.data(), text.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(text.size());
}

struct Addresses {
  addrinfo* first = nullptr;
  ~Addresses() {
    if (first != nullptr) freeaddrinfo(first);
  }
};

absl::Status Resolve(const IdStoreOptions& options, Addresses* result) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  const int code =
      getaddrinfo(options.host.c_str(), std::to_string(options.port).c_str(),
                  &hints, &result->first);
  if (code == 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("id store: ", options.host, ": ", gai_strerror(code)));
}

absl::StatusOr<Socket> Listen(const IdStoreOptions& options) {
  if (options.listen_fd >= 0) return Socket(options.listen_fd);
  Addresses addresses;
  COX_RETURN_IF_ERROR(Resolve(options, &addresses));
  for (addrinfo* a = addresses.first; a != nullptr; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(socket.fd(), a->ai_addr, a->ai_addrlen) == 0 &&
        listen(socket.fd(), 1024) == 0) {
      return socket;
    }
  }
  return absl::UnavailableError(absl::StrCat("id store: cannot listen on ",
                                             options.host, ":", options.port,
                                             ": ", std::strerror(errno)));
}

absl::StatusOr<std::string> Serve(const IdStoreOptions& options,
                                  const std::string& id, MonoTime deadline) {
  COX_ASSIGN_OR_RETURN(const Socket listener, Listen(options));
  std::set<int> served;
  while (static_cast<int>(served.size()) + 1 < options.world_size) {
    if (!Ready(listener.fd(), POLLIN, deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat("id store: ", served.size() + 1, " of ",
                       options.world_size, " ranks came"));
    }
    const Socket peer(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    if (peer.fd() < 0) continue;
    const std::vector<std::string> words = absl::StrSplit(
        ReadLine(peer.fd(),
                 std::min(deadline, Clock::Real().Now() + kPeerPatience)),
        ' ');
    int rank = 0;
    if (words.size() != 3 || words[0] != kHello ||
        !absl::SimpleAtoi(words[2], &rank) || rank < 1 ||
        rank >= options.world_size) {
      continue;
    }
    if (words[1] != options.group) {
      SendLine(peer.fd(), absl::StrCat("OTHER ", options.group));
    } else if (SendLine(peer.fd(), absl::StrCat("OK ", id))) {
      served.insert(rank);
    }
  }
  return id;
}

// "" when nobody answers there yet.
std::string Ask(const IdStoreOptions& options, const addrinfo& address,
                MonoTime deadline) {
  const Socket socket(::socket(address.ai_family,
                               SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (connect(socket.fd(), address.ai_addr, address.ai_addrlen) != 0) {
    int error = errno;
    socklen_t size = sizeof(error);
    if (error != EINPROGRESS || !Ready(socket.fd(), POLLOUT, deadline) ||
        getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 ||
        error != 0) {
      return "";
    }
  }
  if (!SendLine(socket.fd(),
                absl::StrCat(kHello, " ", options.group, " ", options.rank))) {
    return "";
  }
  return ReadLine(socket.fd(), deadline);
}

absl::StatusOr<std::string> Fetch(const IdStoreOptions& options,
                                  MonoTime deadline) {
  while (Clock::Real().Now() < deadline) {
    Addresses addresses;
    // A name may not be known before rank 0 has started.
    if (Resolve(options, &addresses).ok()) {
      for (addrinfo* a = addresses.first; a != nullptr; a = a->ai_next) {
        const std::string answer = Ask(options, *a, deadline);
        if (answer.rfind("OK ", 0) == 0) return answer.substr(3);
        if (answer.rfind("OTHER ", 0) == 0) {
          return absl::FailedPreconditionError(
              absl::StrCat("id store: rank 0 is of group '", answer.substr(6),
                           "', this rank of '", options.group, "'"));
        }
      }
    }
    absl::SleepFor(kRetry);
  }
  return absl::DeadlineExceededError(
      absl::StrCat("id store: no answer from ", options.host, ":", options.port,
                   " within ", absl::FormatDuration(options.timeout)));
}

}  // namespace

absl::StatusOr<std::string> ExchangeId(const IdStoreOptions& options,
                                       const std::string& id) {
  const bool blanks = options.group.empty() ||
                      options.group.find_first_of(" \n") != std::string::npos;
  if (options.rank < 0 || options.rank >= options.world_size || blanks ||
      (options.listen_fd < 0 && (options.port < 1 || options.port > 65535))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "id store: rank ", options.rank, " of ", options.world_size, ", port ",
        options.port, ", group '", options.group, "'"));
  }
  const MonoTime deadline = Clock::Real().Now() + options.timeout;
  return options.rank == 0 ? Serve(options, id, deadline)
                           : Fetch(options, deadline);
}

}  // namespace cox
