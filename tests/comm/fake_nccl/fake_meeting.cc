// The thread that computes for all ranks of one communicator.

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "tests/comm/fake_nccl/fake_cuda.h"
#include "tests/comm/fake_nccl/fake_wire.h"

namespace cox_fake {
namespace {

constexpr uint64_t kInvalidArgument = 4;
constexpr uint64_t kInvalidUsage = 5;

struct Bf16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value = 0;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
  }
  Bf16& operator+=(const Bf16& other) {
    const float sum = static_cast<float>(*this) + static_cast<float>(other);
    uint32_t wide = 0;
    std::memcpy(&wide, &sum, sizeof(wide));
    wide += 0x7fff + ((wide >> 16) & 1);  // to nearest even
    bits = static_cast<uint16_t>(wide >> 16);
    return *this;
  }
};

struct Peer {
  int fd = -1;
  int rank = 0;
  std::vector<char> bytes = {};  // of the request that is arriving
  const Request& request() const {
    return *reinterpret_cast<const Request*>(bytes.data());
  }
  bool complete() const {
    return bytes.size() >= sizeof(Request) &&
           bytes.size() == sizeof(Request) + request().payload;
  }
  char* payload() { return bytes.data() + sizeof(Request); }
};

// In the order of lib/comm/tree_sum.h, written down again on purpose: a fake
// that shared the code would share its mistakes.
template <typename T>
void SumAsTree(std::vector<T*> parts, size_t count) {
  while (parts.size() > 1) {
    std::vector<T*> next;
    for (size_t i = 0; i < parts.size(); i += 2) {
      next.push_back(parts[i]);
      if (i + 1 == parts.size()) continue;
      for (size_t k = 0; k < count; ++k) parts[i][k] += parts[i + 1][k];
    }
    parts = next;
  }
}

// As a ring does: block b starts at rank b + 1 and goes round.
template <typename T>
void SumAsRing(const std::vector<T*>& parts, size_t count) {
  const size_t world = parts.size();
  const size_t block = (count + world - 1) / world;
  for (size_t k = 0; k < count; ++k) {
    const size_t first = k / block + 1;
    T sum = parts[first % world][k];
    for (size_t step = 1; step < world; ++step) {
      sum += parts[(first + step) % world][k];
    }
    parts[0][k] = sum;
  }
}

template <typename T>
void SumInto(std::vector<Peer>& peers, size_t count) {
  std::vector<T*> parts;
  for (Peer& peer : peers)
    parts.push_back(reinterpret_cast<T*>(peer.payload()));
  const char* order = std::getenv("COX_FAKE_NCCL_ORDER");
  if (order != nullptr && std::strcmp(order, "ring") == 0) {
    SumAsRing(parts, count);
  } else {
    SumAsTree(parts, count);
  }
}

bool Sum(std::vector<Peer>& peers, uint32_t type, size_t count) {
  switch (type) {
    case 7:
      SumInto<float>(peers, count);
      return true;
    case 8:
      SumInto<double>(peers, count);
      return true;
    case 9:
      SumInto<Bf16>(peers, count);
      return true;
    default:
      return false;
  }
}

class Meeting {
 public:
  explicit Meeting(int listener) : listener_(listener) {}
  ~Meeting() {
    for (Peer& peer : peers_) close(peer.fd);
    if (listener_ >= 0) close(listener_);
  }
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;

  void Run() {
    if (!Gather()) return;
    while (Receive()) {
      if (!AnswerAll()) return;
    }
  }

 private:
  // All ranks say hello.
  bool Gather() {
    size_t ranks = 1;
    while (peers_.size() < ranks) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return false;
      Request hello;
      if (!ReadAll(fd, &hello, sizeof(hello))) {
        close(fd);
        continue;
      }
      bool good = peers_.empty() || hello.count == ranks;
      for (const Peer& peer : peers_) good &= peer.rank != hello.root;
      if (!good) {
        CoxFakeMisuse("two ranks of one number, or of other world sizes");
        const Answer refused{kInvalidUsage, 0};
        SendAll(fd, &refused, sizeof(refused));
        close(fd);
        continue;
      }
      ranks = hello.count;
      peers_.push_back({fd, hello.root});
    }
    close(std::exchange(listener_, -1));
    std::sort(peers_.begin(), peers_.end(),
              [](const Peer& a, const Peer& b) { return a.rank < b.rank; });
    const Answer welcome;
    for (Peer& peer : peers_) SendAll(peer.fd, &welcome, sizeof(welcome));
    return true;
  }

  // One request of every rank. False: one is gone.
  bool Receive() {
    for (Peer& peer : peers_) peer.bytes.clear();
    while (true) {
      std::vector<pollfd> entries;
      for (Peer& peer : peers_) {
        entries.push_back({peer.fd, POLLIN, 0});
      }
      const bool all =
          std::all_of(peers_.begin(), peers_.end(),
                      [](const Peer& peer) { return peer.complete(); });
      if (all) return true;
      if (poll(entries.data(), entries.size(), -1) < 0) return false;
      for (size_t i = 0; i < peers_.size(); ++i) {
        if (entries[i].revents != 0 && !Take(peers_[i])) return false;
      }
    }
  }

  static bool Take(Peer& peer) {
    const size_t have = peer.bytes.size();
    size_t want = sizeof(Request) - std::min(have, sizeof(Request));
    if (want == 0) want = sizeof(Request) + peer.request().payload - have;
    if (want == 0) {
      // It may only leave: nothing is sent before the answer.
      char none = 0;
      return recv(peer.fd, &none, 1, MSG_PEEK) > 0;
    }
    peer.bytes.resize(have + want);
    const ssize_t got = recv(peer.fd, peer.bytes.data() + have, want, 0);
    peer.bytes.resize(have + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    return got > 0;
  }

  bool AnswerAll() {
    const Request first = peers_[0].request();
    for (const Peer& peer : peers_) {
      const Request& r = peer.request();
      if (r.kind == first.kind && r.type == first.type &&
          r.root == first.root && r.count == first.count &&
          r.sequence == first.sequence) {
        continue;
      }
      CoxFakeMisuse("ranks called different operations, counts or types");
      return Refuse(kInvalidUsage);
    }
    switch (first.kind) {
      case Kind::kAllReduce:
        if (!Sum(peers_, first.type, first.count)) {
          return Refuse(kInvalidArgument);
        }
        return ToAll(peers_[0].payload(), peers_[0].request().payload, 0);
      case Kind::kReduceScatter: {
        if (!Sum(peers_, first.type, first.count * peers_.size())) {
          return Refuse(kInvalidArgument);
        }
        const size_t block = first.count * BytesOfType(first.type);
        return ToAll(peers_[0].payload(), block, block);
      }
      case Kind::kAllGather: {
        std::vector<char> all;
        for (Peer& peer : peers_) {
          all.insert(all.end(), peer.payload(),
                     peer.payload() + peer.request().payload);
        }
        return ToAll(all.data(), all.size(), 0);
      }
      case Kind::kBroadcast: {
        Peer& root = peers_[static_cast<size_t>(first.root)];
        return ToAll(root.payload(), root.request().payload, 0);
      }
      case Kind::kSplit:
        return Split();
      case Kind::kBye:
        ToAll(nullptr, 0, 0);
        return false;
      case Kind::kHello:
        return false;
    }
    return false;
  }

  // Rank r gets `bytes` from `data + r * stride`.
  bool ToAll(const char* data, size_t bytes, size_t stride) {
    for (size_t i = 0; i < peers_.size(); ++i) {
      const Answer answer{0, bytes};
      SendAll(peers_[i].fd, &answer, sizeof(answer));
      SendAll(peers_[i].fd, data + i * stride, bytes);
    }
    return true;
  }

  bool Refuse(uint64_t code) {
    const Answer answer{code, 0};
    for (Peer& peer : peers_) SendAll(peer.fd, &answer, sizeof(answer));
    return true;
  }

  bool Split() {
    std::map<int32_t, std::vector<std::pair<int32_t, size_t>>> groups;
    for (size_t i = 0; i < peers_.size(); ++i) {
      int32_t wish[2] = {};
      std::memcpy(wish, peers_[i].payload(), sizeof(wish));
      if (wish[0] >= 0) groups[wish[0]].emplace_back(wish[1], i);
    }
    std::vector<SplitAnswer> answers(peers_.size());
    for (auto& [color, members] : groups) {
      std::sort(members.begin(), members.end());
      const std::string name = StartMeeting();
      for (size_t rank = 0; rank < members.size(); ++rank) {
        SplitAnswer& answer = answers[members[rank].second];
        std::copy(name.begin(), name.end(), answer.name);
        answer.rank = static_cast<int32_t>(rank);
        answer.ranks = static_cast<int32_t>(members.size());
      }
    }
    return ToAll(reinterpret_cast<const char*>(answers.data()),
                 sizeof(SplitAnswer), sizeof(SplitAnswer));
  }

  int listener_;
  std::vector<Peer> peers_;
};

sockaddr_un AddressOf(const std::string& name, socklen_t* size) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // The leading zero: abstract, gone with its process.
  std::copy(name.begin(), name.end(), address.sun_path + 1);
  *size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

}  // namespace

size_t BytesOfType(uint32_t type) {
  switch (type) {
    case 0:
    case 1:
      return 1;
    case 9:
      return 2;
    case 7:
      return 4;
    case 8:
      return 8;
    default:
      return 0;
  }
}

std::string StartMeeting() {
  static std::atomic<int> count{0};
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const std::string name = "cox-fake-nccl-" + std::to_string(getpid()) + "-" +
                           std::to_string(count++) + "-" + std::to_string(now);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t size = 0;
  const sockaddr_un address = AddressOf(name, &size);
  if (fd < 0 ||
      bind(fd, reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      listen(fd, 64) != 0) {
    if (fd >= 0) close(fd);
    return "";
  }
  std::thread([fd] { Meeting(fd).Run(); }).detach();
  return name;
}

int Connect(const std::string& name) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t size = 0;
  const sockaddr_un address = AddressOf(name, &size);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0) {
    return fd;
  }
  if (fd >= 0) close(fd);
  return -1;
}

bool SendAll(int fd, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    at += sent;
    bytes -= static_cast<size_t>(sent);
  }
  return true;
}

bool ReadAll(int fd, void* data, size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = recv(fd, at, bytes, 0);
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

}  // namespace cox_fake
