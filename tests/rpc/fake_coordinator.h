#ifndef COX_TESTS_RPC_FAKE_COORDINATOR_H_
#define COX_TESTS_RPC_FAKE_COORDINATOR_H_

// A coordinator in memory for tests of clients and roles: real gRPC on
// loopback, no ledger. Thread-safe.

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cox/v1/checkpoint.grpc.pb.h"
#include "cox/v1/control.grpc.pb.h"
#include "cox/v1/experience.grpc.pb.h"
#include "cox/v1/monitor.grpc.pb.h"
#include "cox/v1/rollout.grpc.pb.h"
#include "cox/v1/run.grpc.pb.h"
#include "cox/v1/version.grpc.pb.h"
#include "lib/base/ids.h"
#include "lib/base/status.h"
#include "lib/base/sync.h"
#include "lib/rpc/server.h"

namespace cox::testing {

inline constexpr char kFakeRunId[] = "0123456789abcdef0123456789abcdef";

class FakeCoordinator {
 public:
  // `port` 0 = any. Dies when the port cannot be bound.
  explicit FakeCoordinator(int port = 0);
  ~FakeCoordinator();

  const std::string& address() const;
  int port() const;
  // Forgets sessions and leases, as a restarted process does; epoch + 1.
  void Restart();
  // The next `count` calls (any RPC) get `status`.
  void FailNext(int count, absl::Status status);

  // Answer of Register; run_id and epoch are filled in.
  cox::v1::RegisterResponse run;
  std::map<std::string, std::string> files;  // FetchFile
  std::map<int64_t, std::vector<std::pair<UnitId, std::string>>> batches;
  bool corrupt_batches = false;  // flips a byte of each payload
  // Set these before clients come; below are thread-safe.

  void SetAssignment(cox::v1::Assignment assignment);
  void AddUnit(cox::v1::LeasedUnit unit);
  // Every lease is lost now; its units can be leased again.
  void RevokeLeases();
  void RequestStop();  // heartbeats say stop

  bool WaitForSubmissions(size_t count);  // within 20 s
  bool WaitForRegistrations(int count);
  bool WaitForHeld(const std::string& content_hash);
  std::map<UnitId, std::string> submissions() const;  // payloads
  std::vector<UnitId> returned() const;
  std::vector<cox::v1::Caller> callers(const std::string& method) const;
  std::vector<cox::v1::RegisterRequest> registrations() const;
  std::vector<cox::v1::HeartbeatRequest> heartbeats() const;
  std::set<std::string> drained() const;  // names
  int64_t epoch() const;

 private:
  friend struct FakeServices;
  struct State;
  std::unique_ptr<State> state_;
  std::unique_ptr<struct FakeServices> services_;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace cox::testing

#endif  // COX_TESTS_RPC_FAKE_COORDINATOR_H_
