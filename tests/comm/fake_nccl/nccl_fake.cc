// NCCL without a GPU: the C symbols of libnccl that lib/comm loads, for N
// processes on one machine. As with NCCL, a collective is enqueued on a stream
// and runs later; a non-blocking communicator answers "in progress" and
// enqueues from a thread of its own; an operation that cannot end (a peer is
// gone) stays on its stream until the communicator is aborted. Built for tests,
// never installed.
//
// Environment (tests only; see also fake_cuda.h):
//   COX_FAKE_NCCL="rank=R call=K fault=F [ms=N]", or @FILE with such a line,
//   which
//     the process that acts removes first, so that it acts once. K counts this
//     process's collectives from 1; 0 = the meeting. F:
//     kill      SIGKILL to itself          halfway   the same, half a message
//     out hang      the operation never ends   slow      N ms late error the
//     call fails             async     the communicator fails
//   COX_FAKE_NCCL_ORDER=ring    sum as a ring does, not as a tree
//   COX_FAKE_NCCL_SILENT=1      a lost peer is not noticed, as over NVLink
//   COX_FAKE_NCCL_LATE_US=N     how late a non-blocking call enqueues (0)

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/comm/fake_nccl/fake_cuda.h"
#include "tests/comm/fake_nccl/fake_wire.h"

namespace {

using cox_fake::Answer;
using cox_fake::Kind;
using cox_fake::ReadAll;
using cox_fake::Request;
using cox_fake::SendAll;

constexpr int kSuccess = 0;
constexpr int kSystemError = 2;
constexpr int kInvalidArgument = 4;
constexpr int kRemoteError = 6;
constexpr int kInProgress = 7;

std::mutex last_error_mutex;
std::string& LastError() {
  static auto* text = new std::string;
  return *text;
}
int Wrong(const std::string& text, int code = kInvalidArgument) {
  {
    std::lock_guard<std::mutex> lock(last_error_mutex);
    LastError() = text;
  }
  CoxFakeMisuse(("NCCL: " + text).c_str());
  return code;
}

struct Fault {
  int rank = -1;
  int64_t call = -1;
  std::string kind;
  int ms = 0;
  std::string path;
};

Fault ReadFault() {
  Fault fault;
  const char* setting = std::getenv("COX_FAKE_NCCL");
  std::string line = setting == nullptr ? "" : setting;
  if (line.rfind('@', 0) == 0) {
    fault.path = line.substr(1);
    line.clear();
    if (std::FILE* file = std::fopen(fault.path.c_str(), "r")) {
      char text[200] = {};
      if (std::fgets(text, sizeof(text), file) != nullptr) line = text;
      std::fclose(file);
    }
  }
  char kind[20] = {};
  if (std::sscanf(line.c_str(), "rank=%d call=%ld fault=%19s ms=%d",
                  &fault.rank, &fault.call, kind, &fault.ms) >= 3) {
    fault.kind = kind;
  }
  return fault;
}

// Of the process: that in the first communicator it made.
std::atomic<int> process_rank{-1};

// The fault of this process's `call`-th collective; "" = none.
std::string TakeFault(int64_t call) {
  const int rank = process_rank.load();
  static const Fault fault = ReadFault();
  if (fault.kind.empty() || rank != fault.rank || call != fault.call) return "";
  if (!fault.path.empty() && unlink(fault.path.c_str()) != 0) return "";
  std::fprintf(stderr, "fake NCCL, rank %d: %s at call %ld\n", rank,
               fault.kind.c_str(), static_cast<long>(call));
  if (fault.kind == "slow") usleep(static_cast<useconds_t>(fault.ms) * 1000);
  return fault.kind;
}

std::atomic<int64_t> collectives{0};

bool Silent() { return std::getenv("COX_FAKE_NCCL_SILENT") != nullptr; }

struct Comm {
  int rank = 0;
  int ranks = 0;
  int device = 0;
  bool blocking = false;
  std::mutex mutex;
  std::condition_variable cv;
  int fd = -1;
  bool aborted = false;
  bool gone = false;  // aborted or destroyed: the handle must not be used
  int state = kInProgress;
  uint64_t tickets = 0;  // given to operations, in order
  uint64_t turn = 0;     // whose operation may speak
  std::deque<std::function<void()>> jobs;
  bool working = false;

  void Fail(int code) {
    std::unique_lock<std::mutex> lock(mutex);
    if (!aborted && !(code == kRemoteError && Silent())) state = code;
    cv.notify_all();
    // The operation stays on its stream until somebody aborts.
    cv.wait(lock, [this] { return aborted; });
  }
  void EndTurn() {
    std::lock_guard<std::mutex> lock(mutex);
    ++turn;
    cv.notify_all();
  }
  // False: aborted.
  bool AwaitTurn(uint64_t ticket) {
    std::unique_lock<std::mutex> lock(mutex);
    cv.wait(lock, [&] { return aborted || turn == ticket; });
    return !aborted;
  }
};

// One request and its answer. The result code.
int Talk(Comm& comm, const Request& request, const void* payload, void* out,
         size_t out_bytes) {
  Answer answer;
  if (!SendAll(comm.fd, &request, sizeof(request)) ||
      !SendAll(comm.fd, payload, request.payload) ||
      !ReadAll(comm.fd, &answer, sizeof(answer))) {
    return kRemoteError;
  }
  if (answer.code != 0) return static_cast<int>(answer.code);
  std::vector<char> bytes(answer.payload);
  if (!ReadAll(comm.fd, bytes.data(), bytes.size())) return kRemoteError;
  std::memcpy(out, bytes.data(), std::min(out_bytes, bytes.size()));
  return kSuccess;
}

struct Operation {
  std::shared_ptr<Comm> comm;
  Request request;
  const void* in = nullptr;
  void* out = nullptr;
  size_t out_bytes = 0;
  std::string fault;
};

// On the stream's thread.
int RunOperation(void* raw) {
  const std::unique_ptr<Operation> op(static_cast<Operation*>(raw));
  Comm& comm = *op->comm;
  if (!comm.AwaitTurn(op->request.sequence)) return 0;
  if (op->fault == "kill") raise(SIGKILL);
  if (op->fault == "halfway") {
    SendAll(comm.fd, &op->request, sizeof(op->request));
    SendAll(comm.fd, op->in, op->request.payload / 2);
    raise(SIGKILL);
  }
  if (op->fault == "hang") {
    comm.Fail(kSuccess);
    return 0;
  }
  const int code = op->fault == "async" ? kRemoteError
                                        : Talk(comm, op->request, op->in,
                                               op->out, op->out_bytes);
  if (code != kSuccess) {
    comm.Fail(code);
    return 0;
  }
  comm.EndTurn();
  return 0;
}

// Operations of a group run one after the other, each settled before the next.
thread_local bool ending_group = false;

// Runs `job` on the communicator's own thread, or here when it is blocking.
int Submit(const std::shared_ptr<Comm>& comm, std::function<void()> job) {
  {
    std::lock_guard<std::mutex> lock(comm->mutex);
    comm->state = kInProgress;
    comm->jobs.push_back(std::move(job));
    if (!comm->working) {
      comm->working = true;
      std::thread([comm] {
        const char* late = std::getenv("COX_FAKE_NCCL_LATE_US");
        std::unique_lock<std::mutex> guard(comm->mutex);
        while (!comm->jobs.empty()) {
          const std::function<void()> next = comm->jobs.front();
          guard.unlock();
          if (late != nullptr) {
            usleep(static_cast<useconds_t>(std::atoi(late)));
          }
          next();
          guard.lock();
          comm->jobs.pop_front();
        }
        if (comm->state == kInProgress) comm->state = kSuccess;
        comm->working = false;
        comm->cv.notify_all();
      }).detach();
    }
  }
  if (!comm->blocking && !ending_group) return kInProgress;
  std::unique_lock<std::mutex> lock(comm->mutex);
  comm->cv.wait(lock, [&] { return !comm->working; });
  return comm->state;
}

// Handles are never reused, so that a dead one is recognised.
std::mutex comms_mutex;
std::vector<std::unique_ptr<std::shared_ptr<Comm>>>& Comms() {
  static auto* comms = new std::vector<std::unique_ptr<std::shared_ptr<Comm>>>;
  return *comms;
}
void* NewHandle(const std::shared_ptr<Comm>& comm) {
  std::lock_guard<std::mutex> lock(comms_mutex);
  Comms().push_back(std::make_unique<std::shared_ptr<Comm>>(comm));
  return Comms().back().get();
}
std::shared_ptr<Comm> Find(void* handle, const char* call) {
  std::lock_guard<std::mutex> lock(comms_mutex);
  for (const auto& comm : Comms()) {
    if (comm.get() != handle) continue;
    std::lock_guard<std::mutex> guard((*comm)->mutex);
    if (!(*comm)->gone) return *comm;
  }
  Wrong(std::string(call) + " on an aborted or destroyed communicator");
  return nullptr;
}

void Meet(Comm& comm, const std::string& name) {
  const std::string fault = TakeFault(0);
  if (fault == "kill") raise(SIGKILL);
  if (fault == "hang") return comm.Fail(kInProgress);
  if (fault == "error") return comm.Fail(kSystemError);
  const int fd = cox_fake::Connect(name);
  {
    std::lock_guard<std::mutex> lock(comm.mutex);
    comm.fd = fd;
    if (comm.aborted) return;
  }
  Request hello;
  hello.count = static_cast<uint64_t>(comm.ranks);
  hello.root = comm.rank;
  Answer answer;
  if (!SendAll(fd, &hello, sizeof(hello)) ||
      !ReadAll(fd, &answer, sizeof(answer))) {
    comm.Fail(kSystemError);
  } else if (answer.code != 0) {
    comm.Fail(static_cast<int>(answer.code));
  }
}

thread_local int group_depth = 0;
thread_local std::vector<std::function<int()>> grouped;

int Collective(const char* name, void* handle, Kind kind, const void* in,
               void* out, size_t count, uint32_t type, int root, void* stream) {
  const std::shared_ptr<Comm> comm = Find(handle, name);
  if (comm == nullptr) return kInvalidArgument;
  const auto world = static_cast<size_t>(comm->ranks);
  const size_t bytes = count * cox_fake::BytesOfType(type);
  if (cox_fake::BytesOfType(type) == 0 || root < 0 || root >= comm->ranks) {
    return Wrong(std::string(name) + ": type or root");
  }
  const size_t in_bytes = kind == Kind::kReduceScatter ? bytes * world : bytes;
  const size_t out_bytes = kind == Kind::kAllGather ? bytes * world : bytes;
  const bool reads = kind != Kind::kBroadcast || root == comm->rank;
  if (CoxFakeStreamDevice(stream) != comm->device) {
    return Wrong(std::string(name) + ": the stream is of another device");
  }
  if ((reads && CoxFakeDeviceOf(in, in_bytes) != comm->device) ||
      CoxFakeDeviceOf(out, out_bytes) != comm->device) {
    return Wrong(std::string(name) +
                 ": the buffer is too small, or not memory of this device");
  }
  auto op = std::make_unique<Operation>();
  op->comm = comm;
  op->in = in;
  op->out = out;
  op->out_bytes = out_bytes;
  op->request.kind = kind;
  op->request.type = type;
  op->request.root = root;
  op->request.count = count;
  op->request.payload = reads ? in_bytes : 0;
  {
    std::lock_guard<std::mutex> lock(comm->mutex);
    if (comm->state == kInProgress) {
      return Wrong(std::string(name) + " before the one before has settled");
    }
    if (comm->state != kSuccess) return comm->state;
    op->fault = TakeFault(++collectives);
    if (op->fault == "error") return kSystemError;
    op->request.sequence = comm->tickets++;
  }
  Operation* raw = op.release();
  return Submit(comm, [raw, stream, in, out, in_bytes, out_bytes, reads] {
    const CoxFakeUse uses[] = {{out, out_bytes}, {in, reads ? in_bytes : 0}};
    if (CoxFakeEnqueue(stream, RunOperation, raw, uses, 2) != 0) delete raw;
  });
}

int InGroup(std::function<int()> call) {
  if (group_depth == 0) return call();
  grouped.push_back(std::move(call));
  return kSuccess;
}

struct UniqueId {
  char bytes[128];
};
// The front of ncclConfig_t.
struct Config {
  size_t size;
  unsigned int magic;
  unsigned int version;
  int blocking;
};

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  *version = 22809;
  return kSuccess;
}

int ncclGetUniqueId(UniqueId* id) {
  *id = {};
  const std::string name = cox_fake::StartMeeting();
  std::memcpy(id->bytes, name.data(), name.size());
  return name.empty() ? kSystemError : kSuccess;
}

int ncclCommInitRankConfig(void** handle, int ranks, UniqueId id, int rank,
                           Config* config) {
  if (ranks < 1 || rank < 0 || rank >= ranks) return Wrong("rank or world");
  if (config != nullptr && config->magic != 0xcafebeef) {
    return Wrong("the configuration was not initialized");
  }
  int none = -1;
  process_rank.compare_exchange_strong(none, rank);
  auto comm = std::make_shared<Comm>();
  comm->rank = rank;
  comm->ranks = ranks;
  comm->device = CoxFakeCurrentDevice();
  comm->blocking = config == nullptr || config->blocking != 0;
  *handle = NewHandle(comm);
  id.bytes[sizeof(id.bytes) - 1] = '\0';
  const std::string name = id.bytes;
  return Submit(comm, [comm, name] { Meet(*comm, name); });
}

int ncclCommSplit(void* handle, int color, int key, void** result, Config*) {
  const std::shared_ptr<Comm> comm = Find(handle, "ncclCommSplit");
  *result = nullptr;
  if (comm == nullptr) return kInvalidArgument;
  std::shared_ptr<Comm> child;
  if (color >= 0) {
    child = std::make_shared<Comm>();
    child->blocking = comm->blocking;
    child->device = comm->device;
    *result = NewHandle(child);
  }
  uint64_t ticket = 0;
  {
    std::lock_guard<std::mutex> lock(comm->mutex);
    if (comm->state != kSuccess) return Wrong("split before all has settled");
    ticket = comm->tickets++;
  }
  return Submit(comm, [comm, child, color, key, ticket] {
    if (!comm->AwaitTurn(ticket)) return;
    const int32_t wish[2] = {color, key};
    Request request;
    request.kind = Kind::kSplit;
    request.sequence = ticket;
    request.payload = sizeof(wish);
    cox_fake::SplitAnswer answer;
    const int code = Talk(*comm, request, wish, &answer, sizeof(answer));
    if (code != kSuccess) return comm->Fail(code);
    comm->EndTurn();
    if (child == nullptr) return;
    child->rank = answer.rank;
    child->ranks = answer.ranks;
    const std::string name = answer.name;
    Submit(child, [child, name] { Meet(*child, name); });
  });
}

int ncclCommGetAsyncError(void* handle, int* error) {
  const std::shared_ptr<Comm> comm = Find(handle, "ncclCommGetAsyncError");
  if (comm == nullptr) return kInvalidArgument;
  std::lock_guard<std::mutex> lock(comm->mutex);
  *error = comm->state;
  return kSuccess;
}

int ncclCommAbort(void* handle) {
  const std::shared_ptr<Comm> comm = Find(handle, "ncclCommAbort");
  if (comm == nullptr) return kInvalidArgument;
  std::lock_guard<std::mutex> lock(comm->mutex);
  comm->aborted = true;
  comm->gone = true;
  if (comm->fd >= 0) shutdown(comm->fd, SHUT_RDWR);
  comm->cv.notify_all();
  return kSuccess;
}

int ncclCommFinalize(void* handle) {
  const std::shared_ptr<Comm> comm = Find(handle, "ncclCommFinalize");
  if (comm == nullptr) return kInvalidArgument;
  uint64_t ticket = 0;
  {
    std::lock_guard<std::mutex> lock(comm->mutex);
    if (comm->state != kSuccess)
      return Wrong("finalize before all has settled");
    ticket = comm->tickets++;
  }
  return Submit(comm, [comm, ticket] {
    if (!comm->AwaitTurn(ticket)) return;
    Request bye;
    bye.kind = Kind::kBye;
    bye.sequence = ticket;
    const int code = Talk(*comm, bye, nullptr, nullptr, 0);
    if (code != kSuccess) return comm->Fail(code);
    comm->EndTurn();
  });
}

int ncclCommDestroy(void* handle) {
  const std::shared_ptr<Comm> comm = Find(handle, "ncclCommDestroy");
  if (comm == nullptr) return kInvalidArgument;
  std::lock_guard<std::mutex> lock(comm->mutex);
  if (comm->turn != comm->tickets)
    return Wrong("destroyed with work in flight");
  comm->gone = true;
  if (comm->fd >= 0) close(comm->fd);
  comm->fd = -1;
  return kSuccess;
}

int ncclAllReduce(const void* in, void* out, size_t count, uint32_t type,
                  uint32_t op, void* comm, void* stream) {
  if (op != 0) return Wrong("the fake only sums");
  return InGroup([=] {
    return Collective("ncclAllReduce", comm, Kind::kAllReduce, in, out, count,
                      type, 0, stream);
  });
}
int ncclReduceScatter(const void* in, void* out, size_t count, uint32_t type,
                      uint32_t op, void* comm, void* stream) {
  if (op != 0) return Wrong("the fake only sums");
  return InGroup([=] {
    return Collective("ncclReduceScatter", comm, Kind::kReduceScatter, in, out,
                      count, type, 0, stream);
  });
}
int ncclAllGather(const void* in, void* out, size_t count, uint32_t type,
                  void* comm, void* stream) {
  return InGroup([=] {
    return Collective("ncclAllGather", comm, Kind::kAllGather, in, out, count,
                      type, 0, stream);
  });
}
int ncclBroadcast(const void* in, void* out, size_t count, uint32_t type,
                  int root, void* comm, void* stream) {
  return InGroup([=] {
    return Collective("ncclBroadcast", comm, Kind::kBroadcast, in, out, count,
                      type, root, stream);
  });
}

int ncclGroupStart() {
  ++group_depth;
  return kSuccess;
}
int ncclGroupEnd() {
  if (group_depth == 0) return Wrong("group ends that was not started");
  if (--group_depth > 0) return kSuccess;
  const std::vector<std::function<int()>> calls = std::move(grouped);
  grouped.clear();
  int code = kSuccess;
  ending_group = true;
  for (const std::function<int()>& call : calls) {
    if (code == kSuccess) code = call();
  }
  ending_group = false;
  return code;
}

const char* ncclGetErrorString(int code) {
  switch (code) {
    case kSuccess:
      return "no error";
    case kSystemError:
      return "unhandled system error";
    case kInvalidArgument:
      return "invalid argument";
    case kRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "fake NCCL error";
  }
}
const char* ncclGetLastError(void*) {
  static thread_local std::string text;
  std::lock_guard<std::mutex> lock(last_error_mutex);
  text = LastError();
  return text.c_str();
}

}  // extern "C"
