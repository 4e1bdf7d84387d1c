#include "tests/nccl/nccl_world.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/comm/id_store.h"

namespace cox {
namespace {

int CodeOf(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  if (absl::IsAborted(status)) return kNoGroup;
  return absl::IsDeadlineExceeded(status) ? kNoGroupInTime : kNoGroupOther;
}

// With the id that rank 0 makes.
absl::StatusOr<NcclOptions> OptionsOf(const NcclWorld::Settings& settings,
                                      int rank, int size, int listen_fd,
                                      int port) {
  std::string text;
  if (rank == 0) {
    COX_ASSIGN_OR_RETURN(const NcclUniqueId id, NewNcclId());
    text = NcclIdText(id);
  }
  IdStoreOptions store;
  store.port = port;
  store.listen_fd = rank == 0 ? listen_fd : -1;
  store.rank = rank;
  store.world_size = size;
  store.group = settings.group;
  store.timeout = settings.timeout;
  COX_ASSIGN_OR_RETURN(text, ExchangeId(store, text));
  NcclOptions options;
  COX_ASSIGN_OR_RETURN(options.id, ParseNcclId(text));
  options.rank = rank;
  options.world_size = size;
  options.group = settings.group;
  options.timeout = settings.timeout;
  options.bucket_bytes = settings.bucket_bytes;
  options.tree_order = settings.tree_order;
  return options;
}

}  // namespace

std::string FakeLibraries() {
  return JoinPath(ExecutableDir(), "../tests/fake_nccl");
}

void UseFakes() {
  setenv("COX_NCCL", JoinPath(FakeLibraries(), "libnccl_fake.so").c_str(), 1);
  setenv("COX_CUDART", JoinPath(FakeLibraries(), "libcudart_fake.so").c_str(),
         1);
}

NcclWorld::NcclWorld(int size)
    : size_(size), listen_fd_(socket(AF_INET, SOCK_STREAM, 0)) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  COX_CHECK(bind(listen_fd_, reinterpret_cast<sockaddr*>(&address),
                 sizeof(address)) == 0);
  COX_CHECK(listen(listen_fd_, 16) == 0);
}

NcclWorld::~NcclWorld() {
  for (const pid_t pid : pids_) {
    kill(pid, SIGKILL);
    WaitChild(pid, kSoon);
  }
  close(listen_fd_);
}

void NcclWorld::Start(int rank, const Settings& settings, const Body& body) {
  StartUnmet(rank, settings, [body](const NcclOptions& options) {
    auto comm = MakeNccl(options);
    return comm.ok() ? body(**comm) : CodeOf(comm.status());
  });
}

void NcclWorld::StartUnmet(int rank, const Settings& settings,
                           const UnmetBody& body) {
  sockaddr_in address = {};
  socklen_t length = sizeof(address);
  COX_CHECK(getsockname(listen_fd_, reinterpret_cast<sockaddr*>(&address),
                        &length) == 0);
  const int port = ntohs(address.sin_port);
  const pid_t pid = fork();
  COX_CHECK(pid >= 0);
  if (pid == 0) {
    InitProcess(/*die_with_parent=*/true);
    UseFakes();
    setenv("COX_FAKE_MISUSE", dir_.Join("misuse").c_str(), 1);
    for (const auto& [name, value] : settings.env) {
      setenv(name.c_str(), value.c_str(), 1);
    }
    const auto options = OptionsOf(settings, rank, size_, listen_fd_, port);
    _exit(options.ok() ? body(*options) : CodeOf(options.status()));
  }
  pids_.push_back(pid);
}

void NcclWorld::StartAll(const Settings& settings, const Body& body) {
  for (int rank = 0; rank < size_; ++rank) Start(rank, settings, body);
}

void NcclWorld::ExpectExit(int rank, int code) {
  const ChildExit exit = WaitChild(pid(rank), kSoon);
  ASSERT_TRUE(exit.exited) << "rank " << rank << " hangs";
  EXPECT_EQ(exit.signal, 0) << "rank " << rank;
  EXPECT_EQ(exit.code, code) << "rank " << rank;
}

void NcclWorld::ExpectNobodyMeets() {
  int in_time = 0;
  for (int rank = 0; rank < size_; ++rank) {
    const ChildExit exit = WaitChild(pid(rank), kSoon);
    ASSERT_TRUE(exit.exited) << "rank " << rank << " hangs";
    EXPECT_TRUE(exit.signal == 0 &&
                (exit.code == kNoGroupInTime || exit.code == kNoGroup))
        << "rank " << rank << ": code " << exit.code << ", signal "
        << exit.signal;
    in_time += exit.code == kNoGroupInTime ? 1 : 0;
  }
  EXPECT_GE(in_time, 1);
}

void NcclWorld::ExpectKilled(int rank) {
  const ChildExit exit = WaitChild(pid(rank), kSoon);
  ASSERT_TRUE(exit.exited) << "rank " << rank << " hangs";
  EXPECT_EQ(exit.signal, SIGKILL) << "rank " << rank;
}

void NcclWorld::ExpectAllExit(int code) {
  for (int rank = 0; rank < size_; ++rank) ExpectExit(rank, code);
}

std::string NcclWorld::Misuses() const {
  return Fs::Real().ReadAll(dir_.Join("misuse")).value_or("");
}

}  // namespace cox
